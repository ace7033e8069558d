"""The table of relations, which several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from trueoracle.analysis.numbers import interval, number, p_value, percent
from trueoracle.cli.console import table

__all__ = ["NUMBERS", "relation_cells", "relations_table"]

NUMBERS = ("n", "tau", "95%", "p", "ceiling", "anomalies", "rank", "regret")
"""The columns of :func:`relation_cells`."""


def relations_table(summaries: Sequence[dict[str, Any]]) -> Table:
    """One row for each study, criterion and metric; a single study is named above the table."""
    from trueoracle.study.scale import titled  # its pydantic is slow to import for --help

    several = len(summaries) > 1
    names = ("study",) if several else ()
    made = table(*names, "criterion", "outcome", *NUMBERS, right=NUMBERS)
    if not several:
        made.title = f"{titled(summaries[0]['study'])}, {summaries[0]['surgery']} surgery"
        made.title_justify = "left"
    for summary in summaries:
        short = summary["short_retraining"] or {"relations": []}
        for relation in summary["relations"] + short["relations"]:
            made.add_row(
                *((titled(summary["study"]),) if several else ()),
                relation["criterion"],
                relation["outcome_name"].removeprefix("final "),
                *relation_cells(relation),
            )
    return made


def relation_cells(relation: dict[str, Any]) -> tuple[str, ...]:
    """The numbers of one relation, in the order of ``NUMBERS``.

    ``p`` permutes filter labels where that can be done; elsewhere it is the textbook's, in
    brackets.
    """
    return (
        str(relation["n"]),
        number(relation["kendall_tau"], 2),
        interval(relation["kendall_low"], relation["kendall_high"]),
        _p_value(relation),
        number(relation["ceiling"], 2),
        percent(relation["anomaly_ratio"]),
        str(relation["rank"]),
        number(relation["regret"], 4),
    )


def _p_value(relation: dict[str, Any]) -> str:
    if relation["permutation_p_value"] is not None:
        return p_value(relation["permutation_p_value"])
    textbook = relation["kendall_p_value"]
    return p_value(textbook) if textbook is None else f"({p_value(textbook)})"
