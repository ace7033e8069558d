"""The table of a grid, which several commands print."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from trueoracle.cli.fitted import FittedTable
from trueoracle.cli.tables import badges, entries_table, notes

__all__ = ["grid_table", "print_grid"]


def grid_table(summary: dict[str, Any]) -> FittedTable:
    """One row per point, criterion and outcome."""
    made = entries_table(
        [
            (
                {"point": entry["label"]},
                relation["criterion"],
                relation["outcome_name"].removeprefix("final "),
                relation,
            )
            for entry in summary["points"]
            for relation in (entry["summary"] or {"relations": []})["relations"]
        ]
    )
    made.title = summary["title"]
    return made


def print_grid(console: Console, summary: dict[str, Any]) -> None:
    """The table of a grid, and what its columns say."""
    console.print(grid_table(summary))
    found = [entry["summary"] or {"relations": []} for entry in summary["points"]]
    if summary["kinds_in_words"]:
        console.print(summary["kinds_in_words"])
    known = [one["summary"] for one in summary["points"] if one["summary"]]
    relations = [relation for one in found for relation in one["relations"]]
    for note in (*badges(known), *notes(relations)):
        console.print(note)
