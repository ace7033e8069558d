"""``trueoracle run``: carry a study out, or go on where it stopped."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from trueoracle.analysis.numbers import many
from trueoracle.cli import doors
from trueoracle.cli.console import check_failures, guarded, out, print_json, shown_progress
from trueoracle.cli.grids import print_grid
from trueoracle.cli.options import (
    Chosen,
    Machine,
    Output,
    RetryFailed,
    StudyName,
    Workers,
    command_line,
)
from trueoracle.cli.tables import badges, networks_table, notes, relations_of, relations_table
from trueoracle.report.words import latency_in_words, verdicts


@guarded
def run(
    study: StudyName,
    chosen: Chosen,
    machine: Machine,
    workers: Workers,
    output: Output,
    track: Annotated[
        str | None,
        typer.Option(
            help="Also log live to tensorboard, wandb or mlflow (pip install '.[track]')."
        ),
    ] = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Run a study, or all studies of a grid; run it again to resume.

    Everything is recorded below --runs as it is found. A run that was stopped, in whatever way,
    goes on after the last network it finished. A network whose retraining fails is recorded with
    its error, and the study goes on; exit code 6 says that there are such. Launched by *accelerate
    launch -m trueoracle run*, each network is retrained on several devices together.

    Examples:

    - trueoracle run digits-conv1-0.2

    - trueoracle run digits-conv1-0.2@as-released

    - trueoracle run lenet5-mini-conv1-0.5 --set data.name=mnist-5k --set retraining.epochs=3

    - trueoracle run lenet5-mini-width@small

    - trueoracle run my-study.toml --executor ray --address auto --gpus 0.5

    - trueoracle run my-study.toml --quiet --json > summary.json
    """
    grid = doors.Grid(study, overrides=chosen.overrides, runs=chosen.runs)
    team = doors.find_team()
    helps = team is not None and not team.is_main  # the first process speaks for all
    with (
        workers.opened(chosen.runs) as executor,
        shown_progress(quiet=output.quiet or helps) as progress,
    ):
        found = grid.run(
            progress=progress,
            executor=executor,
            retry_failed=retry_failed,
            track=track,
            **asdict(machine),
        )
    if helps:
        return
    if output.as_json:
        print_json(grid.summary())
    elif not output.quiet and grid.is_whole:
        _show_grid(grid, command_line("report", study, chosen.changes, chosen.runs))
    elif not output.quiet:
        _show(grid.summary())
    check_failures(sum(one.counts["failed"] for one in found.values()))


def _show(summary: dict[str, Any]) -> None:
    console = out()
    console.print()
    console.print(relations_table([summary]))
    for note in (*badges([summary]), *notes(relations_of(summary))):
        console.print(note)
    console.print()
    if summary["networks"]:
        console.print(networks_table(summary))
        console.print()
    for verdict in verdicts(summary):
        console.print(verdict)
    if summary["warning"]:
        console.print(f"warning: {summary['warning']}")
    if summary["diverged"]:
        console.print(
            f"{many(summary['diverged'], 'retraining')} diverged: counted as the worst outcome."
        )
    if summary["failures_in_words"]:
        console.print(f"{summary['failures_in_words']}; their candidates are left out.")
    if summary["cost"]:
        console.print(doors.cost_in_words(summary["cost"]))
    console.print(latency_in_words(summary["latency"]))
    console.print(f"\nrecorded in {summary['folder']}")
    console.print(f"the figures: {command_line('report', summary['folder'])}", soft_wrap=True)


def _show_grid(grid: doors.Grid, report: str) -> None:
    console = out()
    console.print()
    print_grid(console, grid.summary())
    console.print(f"\nrecorded in {grid.runs}: {len(grid.variants)} studies")
    console.print(f"the figures: {report}", soft_wrap=True)
