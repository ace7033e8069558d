"""The tables of relations, which several commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueoracle.analysis.assessment import MATTERS
from trueoracle.analysis.numbers import many
from trueoracle.cli.console import text_table
from trueoracle.cli.fitted import FittedTable
from trueoracle.report.table import brief_table
from trueoracle.report.table import networks_table as text_of_networks
from trueoracle.report.words import told_apart

__all__ = [
    "LEAST",
    "badges",
    "entries_table",
    "networks_table",
    "notes",
    "relations_of",
    "relations_table",
]

LEAST = ("n", "rank", "at most", "anomalies", "ceiling", "regret")
"""What a narrow terminal leaves out first of the numbers of a relation."""


def relations_table(summaries: Sequence[dict[str, Any]]) -> FittedTable:
    """One row per study, criterion and outcome; a single study is named above the table."""
    several = len(summaries) > 1
    names = told_apart([one["title"] for one in summaries], [one["digest"] for one in summaries])
    made = entries_table(
        [
            (
                {"study": name} if several else {},
                relation["criterion"],
                relation["outcome_name"].removeprefix("final "),
                relation,
            )
            for name, summary in zip(names, summaries, strict=True)
            for relation in relations_of(summary)
        ]
    )
    if not several:
        made.title = f"{summaries[0]['title']}, {summaries[0]['surgery']} surgery"
        if networks := summaries[0]["networks"]:
            made.title += f", {many(len(networks), 'dense network')}"
    return made


def networks_table(summary: dict[str, Any]) -> FittedTable:
    """One row per criterion, outcome and dense network of a study over several."""
    made = text_table(text_of_networks(summary), ["percentile", "ceiling"])
    made.title = "Each dense network, which its interval takes as given"
    return made


def entries_table(
    entries: Sequence[tuple[Mapping[str, str], str, str, Mapping[str, Any]]],
) -> FittedTable:
    """The numbers of relations, from (words by heading, criterion, outcome, relation) of each."""
    return text_table(
        brief_table(
            [
                ({**words, "criterion": criterion, "outcome": outcome}, relation)
                for words, criterion, outcome, relation in entries
            ]
        ),
        LEAST,
    )


def relations_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A study's relations, and those of its short retraining."""
    short = summary["short_retraining"] or {"relations": []}
    return [*summary["relations"], *short["relations"]]


def badges(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """In which fields studies are not what their names promise: one line for each such study."""
    names = told_apart([one["study"] for one in summaries], [one["digest"] for one in summaries])
    return [
        f"{name}: {one['badge']}"
        for name, one in zip(names, summaries, strict=True)
        if one["badge"]
    ]


def notes(relations: Sequence[dict[str, Any]]) -> list[str]:
    """What the columns of the table mean, and what they leave out: one line each."""
    said = []
    over = [words for words in dict.fromkeys(one["interval_over"] for one in relations) if words]
    if over:
        said.append(f"95%: over {'; or '.join(over)}")
    if any(one["adjusted_p_value"] is not None for one in relations):
        said.append("p (Holm): labels of what is pruned permuted, adjusted for all that is shown")
    if any(one["adjusted_p_value"] is None for one in relations):
        said.append(
            "(p): the textbook's, too small where candidates overlap in what they prune: nothing "
            "is certain by it, since what they prune is not known, or they are too few"
        )
    if any(one["answer"] for one in relations):
        said.append(
            f"answer: does it predict the outcome? Yes: certain and {MATTERS} or more; No: certain "
            f"to be below {MATTERS} or misleading"
        )
    if any(one["ceiling"] is not None and not one["ceiling_of_examples"] for one in relations):
        said.append("ceiling: of retraining noise alone; what other examples change is not counted")
    if any(one["held_out_regret"] is not None for one in relations):
        said.append("regret: of the best by some seeds or examples, in the others")
    if tied := dict.fromkeys(one["criterion"] for one in relations if one["tied"] > 1):
        said.append(
            "anomalies, rank and regret are means over the candidates that share the lowest score "
            f"of {', '.join(tied)}"
        )
    return said
