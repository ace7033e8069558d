"""``trueoracle search``: one good pruned network, for a part of what retraining all would take."""

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
    table,
    with_weights,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from trueoracle.study.search import SearchResult


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
            "[default: guided]."
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
    search that was stopped goes on after its last rung.

    Strategies: **guided** is that one; **halving** begins with the criterion's candidates only,
    **random-halving** with random ones; **top** retrains the lowest scores to the end, **random**
    random candidates, **criterion** the lowest score alone, **full** every candidate.

    With --replay, all strategies and budgets are tried on recorded curves: budget against regret.

    Examples:

    - trueoracle search digits-conv1-0.2 --budget 10% --export model.safetensors

    - trueoracle search my-study.toml --budget 400 --criterion l1 --export model.onnx

    - trueoracle search digits-conv1-0.2 --replay --figure budget.png
    """
    from trueoracle.errors import InputError
    from trueoracle.study.spec import parse_overrides

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
    from trueoracle.study.spec import load_spec
    from trueoracle.study.study import Study

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
    written = None if export is None else found.export(export)
    if as_json:
        print_json(found.as_dict() | {"export": None if written is None else str(written)})
    elif not quiet:
        _show(found)
        if written is not None:
            out().print(f"exported to {written}")
            if written.suffix == ".safetensors":
                name = found.origin.name
                other = ", network=…" if name is None else "" if is_known(name) else ", trust=True"
                call = f'trueoracle.load("{written}"{other})'
                out().print(f"    import trueoracle\n    network = {call}", soft_wrap=True)
        else:
            again = command_line("search", study, settings, runs)
            out().print(f"to write the network: {again} --export model.safetensors", soft_wrap=True)


def _show(found: SearchResult) -> None:
    from trueoracle.analysis.numbers import number
    from trueoracle.study.progress import duration
    from trueoracle.study.scale import titled

    console = out()
    metric = found.by.replace("_", " ")
    shown = table("rung", "candidates", "epochs", f"best {metric}", right=("candidates", "epochs"))
    for place, (rung, own) in enumerate(
        zip(found.schedule.rungs, found.history.groupby("rung"), strict=True), start=1
    ):
        last = own[1].groupby("candidate").last()[found.by]
        best = last.max() if found.by.endswith("accuracy") else last.min()
        shown.add_row(str(place), f"{rung.candidates:,}", str(rung.epochs), number(best, 4))
    console.print(f"\n{titled(found.study)}, {found.strategy}", soft_wrap=True)
    console.print(shown)
    pruned = "; ".join(
        f"{name} {', '.join(map(str, filters))}" for name, filters in found.origin.pruned.items()
    )
    console.print(f"\nchosen: candidate {found.chosen}" + (f", without {pruned}" if pruned else ""))
    console.print(
        f"test accuracy {found.outcome.test_accuracy:.2%}, test loss "
        f"{number(found.outcome.test_loss, 4)}, {metric} "
        f"{number(getattr(found.outcome, found.by), 4)}"
    )
    console.print(
        f"{found.spent:,} of the {found.full_budget:,} epochs that retrain all "
        f"({found.spent / found.full_budget:.1%}), in {duration(found.seconds)}; "
        f"recorded in {found.folder}"
    )


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
    from trueoracle.analysis.numbers import many
    from trueoracle.errors import StoreError
    from trueoracle.study.results import Results, find_run
    from trueoracle.study.scale import titled
    from trueoracle.study.spec import parse_overrides

    results = Results(find_run(study, runs, parse_overrides(settings)))
    found = results.replay(criterion, by=by)
    if figure is not None:
        from trueoracle.figures.budget import budget_data, draw_budget

        drawn = draw_budget(budget_data(found, title=titled(results.spec.name)))
        try:
            drawn.savefig(figure, dpi=110)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot write {figure}: {error}") from error
    if as_json:
        print_json(found.to_dict("records"))
    elif not quiet:
        console = out()
        shown = _replay_table(found)
        sampled = "" if results.spec.pruning.candidates == "all" else "a sample of "
        seeds = many(int(found["searches"].iloc[0]), "retraining seed")
        shown.title = (
            f"{titled(results.spec.name)}: {sampled}{len(results.candidates):,} candidates ordered "
            f"by {criterion or results.criteria[0]}, {seeds}"
        )
        shown.title_justify = "left"
        console.print(shown)
        console.print(
            "\nregret: what the best candidate is better by (the middle 95 % of searches); top: "
            "the share of\nsearches that end within the best 1 %; others: judged by the mean of "
            "the other retraining seeds"
        )
        if figure is not None:
            console.print(f"figure {figure}")


def _replay_table(found: pd.DataFrame) -> Table:
    outcomes = list(dict.fromkeys(found["outcome"]))
    others = (found["network"] == "other seeds").any()
    names = ["strategy", "budget", "epochs"]
    for outcome in outcomes:
        names += [outcome, f"{outcome} top"]
        names += [f"{outcome} others"] * bool(others and outcome == "test_accuracy")
    shown = table(*(_heading(name) for name in names), right=tuple(map(_heading, names[1:])))
    order = {name: place for place, name in enumerate(dict.fromkeys(found["strategy"]))}
    found = found.sort_values(["strategy", "spent"], key=lambda c: c.map(order).fillna(c))
    for (strategy, spent), rows in found.groupby(["strategy", "spent"], sort=False):
        share = rows["spent_share"].iloc[0]
        row = [str(strategy), f"{share:.1%}", f"{spent:,}"]
        for outcome in outcomes:
            judged = rows[rows["outcome"] == outcome].groupby("network").first()
            one = judged.loc["own"]
            row += [
                f"{one['regret']:.4f} ({one['low']:.4f} … {one['high']:.4f})",
                f"{one['in_top']:.0%}",
            ]
            if others and outcome == "test_accuracy":
                row.append(f"{judged.loc['other seeds', 'regret']:.4f}")
        shown.add_row(*row)
    return shown


def _heading(name: str) -> str:
    return name.replace("_", " ").replace(" top", ": top").replace(" others", ": others")
