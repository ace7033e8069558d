"""``trueoracle plan``: how long a study takes on so many workers, and what they cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from trueoracle.analysis.numbers import many, number
from trueoracle.cli import doors
from trueoracle.cli.console import guarded, out, print_json, shown_progress, table
from trueoracle.cli.options import Chosen, Machine, Output
from trueoracle.run.progress import duration


@guarded
def plan(
    study: Annotated[str, typer.Argument(help="A shipped study, or the path of a .toml; @arm.")],
    chosen: Chosen,
    machine: Machine,
    output: Output,
    workers: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Workers that retrain side by side [default: 1]; repeated."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads of each worker, as --cpus of a run.")
    ] = 1,
    networks: Annotated[
        int | None, typer.Option(min=1, help="Networks to retrain [default: all of the study].")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of a worker for an hour, in any currency.")
    ] = None,
    executor: Annotated[
        Literal["ray", "slurm"], typer.Option(help="Whose lengths of chunks are taken.")
    ] = "ray",
) -> None:
    """Say how long retraining takes on so many workers, how idle they are, and what they cost.

    Chunks of networks are simulated on workers that one driver feeds and records from. Their times
    are those of the recorded retrainings, where there are any on as many threads; otherwise a few
    steps are tried here. Training the dense network and scoring come before, on the driver alone.

    Examples:

    - trueoracle plan digits-conv1-0.2 --workers 8

    - trueoracle plan my-study.toml --workers 8 --workers 64 --threads 4 --price 0.35

    - trueoracle plan lenet5-mini-width@small --workers 16 --json
    """
    grid = doors.Grid(study, overrides=chosen.overrides, runs=chosen.runs)
    with shown_progress(quiet=output.quiet or output.as_json) as progress:
        found = grid.plan(
            workers or [1],
            threads=threads,
            networks=networks,
            executor=executor,
            progress=progress,
            **asdict(machine),
        )
    if price is not None:
        for row in found["plans"]:
            row["cost"] = row["workers"] * row["wall_seconds"] / 3600 * price
    if output.as_json:
        print_json(found)
    elif not output.quiet:
        _show(found, price is not None)


def _show(found: dict[str, Any], with_cost: bool) -> None:
    names = ["workers", "networks", "chunks", "a chunk", "wall time", "idle", "driver"]
    names += ["cost"] * with_cost
    shown = table(*names, right=tuple(names))
    for row in found["plans"]:
        cells = [f"{row[name]:,}" for name in ("workers", "networks", "chunks")]
        cells += [duration(row["chunk_seconds"]), duration(row["wall_seconds"])]
        cells += [f"{row['idle_share']:.1%}", f"{row['driver_share']:.1%}"]
        shown.add_row(*cells, *([f"{row['cost']:,.2f}"] if with_cost else []))
    console = out()
    console.print(shown)
    engines, sources = (" and ".join(found[name]) for name in ("engines", "sources"))
    console.print(
        f"\ntimes: {sources}, engine {engines}, {many(found['threads'], 'thread')} a worker; "
        f"{number(max(found['recording_seconds_a_network']) * 1000, 2)} ms to record a network. "
        "idle: the share of the workers' time without work; driver: the share of the wall time in "
        "which it records",
        soft_wrap=True,
    )
