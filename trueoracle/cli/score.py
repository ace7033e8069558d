"""``trueoracle score``: what can be said before anything is retrained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trueoracle.analysis.numbers import number
from trueoracle.analysis.ranking import small_percent
from trueoracle.cli import doors
from trueoracle.cli.console import guarded, out, print_json, shown_progress, table
from trueoracle.cli.fitted import FittedTable
from trueoracle.cli.options import (
    AllowCode,
    Debug,
    Device,
    Json,
    Quiet,
    Runs,
    Settings,
    StudyName,
    Weights,
    command_line,
    with_weights,
)
from trueoracle.cli.tables import badges
from trueoracle.spec.file import parse_overrides

NUMBERS = ("n", "lowest", "runner-up", "margin", "median", "mean rank", "90%", "own rank")
LAST = ("median", "n", "runner-up")
"""What a narrow terminal leaves out first."""


@guarded
def score(
    study: StudyName,
    settings: Settings = None,
    weights: Weights = None,
    runs: Runs = Path("runs"),
    sample: Annotated[
        int, typer.Option(min=1, help="Size of the samples that are compared with all ways.")
    ] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the one sample drawn, as pruning.seed.")
    ] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    allow_code: AllowCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score every candidate of a study and rank them, without retraining any.

    Trains the dense network and evaluates every criterion, as **run** does first: **trueoracle
    run** goes on from there, and scoring that was stopped is resumed. The oracle's scores are over
    the training examples that train loss is measured on (data.measured_fraction). Where the native
    kernels apply, all 184,756 ways to prune half of 20 filters of a small network take minutes.

    Where every way to prune is scored, *mean rank* and *90%* say which place the lowest score of
    --sample ways takes among all (1 is the true oracle), over all such samples; *own rank* is that
    of the sample which pruning.candidates = --sample and pruning.seed = --seed draw.

    Examples:

    - trueoracle score digits-conv1-0.2 --sample 20

    - trueoracle score digits-conv1-0.2 --set network.arguments.width=20

    - trueoracle score my-study.toml --quiet --json > ranking.json
    """
    settings = with_weights(settings, weights)
    grid = doors.Grid(study, overrides=parse_overrides(settings), runs=runs)
    with shown_progress(quiet=quiet) as progress:
        studies = list(grid.score(progress=progress, device=device).values())
    scored = [one for results in studies for one in results.networks.values()]
    summaries = [doors.summarise_scores(results, sample, seed) for results in scored]
    if as_json:
        print_json(summaries if grid.is_whole or len(summaries) > 1 else summaries[0])
    elif not quiet:
        console = out()
        for results, summary in zip(scored, summaries, strict=True):
            console.print()
            several = len(scored) > len(studies)
            console.print(_table(summary, several=several))
            for ranking in summary["rankings"]:
                console.print(ranking["verdict"])
            console.print(f"\nrecorded in {results.folder}")
        for line in badges([results.status() for results in studies]):
            console.print(line)
        retrained = all(results.finished for results in studies)
        allowed = {} if retrained else {"allow_code": allow_code}
        again = command_line("report" if retrained else "run", study, settings, runs, **allowed)
        said = "all are retrained; the figures" if retrained else "to retrain them"
        console.print(f"{said}: {again}", soft_wrap=True)


def _table(summary: dict[str, Any], *, several: bool) -> FittedTable:
    made = table("criterion", *NUMBERS, right=NUMBERS, drops=LAST)
    made.title = f"{summary['title']}, {summary['surgery']} surgery"
    if several:
        made.title += f", dense network {summary['dense_seeds'][0]}"
    for ranking in summary["rankings"]:
        made.add_row(ranking["criterion"], *_cells(ranking))
    return made


def _cells(ranking: dict[str, Any]) -> tuple[str, ...]:
    """The numbers of one ranking, in the order of ``NUMBERS``."""
    sampled, margin = ranking["sampled"], ranking["relative_margin"]
    return (
        f"{ranking['n']:,}",
        number(ranking["oracle_score"], 4),
        number(ranking["runner_up_score"], 4),
        number(None) if margin is None else small_percent(margin),
        number(ranking["quantiles"]["0.5"], 4),
        number(sampled and sampled["mean_rank"], 1),
        f"{sampled['rank_5']:,} … {sampled['rank_95']:,}" if sampled else number(None),
        f"{sampled['own_rank']:,}" if sampled else number(None),
    )
