"""What the commands do with a grid: all of its points, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from trueoracle.cli.console import shown_progress
from trueoracle.cli.tables import entries_table, notes

if TYPE_CHECKING:
    from trueoracle.record.results import Results
    from trueoracle.report.grid import WrittenGrid
    from trueoracle.spec.grid import GridPoint

__all__ = ["grid_points", "grid_table", "print_grid", "recorded_points", "run_points", "write_grid"]


def grid_points(study: str, overrides: Mapping[str, Any]) -> list[GridPoint]:
    """The points of a grid; none where the study is none. Raises :class:`InputError`."""
    from trueoracle.spec.grid import expand, is_grid

    return expand(study, overrides) if is_grid(study) else []


def run_points(
    points: list[GridPoint],
    runs: Path,
    *,
    quiet: bool,
    device: str,
    retrain: bool = True,
    engine: str = "auto",
    memory: str | None = None,
) -> dict[str, Results]:
    """Run (or only score) every point; each goes on where it stopped. Results by label.

    Every point is tried before the first one runs. Raises :class:`InputError`, which names the
    point, where one cannot work.
    """
    from trueoracle.study import Study

    with shown_progress(quiet=quiet) as progress:
        progress.stage("check", len(points), 0, "studies")
        for point in points:
            _check_point(point, runs, device, engine if retrain else None)
            progress.advance()
    found = {}
    for place, point in enumerate(points, start=1):
        made = Study(point.spec, runs=runs)
        with shown_progress(quiet=quiet) as progress:
            progress.message(f"{place} of {len(points)}: {point.spec.name}")
            found[point.label] = (
                made.run(progress=progress, device=device, engine=engine, memory=memory)
                if retrain
                else made.score(progress=progress, device=device)
            )
    return found


def _check_point(point: GridPoint, runs: Path, device: str, engine: str | None) -> None:
    from trueoracle.engines.choose import check_engine
    from trueoracle.errors import InputError
    from trueoracle.study import Study

    try:
        prepared = Study(point.spec, runs=runs).prepare(device)
        if engine is not None:
            example = prepared.candidates.prune(prepared.network, 0)
            check_engine(engine, example, prepared.data, point.spec.retraining)
    except InputError as error:
        raise InputError(f"{point.spec.name}: {error}") from error


def recorded_points(points: list[GridPoint], runs: Path, command: str) -> dict[str, Results]:
    """What is recorded of a grid, by label; raises :class:`InputError` where nothing is.

    ``command`` is the one that records it.
    """
    from trueoracle.errors import InputError
    from trueoracle.record.paths import DATABASE
    from trueoracle.record.results import Results

    folders = {point.label: runs / point.spec.folder_name for point in points}
    found = {k: Results(v) for k, v in folders.items() if (v / DATABASE).is_file()}
    if not found:
        raise InputError(
            f"no point of {points[0].grid} is recorded in {runs} with these settings; this "
            f"records them: {command}"
        )
    return found


def write_grid(
    points: list[GridPoint], runs: Path, to: Path | None, outcome: str, command: str
) -> tuple[WrittenGrid, Path]:
    """The report of what is recorded of a grid, and where it lies.

    ``command`` is the one that records it.
    """
    from trueoracle.report.grid import write_grid_report
    from trueoracle.spec.grid import grid_digest

    out = to or runs / f"{points[0].grid}-{grid_digest(points)}" / "report"
    return write_grid_report(points, recorded_points(points, runs, command), out, outcome), out


def grid_table(summary: dict[str, Any]) -> Table:
    """One row per point, criterion and outcome."""
    from trueoracle.spec.scale import titled

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
    made.title = titled(summary["grid"])
    made.title_justify = "left"
    return made


def print_grid(console: Console, summary: dict[str, Any]) -> None:
    """The table of a grid, and what its columns say."""
    console.print(grid_table(summary))
    found = [entry["summary"] or {"relations": []} for entry in summary["points"]]
    for note in notes([relation for one in found for relation in one["relations"]]):
        console.print(note, soft_wrap=True)
