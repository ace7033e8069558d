"""The table of relations, which several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from trueoracle.analysis.numbers import number, p_value, percent
from trueoracle.cli.console import table

__all__ = ["relations_table"]

_NUMBERS = ("n", "tau", "p", "anomaly ratio", "discordant", "rank", "regret")


def relations_table(summaries: Sequence[dict[str, Any]]) -> Table:
    """One row for each study, criterion and metric."""
    made = table("study", "surgery", "criterion", "outcome", *_NUMBERS, right=_NUMBERS)
    for summary in summaries:
        for relation in summary["relations"]:
            made.add_row(
                summary["study"],
                summary["surgery"],
                relation["criterion"],
                relation["outcome_name"],
                *relation_cells(relation),
            )
    return made


def relation_cells(relation: dict[str, Any]) -> tuple[str, ...]:
    """The numbers of one relation, as in the table's columns."""
    return (
        str(relation["n"]),
        number(relation["kendall_tau"], 2),
        p_value(relation["kendall_p_value"]),
        percent(relation["anomaly_ratio"]),
        percent(relation["discordant_ratio"]),
        str(relation["rank"]),
        number(relation["regret"], 4),
    )
