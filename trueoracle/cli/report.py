"""``trueoracle report``: the figure and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trueoracle.cli import doors
from trueoracle.cli.completion import recorded
from trueoracle.cli.console import guarded, out, print_json
from trueoracle.cli.grids import print_grid
from trueoracle.cli.options import Debug, Json, OutcomeRule, Runs, Settings, command_line
from trueoracle.cli.tables import badges, networks_table, notes, relations_of, relations_table
from trueoracle.errors import InputError
from trueoracle.record.networks import is_recorded
from trueoracle.report.headline import nothing_retrained
from trueoracle.report.words import data_in_words, searches_in_words, verdicts
from trueoracle.spec.file import is_reference, parse_overrides
from trueoracle.spec.grid import variants


@guarded
def report(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY]...",
            help="Recorded studies, each by its name, .toml or folder: the first one, and others "
            "to show beside it. Left out: the last changed one.",
            autocompletion=recorded,
        ),
    ] = None,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    outcome: OutcomeRule = "last",
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default: report/ in the run.")
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Leave out host, user and absolute paths: for others to see."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write report.html, summary.json and the figures (PNG, SVG, PDF) of a recorded study.

    Recorded arms of the study are shown beside it or, where several are named, those instead. An
    unfinished study is reported as far as it has come. Of a grid, one page with its points side by
    side and agreement against what they vary. The page opens anywhere, without a network.

    Examples:

    - trueoracle report

    - trueoracle report digits-conv1-0.2

    - trueoracle report lenet5-mini-conv1-0.2 lenet5-mini-conv2-0.2

    - trueoracle report lenet5-mini-width@small

    - trueoracle report digits-conv1-0.2 --outcome best-on-test --out report-as-in-the-paper
    """
    study = studies[0] if studies else None
    others = (studies or [])[1:]
    if settings and not study:
        raise InputError("--set says which run of a STUDY is meant: name the study too")
    overrides = parse_overrides(settings or ())
    is_folder = bool(study) and is_recorded(runs / str(study))  # a grid's point has a + in it
    points = variants(study, overrides) if study and not is_folder and is_reference(study) else []
    if points and points[0].grid:
        if others:
            raise InputError(f"{study!r} is a grid, which has a report of its own: name it alone")
        whole = doors.Grid(points, runs=runs)
        if not whole.folders():
            raise InputError(
                f"no point of {whole.name} is recorded in {runs} with these settings; this records "
                f"them: {command_line('run', study, settings, runs)}"
            )
        grid = whole.report(to, outcome, share=share)
        if as_json:
            print_json(grid.summary)
            return
        print_grid(out(), grid.summary)
        _print_files(grid.page, grid.summary_path, grid.figures)
        return
    run = doors.find_run(study, runs, overrides) if study else doors.last_run(runs)
    results = doors.open_results(run)
    folder = to or results.folder / "report"
    beside = [doors.open_results(doors.find_run(one, runs, overrides)) for one in others]
    arms = beside if others else doors.find_arms(results)
    if share:
        results, arms = results.to_share(), [arm.to_share() for arm in arms]
    written = doors.write_report(results, arms, folder, outcome)
    if as_json:
        print_json(written.summaries)
        return
    _print_findings(written.summaries)
    _print_files(written.page, written.summary, written.figures)


def _print_findings(summaries: Sequence[dict[str, Any]]) -> None:
    """The table of a study and its arms, and the study's verdicts."""
    console = out()
    own = summaries[0]
    if own["relations"]:
        console.print(relations_table(summaries))
        shown = [one for summary in summaries for one in relations_of(summary)]
        for note in (*badges(summaries), *notes(shown)):
            console.print(note)
        console.print()
        if own["networks"]:
            console.print(networks_table(own))
            console.print()
    else:
        console.print(f"{nothing_retrained(own)} 'trueoracle run' goes on.")
    for search in searches_in_words(own):
        console.print(search)
    for verdict in verdicts(own):
        console.print(verdict)
    for relation in (own["short_retraining"] or {"relations": []})["relations"]:
        console.print(relation["verdict"])
    if data := data_in_words(own["data_facts"]):
        console.print(f"Data: {data}.", soft_wrap=True)


def _print_files(page: Path, summary: Path, figures: Sequence[Path]) -> None:
    console = out()
    console.print(f"\nreport   {page}")
    console.print(f"summary  {summary}")
    if figures:
        console.print(f"figures  {figures[0].parent} ({len(figures)} files)")
