"""``trueoracle report``: the figure and the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueoracle.cli.console import (
    Debug,
    Json,
    Runs,
    Settings,
    command_line,
    guarded,
    out,
    print_json,
)


@guarded
def report(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A recorded study: its name, .toml or folder; left out: the last changed one."
        ),
    ] = None,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    outcome: Annotated[
        str,
        typer.Option(help="Epochs that count: last, last-5, best-on-validation or best-on-test."),
    ] = "last",
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default: report/ in the run.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write report.html, summary.json and the figures (PNG, SVG, PDF) of a recorded study.

    Recorded arms of the study are shown beside it. An unfinished study is reported as far as it
    has come. Of a grid, one page with a panel of its points and tau against what they vary.

    Examples:

    - trueoracle report

    - trueoracle report digits-conv1-0.2

    - trueoracle report lenet5-mini-width@small

    - trueoracle report digits-conv1-0.2 --outcome best-on-test --out report-as-in-the-paper
    """
    from trueoracle.cli.grids import print_grid
    from trueoracle.cli.tables import notes, relations_of, relations_table
    from trueoracle.errors import InputError
    from trueoracle.grid import Grid
    from trueoracle.record.results import Results
    from trueoracle.record.runs import find_arms, find_run, last_run
    from trueoracle.report.page import write_report
    from trueoracle.report.words import data_in_words, verdicts
    from trueoracle.spec.file import is_reference, parse_overrides
    from trueoracle.spec.grid import variants

    if settings and not study:
        raise InputError("--set says which run of a STUDY is meant: name the study too")
    overrides = parse_overrides(settings or ())
    points = variants(study, overrides) if study and is_reference(study) else []
    if points and points[0].grid:
        whole = Grid(points, runs=runs)
        if not whole.folders():
            raise InputError(
                f"no point of {whole.name} is recorded in {runs} with these settings; this records "
                f"them: {command_line('run', study, settings, runs)}"
            )
        grid = whole.report(to, outcome)
        if as_json:
            print_json(grid.summary)
            return
        console = out()
        print_grid(console, grid.summary)
        console.print(f"\nreport   {grid.page}")
        console.print(f"summary  {grid.summary_path}")
        console.print(f"figures  {grid.page.parent / 'figures'} ({len(grid.figures)} files)")
        return
    results = Results(find_run(study, runs, overrides) if study else last_run(runs))
    written = write_report(results, find_arms(results), to or results.folder / "report", outcome)
    if as_json:
        print_json(written.summaries)
        return
    console = out()
    if written.summaries[0]["relations"]:
        console.print(relations_table(written.summaries))
        for note in notes([one for summary in written.summaries for one in relations_of(summary)]):
            console.print(note, soft_wrap=True)
        console.print()
    else:
        console.print("No network has been retrained yet: 'trueoracle run' goes on.")
    short = written.summaries[0]["short_retraining"] or {"relations": []}
    for verdict in verdicts(written.summaries[0]):
        console.print(verdict)
    for relation in short["relations"]:
        console.print(relation["verdict"])
    if data := data_in_words(written.summaries[0]["data_facts"]):
        console.print(f"Data: {data}.", soft_wrap=True)
    if written.summaries[0]["scale_in_words"]:
        console.print(written.summaries[0]["scale_in_words"])
    console.print(f"\nreport   {written.page}")
    console.print(f"summary  {written.summary}")
    if written.figures:
        count = len(written.figures)
        console.print(f"figures  {written.figures[0].parent} ({count} files)")
