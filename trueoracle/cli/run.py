"""``trueoracle run``: carry a study out, or go on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trueoracle.cli.console import (
    Debug,
    Device,
    Engine,
    Json,
    Memory,
    Quiet,
    Runs,
    Settings,
    Weights,
    command_line,
    guarded,
    out,
    print_json,
    shown_progress,
    with_weights,
)
from trueoracle.cli.tables import notes, relations_of, relations_table

if TYPE_CHECKING:
    from trueoracle.spec.grid import GridPoint


@guarded
def run(
    study: Annotated[str, typer.Argument(help="A shipped study, or the path of a .toml; @arm.")],
    settings: Settings = None,
    weights: Weights = None,
    runs: Runs = Path("runs"),
    device: Device = "auto",
    engine: Engine = "auto",
    memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
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
    from trueoracle.cli.grids import grid_points
    from trueoracle.report.summary import cost_in_words, summarise
    from trueoracle.report.words import verdicts
    from trueoracle.spec.spec import load_spec, parse_overrides
    from trueoracle.study import Study

    settings = with_weights(settings, weights)
    overrides = parse_overrides(settings)
    if points := grid_points(study, overrides):
        report = command_line("report", study, settings, runs)
        _run_grid(report, points, runs, device, engine, memory, quiet=quiet, as_json=as_json)
        return
    made = Study(load_spec(study, overrides), runs=runs)
    with shown_progress(quiet=quiet) as progress:
        results = made.run(progress=progress, device=device, engine=engine, memory=memory)
    summary = summarise(results)
    if as_json:
        print_json(summary)
    elif not quiet:
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
        report = command_line("report", results.folder)
        console.print(f"the figures: {report}", soft_wrap=True)


def _run_grid(
    report: str,
    points: list[GridPoint],
    runs: Path,
    device: str,
    engine: str,
    memory: str | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from trueoracle.cli.grids import print_grid, run_points
    from trueoracle.report.grid import summarise_grid

    found = run_points(points, runs, quiet=quiet, device=device, engine=engine, memory=memory)
    if quiet and not as_json:
        return
    summary = summarise_grid(points, found)
    if as_json:
        print_json(summary)
        return
    console = out()
    console.print()
    print_grid(console, summary)
    console.print(f"\nrecorded in {runs}: {len(points)} studies")
    console.print(f"the figures: {report}", soft_wrap=True)
