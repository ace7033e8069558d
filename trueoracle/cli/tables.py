"""The table of relations, which several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from trueoracle.analysis.numbers import interval, mean_count, number, p_value, percent
from trueoracle.cli.console import table

__all__ = ["NUMBERS", "notes", "relation_cells", "relations_of", "relations_table"]

NUMBERS = ("n", "tau", "95%", "p (Holm)", "ceiling", "anomalies", "rank", "regret")
"""The columns of :func:`relation_cells`."""


def relations_table(summaries: Sequence[dict[str, Any]]) -> Table:
    """One row for each study, criterion and metric; a single study is named above the table."""
    several = len(summaries) > 1
    names = ("study",) if several else ()
    made = table(*names, "criterion", "outcome", *NUMBERS, right=NUMBERS)
    if not several:
        made.title = f"{summaries[0]['title']}, {summaries[0]['surgery']} surgery"
        made.title_justify = "left"
    for summary in summaries:
        for relation in relations_of(summary):
            made.add_row(
                *((summary["title"],) if several else ()),
                relation["criterion"],
                relation["outcome_name"].removeprefix("final "),
                *relation_cells(relation),
            )
    return made


def relations_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A study's relations, and those of its short retraining."""
    short = summary["short_retraining"] or {"relations": []}
    return [*summary["relations"], *short["relations"]]


def relation_cells(relation: dict[str, Any]) -> tuple[str, ...]:
    """The numbers of one relation, in the order of ``NUMBERS``.

    ``p (Holm)`` permutes filter labels and is adjusted for all criteria, where that can be done;
    elsewhere it is the textbook's, in brackets.
    """
    return (
        str(relation["n"]),
        number(relation["kendall_tau"], 2),
        interval(relation["kendall_low"], relation["kendall_high"]),
        _p_value(relation),
        number(relation["ceiling"], 2),
        percent(relation["anomaly_ratio"]),
        mean_count(relation["rank"]),
        number(relation["regret"], 4),
    )


def _p_value(relation: dict[str, Any]) -> str:
    if relation["adjusted_p_value"] is not None:
        return p_value(relation["adjusted_p_value"])
    textbook = relation["kendall_p_value"]
    return p_value(textbook) if textbook is None else f"({p_value(textbook)})"


def notes(relations: Sequence[dict[str, Any]]) -> list[str]:
    """What the columns of :func:`relation_cells` say, and what they do not: a line each."""
    said = []
    over = [words for words in dict.fromkeys(one["interval_over"] for one in relations) if words]
    if over:
        said.append(f"95%: over {'; or '.join(over)}")
    if any(one["adjusted_p_value"] is not None for one in relations):
        said.append("p (Holm): filter labels permuted, adjusted for all criteria of an outcome")
    if any(one["adjusted_p_value"] is None for one in relations):
        said.append(
            "(p): the textbook's, too small where candidates overlap in what they prune: nothing "
            "is certain by it"
        )
    if any(one["ceiling"] is not None for one in relations):
        said.append("ceiling: of retraining noise alone; what other images change is not counted")
    if tied := dict.fromkeys(one["criterion"] for one in relations if one["tied"] > 1):
        said.append(
            "anomalies, rank and regret are means over the candidates that share the lowest score "
            f"of {', '.join(tied)}"
        )
    return said
