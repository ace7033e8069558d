"""``trueoracle run``: carry a study out, or go on where it stopped."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from trueoracle.cli.console import (
    Chosen,
    Machine,
    Output,
    command_line,
    guarded,
    out,
    print_json,
    shown_progress,
)
from trueoracle.cli.grids import print_grid
from trueoracle.cli.tables import notes, relations_of, relations_table
from trueoracle.grid import Grid
from trueoracle.record.results import Results
from trueoracle.report.grid import summarise_grid
from trueoracle.report.summary import cost_in_words, summarise
from trueoracle.report.words import verdicts


@guarded
def run(
    study: Annotated[str, typer.Argument(help="A shipped study, or the path of a .toml; @arm.")],
    chosen: Chosen,
    machine: Machine,
    output: Output,
) -> None:
    """Run a study, or all studies of a grid; run it again to resume.

    Everything is recorded below --runs as it is found. A run that was stopped, in whatever way,
    goes on after the last network it finished.

    Examples:

    - trueoracle run digits-conv1-0.2

    - trueoracle run digits-conv1-0.2@as-released

    - trueoracle run lenet5-mini-conv1-0.5 --set data.name=mnist-5k --set retraining.epochs=3

    - trueoracle run lenet5-mini-width@small

    - trueoracle run my-study.toml --quiet --json > summary.json
    """
    grid = Grid(study, overrides=chosen.overrides, runs=chosen.runs)
    with shown_progress(quiet=output.quiet) as progress:
        found = grid.run(progress=progress, **asdict(machine))
    if output.quiet and not output.as_json:
        return
    if grid.is_whole:
        report = command_line("report", study, chosen.changes, chosen.runs)
        _show_grid(grid, found, report, as_json=output.as_json)
    else:
        _show(found[grid.name], as_json=output.as_json)


def _show(results: Results, *, as_json: bool) -> None:
    summary = summarise(results)
    if as_json:
        print_json(summary)
        return
    console = out()
    console.print()
    console.print(relations_table([summary]))
    for note in notes(relations_of(summary)):
        console.print(note, soft_wrap=True)
    console.print()
    for verdict in verdicts(summary):
        console.print(verdict)
    if summary["diverged"]:
        console.print(f"{summary['diverged']} retrainings diverged and have no outcome.")
    if summary["cost"]:
        console.print(cost_in_words(summary["cost"]))
    console.print(f"\nrecorded in {results.folder}")
    console.print(f"the figures: {command_line('report', results.folder)}", soft_wrap=True)


def _show_grid(grid: Grid, found: dict[str, Results], report: str, *, as_json: bool) -> None:
    summary = summarise_grid(grid.variants, found)
    if as_json:
        print_json(summary)
        return
    console = out()
    console.print()
    print_grid(console, summary)
    console.print(f"\nrecorded in {grid.runs}: {len(grid.variants)} studies")
    console.print(f"the figures: {report}", soft_wrap=True)
