"""``trueoracle export``: the tables, for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trueoracle.cli.completion import recorded
from trueoracle.cli.console import guarded, out, print_json
from trueoracle.cli.options import Debug, Json, Runs, Settings
from trueoracle.record.pooled import open_results
from trueoracle.record.runs import find_run
from trueoracle.spec.file import parse_overrides


class Format(StrEnum):
    """File formats of tables."""

    csv = "csv"
    parquet = "parquet"
    latex = "latex"
    markdown = "markdown"


@guarded
def export(
    study: Annotated[
        str,
        typer.Argument(
            help="A recorded study: its name, .toml or folder.", autocompletion=recorded
        ),
    ],
    to: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    form: Annotated[
        Format,
        typer.Option("--format", help="csv or parquet; latex or markdown: the table of a paper."),
    ] = Format.csv,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write all recorded tables: candidates, scores, outcomes and what lies behind them.

    With --format latex (for booktabs) or markdown, the table of criteria and outcomes for a paper,
    and its values as CSV.

    Examples:

    - trueoracle export digits-conv1-0.2 --out tables

    - trueoracle export digits-conv1-0.2 --format parquet --out tables

    - trueoracle export digits-conv1-0.2 --format latex --out paper
    """
    results = open_results(find_run(study, runs, parse_overrides(settings or ())))
    written = results.export(to, form.value)
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        out().print(str(path))
