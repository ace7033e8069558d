"""``trueoracle figures``: the figures of a recorded study, for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueoracle.cli import doors
from trueoracle.cli.completion import recorded
from trueoracle.cli.console import guarded, out, print_json
from trueoracle.cli.options import Debug, Json, OutcomeRule, Runs, Settings
from trueoracle.spec.file import parse_overrides


@guarded
def figures(
    study: Annotated[
        str,
        typer.Argument(
            help="A recorded study: its name, .toml or folder.", autocompletion=recorded
        ),
    ],
    to: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("figures"),
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="pdf, svg or png; may be repeated [default: pdf]."),
    ] = None,
    columns: Annotated[
        int, typer.Option(help="1 or 2: how many columns of a paper a figure is as wide as.")
    ] = 1,
    outcome: OutcomeRule = "last",
    settings: Settings = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the figures of a recorded study as wide as a paper's columns, with their values.

    The ladder of criteria, a scatter for each criterion and outcome, and the rank agreement of
    criteria; beside each figure a CSV of what it shows. Fonts are embedded. For the tables of a
    paper: **trueoracle export STUDY --format latex**.

    Examples:

    - trueoracle figures digits-conv1-0.2

    - trueoracle figures digits-conv1-0.2 --columns 2 --format pdf --format png --out paper
    """
    results = doors.open_results(doors.find_run(study, runs, parse_overrides(settings or ())))
    written = results.figures(to, formats or ("pdf",), columns, outcome)
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        out().print(str(path), soft_wrap=True)
