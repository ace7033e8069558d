"""``trueoracle search``: one good pruned network, for a part of what retraining all would take."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueoracle.analysis.numbers import interval
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
    table,
    with_weights,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from trueoracle.search.search import SearchResult
    from trueoracle.tasks.metric import Metric


@guarded
def search(
    study: Annotated[str, typer.Argument(help="A shipped study, or the path of a .toml; @arm.")],
    budget: Annotated[
        str | None,
        typer.Option(
            help="Epochs of one candidate to spend, or a share of retraining every candidate, such "
            "as 10% [default: 10%, or one network where that is more]."
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="guided, halving, random-halving, top, random, criterion or full (see below) "
            "[default: guided; halving where single weights are pruned]."
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Orders the candidates before retraining [default: the study's first that "
            "applies]."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What is compared: validation_loss, validation_accuracy or train_loss [default: "
            "validation loss; train loss where there is no validation split]."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the retraining, and of a random order [default: the study's first]."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the chosen network: .safetensors (trueoracle.load), .onnx or .pt2.",
        ),
    ] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Search in the record of a study that retrained them all."),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --replay: draw budget against regret."),
    ] = None,
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
    """Choose one pruned network without retraining them all, and write it to a file.

    Successive halving: the candidates that a criterion prefers are retrained for a few epochs, then
    those whose filters were good ones to prune in the first, the better ones of all for some more,
    and so on to the end of the recipe, as the budget affords. The test images decide nothing. A
    search that was stopped goes on where it was.

    Strategies: **guided** is that one; **halving** begins with the criterion's candidates only,
    **random-halving** with random ones; **top** retrains the lowest scores to the end, **random**
    random candidates, **criterion** the lowest score alone, **full** every candidate.

    With --replay, all strategies and budgets are tried on recorded curves: budget against regret.

    Examples:

    - trueoracle search digits-conv1-0.2 --budget 10% --export model.safetensors

    - trueoracle search my-study.toml --budget 400 --criterion l1 --export model.onnx

    - trueoracle search digits-conv1-0.2 --replay --figure budget.png
    """
    from trueoracle.errors import InputError, TrueOracleError
    from trueoracle.spec.spec import parse_overrides

    settings = with_weights(settings, weights)
    if figure is not None and not replay:
        raise InputError("--figure draws a replay: give --replay too")
    if replay:
        for option, value in (
            *(("--budget", budget), ("--export", export), ("--strategy", strategy)),
            *(("--seed", seed), ("--memory", memory)),
            *(("--engine", None if engine == "auto" else engine),),
            *(("--device", None if device == "auto" else device),),
        ):
            if value is not None:
                raise InputError(
                    f"{option} does nothing with --replay, which trains no network and tries every "
                    "strategy, budget and seed"
                )
        _replay(study, settings, runs, criterion, by, figure, quiet=quiet, as_json=as_json)
        return
    from trueoracle.search.export import check_export, is_known
    from trueoracle.spec.spec import load_spec
    from trueoracle.study import Study

    if export is not None:
        check_export(export)
    made = Study(load_spec(study, parse_overrides(settings)), runs=runs)
    with shown_progress(quiet=quiet) as progress:
        found = made.search(
            budget,
            strategy=strategy,
            criterion=criterion,
            by=by,
            seed=seed,
            progress=progress,
            device=device,
            engine=engine,
            memory=memory,
        )
    if not (as_json or quiet):
        _show(found)
    try:
        written = None if export is None else found.export(export)
    except TrueOracleError:
        if as_json:  # the search is done, whatever becomes of the file
            print_json(found.as_dict() | {"export": None})
        raise
    if as_json:
        print_json(found.as_dict() | {"export": None if written is None else str(written)})
    elif not quiet and written is not None:
        out().print(f"exported to {written}")
        if written.suffix == ".safetensors":
            name = found.origin.name
            other = ", network=…" if name is None else "" if is_known(name) else ", trust=True"
            call = f'trueoracle.load("{written}"{other})'
            out().print(f"    import trueoracle\n    network = {call}", soft_wrap=True)
    elif not quiet:
        again = command_line(
            "search",
            study,
            settings,
            runs,
            budget=budget,
            strategy=strategy,
            criterion=criterion,
            by=by,
            seed=seed,
            device=None if device == "auto" else device,
            engine=None if engine == "auto" else engine,
            memory=memory,
            export="model.safetensors",
        )
        out().print(f"to write the network: {again}", soft_wrap=True)


def _is_more_better(found: SearchResult) -> bool:
    return any(
        metric.higher_is_better and found.by.endswith(f"_{metric.name}") for metric in found.metrics
    )


def _show(found: SearchResult) -> None:
    from trueoracle.analysis.numbers import number
    from trueoracle.run.progress import duration
    from trueoracle.spec.scale import titled

    console = out()
    metric = found.by.replace("_", " ")
    shown = table("rung", "candidates", "epochs", f"best {metric}", right=("candidates", "epochs"))
    for place, (rung, own) in enumerate(
        zip(found.schedule.rungs, found.history.groupby("rung"), strict=True), start=1
    ):
        last = own[1].groupby("candidate").last()[found.by]
        best = last.max() if _is_more_better(found) else last.min()
        shown.add_row(str(place), f"{rung.candidates:,}", str(rung.epochs), number(best, 4))
    console.print(f"\n{titled(found.study)}, {found.strategy}", soft_wrap=True)
    console.print(shown)
    pruned = "; ".join(
        f"{name} {', '.join(map(str, filters))}" for name, filters in found.origin.pruned.items()
    )
    console.print(f"\nchosen: candidate {found.chosen}" + (f", without {pruned}" if pruned else ""))
    console.print(
        "".join(
            f"test {metric.label} {_value(metric, found.outcome.values[f'test_{metric.name}'])}, "
            for metric in found.metrics
        )
        + f"{metric} "
        f"{number(found.outcome.values[found.by], 4)}"
    )
    console.print(
        f"{found.spent:,} of the {found.full_budget:,} epochs that retrain all "
        f"({found.spent / found.full_budget:.1%}), in {duration(found.seconds)}; "
        f"recorded in {found.folder}"
    )


def _value(metric: Metric, value: float) -> str:
    from trueoracle.analysis.numbers import number

    is_share = (metric.low, metric.high) == (0, 1)
    return f"{value:.2%}" if is_share else number(value, 4)


def _replay(
    study: str,
    settings: list[str],
    runs: Path,
    criterion: str | None,
    by: str | None,
    figure: Path | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from trueoracle.analysis.numbers import finite_or_none, many
    from trueoracle.errors import StoreError
    from trueoracle.files import replacing
    from trueoracle.record.results import Results
    from trueoracle.record.runs import find_run
    from trueoracle.search.replay import BUDGETS
    from trueoracle.spec.scale import titled
    from trueoracle.spec.spec import parse_overrides

    results = Results(find_run(study, runs, parse_overrides(settings)))
    found = results.replay(criterion, by=by)
    if figure is not None:
        from trueoracle.figures.budget import budget_data, draw_budget

        drawn = draw_budget(budget_data(found, title=titled(results.spec.name)))
        try:
            with replacing(figure) as draft:
                drawn.savefig(draft, dpi=110)
        except ValueError as error:  # an ending that is no picture's
            raise StoreError(f"cannot write {figure}: {error}") from error
    if as_json:
        rows = [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]
        print_json([finite_or_none(row) for row in rows])
    elif not quiet:
        console = out()
        sampled = "" if results.spec.pruning.candidates == "all" else "a sample of "
        seeds = many(int(found["searches"].iloc[0]), "retraining seed")
        console.print(
            f"{titled(results.spec.name)}: {sampled}{len(results.candidates):,} candidates ordered "
            f"by {criterion or results.criteria[0]}, {seeds}\n",
            soft_wrap=True,
        )
        for outcome in dict.fromkeys(found["outcome"]):
            console.print(_replay_table(found[found["outcome"] == outcome], outcome))
            console.print()
        console.print(
            "regret: what the best candidate is better by, with the middle 95 % of searches; top: "
            "the share of\nsearches that end within the best 1 %; others: the regret judged by the "
            "mean of the other retraining seeds"
        )
        tried = set(found["share"])
        if left_out := [f"{share:.0%}" for share in BUDGETS if share not in tried]:
            console.print(f"budgets that finish no network are left out: {', '.join(left_out)}")
        if figure is not None:
            console.print(f"figure {figure}")


def _replay_table(found: pd.DataFrame, outcome: str) -> Table:
    """What the strategies find of one outcome, at each budget."""
    has_others = bool((found["network"] == "other seeds").any())
    names = ["strategy", "budget", "epochs", "regret", "95%", "top"] + ["others"] * has_others
    shown = table(*names, right=tuple(names[1:]))
    shown.title, shown.title_justify = outcome.replace("_", " "), "left"
    order = {name: place for place, name in enumerate(dict.fromkeys(found["strategy"]))}
    found = found.sort_values(["strategy", "share"], key=lambda c: c.map(order).fillna(c))
    for (strategy, share), rows in found.groupby(["strategy", "share"], sort=False):
        judged: dict[str, Any] = {str(row["network"]): row for row in rows.to_dict("records")}
        own = judged["own"]
        low, high = (None if isnan(own[name]) else own[name] for name in ("low", "high"))
        row = [str(strategy), f"{float(str(share)):.0%}", f"{own['spent']:,}"]
        row += [f"{own['regret']:.4f}", interval(low, high, 4), f"{own['in_top']:.0%}"]
        if has_others:
            row.append(f"{judged['other seeds']['regret']:.4f}")
        shown.add_row(*row)
    return shown
