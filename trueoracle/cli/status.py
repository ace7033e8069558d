"""``trueoracle status``: what is recorded, and how far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trueoracle.analysis.numbers import many
from trueoracle.cli.console import guarded, out, print_json, table
from trueoracle.cli.options import Debug, Json, Runs
from trueoracle.cli.tables import badges
from trueoracle.errors import StoreError
from trueoracle.record.runs import recorded_studies
from trueoracle.record.status import read_status


@guarded
def status(runs: Runs = Path("runs"), as_json: Json = False, debug: Debug = False) -> None:
    """Show the recorded studies and how far each has come, the last changed one first.

    A study is running, finished, failed (every network was tried, and some failed: exit code 6 of
    run), scored (and nothing retrained), searched (for one network, and nothing else retrained),
    interrupted (running it again goes on), or unreadable.

    Examples:

    - trueoracle status

    - trueoracle status --runs /data/runs --json
    """
    rows = _rows(runs)
    if as_json:
        print_json(rows)
        return
    if not rows:
        out().print(f"no study is recorded in {runs}: 'trueoracle run STUDY' records one")
        return
    headings = (
        "study", "digest", "state", "scored", "retrained", "diverged", "failed", "last started"
    )  # fmt: skip
    made = table(*headings, right=headings[3:7], drops=("last started", "diverged", "digest"))
    for row in rows:
        if row["state"] == "unreadable":
            made.add_row(row["study"], row["digest"], row["state"], "", "", "", "", row["error"])
            continue
        seeds = row.get("dense_seeds") or ()
        networks = f", {many(len(seeds), 'dense network')}" if seeds else ""
        made.add_row(
            f"{row['study']}{networks}",
            row["digest"],
            row["state"],
            f"{row['scored']:,}/{row['to_score']:,}",
            f"{row['retrained']:,}/{row['to_retrain']:,}",
            str(row["diverged"]),
            str(row["failed"]),
            row["last_started"],
        )
    out().print(made)
    for line in badges([row for row in rows if row["state"] != "unreadable"]):
        out().print(line)


def _rows(runs: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for folder in recorded_studies(runs):
        try:
            rows.append(read_status(folder))
        except StoreError as error:
            name, _, digest = folder.name.rpartition("-")
            rows.append(
                {
                    "study": name,
                    "digest": digest,
                    "folder": str(folder),
                    "state": "unreadable",
                    "error": str(error),
                }
            )
    return rows
