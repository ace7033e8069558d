"""``trueoracle search``: one good pruned network, for a part of what retraining all would take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueoracle.analysis.numbers import finite_or_none, in_milliseconds, interval, many, number
from trueoracle.cli import doors
from trueoracle.cli.console import guarded, out, print_json, shown_progress, table
from trueoracle.cli.fitted import FittedTable
from trueoracle.cli.options import (
    Chosen,
    Machine,
    Output,
    StudyName,
    Workers,
    check_figure,
    command_line,
)
from trueoracle.errors import InputError, TrueOracleError
from trueoracle.files import replacing
from trueoracle.report.words import medians_in_words
from trueoracle.run.progress import duration
from trueoracle.search.settings import SearchSettings
from trueoracle.spec.grid import load_spec
from trueoracle.spec.scale import badge_of, titled
from trueoracle.tasks.metric import Metric

if TYPE_CHECKING:
    import pandas as pd

    from trueoracle.spec.spec import StudySpec


@dataclass(frozen=True)
class Files:
    """Options of what is written, and of a replay."""

    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the chosen network: .safetensors (trueoracle.load), .onnx, .pt2, or, "
            "without an ending, a folder for transformers.",
        ),
    ] = None
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Search in the record of a study that retrained them all."),
    ] = False
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --replay: draw budget against regret, to a .png, .svg or .pdf.",
        ),
    ] = None


@guarded
def search(
    study: StudyName,
    wanted: SearchSettings,
    files: Files,
    chosen: Chosen,
    machine: Machine,
    workers: Workers,
    output: Output,
) -> None:
    """Choose one pruned network without retraining them all, and write it to a file.

    Successive halving: first, the candidates that a criterion prefers are retrained for a few
    epochs; next, candidates that prune the filters which did well among these. The better ones of
    all go on for more epochs, and so on to the end of the recipe, as far as the budget goes. The
    test images decide nothing. A search that was stopped goes on where it was.

    Strategies: **guided** is the above; **halving** begins with the criterion's candidates only,
    **random-halving** with random ones; **top** retrains the lowest scores to the end, **random**
    random candidates, **criterion** the lowest score alone, **full** every candidate.

    With --replay, all strategies and budgets are tried on recorded curves: budget against regret.

    Examples:

    - trueoracle search digits-conv1-0.2 --budget 10% --export model.safetensors

    - trueoracle search my-study.toml --budget 400 --criterion l1 --export model.onnx

    - trueoracle search my-study.toml --executor ray --address auto --gpus 0.5

    - trueoracle search digits-conv1-0.2 --replay --figure budget.png
    """
    if files.figure is not None and not files.replay:
        raise InputError("--figure draws a replay: give --replay too")
    if files.replay:
        check_figure(files.figure)
        _check_replay(wanted, files, machine, workers)
        _replay(study, wanted, files.figure, chosen, output)
        return
    spec = load_spec(study, chosen.overrides)
    if files.export is not None:
        doors.check_export(files.export, spec.network.name)
    made = doors.Study(spec, runs=chosen.runs)
    with (
        workers.opened(chosen.runs) as executor,
        shown_progress(quiet=output.quiet) as progress,
    ):
        found = made.search(wanted, progress=progress, executor=executor, **asdict(machine))
        if files.export is not None:
            _ = found.network  # retrained here, where progress is shown
    if not (output.as_json or output.quiet):
        _show(found, spec)
    try:
        written = None if files.export is None else found.export(files.export)
    except TrueOracleError:
        if output.as_json:  # the search is done, whatever becomes of the file
            print_json(found.as_dict() | {"export": None})
        raise
    if output.as_json:
        print_json(found.as_dict() | {"export": None if written is None else str(written)})
    elif not output.quiet and written is not None:
        _show_export(found, written)
    elif not output.quiet:
        options = asdict(wanted) | machine.as_given() | workers.as_given()
        options |= {"export": "model.safetensors", "allow_code": chosen.allow_code}
        again = command_line("search", study, chosen.changes, chosen.runs, **options)
        out().print(f"to write the network: {again}", soft_wrap=True)


def _check_replay(wanted: SearchSettings, files: Files, machine: Machine, workers: Workers) -> None:
    """Refuse options that do nothing in a replay."""
    given = {"export": files.export} | asdict(wanted) | machine.as_given() | workers.as_given()
    for option, value in given.items():
        if value is not None and option not in ("criterion", "by"):
            name = option.replace("_", "-")
            raise InputError(
                f"--{name} does nothing with --replay, which trains no network and tries every "
                "strategy, budget and seed"
            )


def _show_export(found: doors.SearchResult, written: Path) -> None:
    out().print(f"exported to {written}")
    if not written.suffix:
        plain = "transformers' from_pretrained loads it, and so does trueoracle.load:"
        other = "no config says its sizes: trueoracle.load loads it, from_pretrained does not:"
        out().print(plain if doors.is_plain(written) else other)
    if written.suffix in ("", ".safetensors"):
        name = found.origin.name
        other = ", network=…" if name is None else "" if doors.is_known(name) else ", trust=True"
        if found.origin.config is not None:  # by which it is built
            other = ""
        call = f'trueoracle.load("{written}"{other})'
        out().print(f"    import trueoracle\n    network = {call}", soft_wrap=True)


def _show(found: doors.SearchResult, spec: StudySpec) -> None:
    console = out()
    metric = found.by.replace("_", " ")
    shown = table("rung", "candidates", "epochs", f"best {metric}", right=("candidates", "epochs"))
    for place, (rung, own) in enumerate(
        zip(found.schedule.rungs, found.history.groupby("rung"), strict=True), start=1
    ):
        last = own[1].groupby("candidate").tail(1)[found.by]
        best = last.max() if found.compared.higher_is_better else last.min()
        shown.add_row(str(place), f"{rung.candidates:,}", str(rung.epochs), number(best, 4))
    console.print(f"\n{spec.title}, {found.strategy}", soft_wrap=True)
    if words := badge_of(spec):
        console.print(words)
    console.print(shown)
    pruned = "; ".join(
        f"{name} {', '.join(map(str, filters))}" for name, filters in found.origin.pruned.items()
    )
    console.print(f"\nchosen: candidate {found.chosen}" + (f", without {pruned}" if pruned else ""))
    console.print(_beside_dense(found))
    if words := _measured(found):
        console.print(words)
    spent = (
        f"{found.spent:,} of the {found.full_budget:,} epochs that retrain all "
        f"({found.spent / found.full_budget:.1%})"
    )
    if found.from_record:
        console.print(f"{spent} were looked at, all in the record of {found.folder.parent.parent}")
    else:
        console.print(f"{spent}, in {duration(found.seconds)}; recorded in {found.folder}")


def _beside_dense(found: doors.SearchResult) -> FittedTable:
    """The chosen network beside the dense one: what it is measured by, and what it costs."""
    made = table("", "dense", "chosen", "", right=("dense", "chosen"))
    columns = {f"test_{metric.name}": metric for metric in found.metrics}
    columns[found.by] = found.compared
    for column, metric in columns.items():
        dense, value = found.dense.get(column), found.outcome.values[column]
        by = "compared" if column == found.by else ""
        before = number(None) if dense is None else _value(metric, dense)
        made.add_row(
            f"{column.partition('_')[0]} {metric.label}", before, _value(metric, value), by
        )
    for name, words in (("parameters", "compression"), ("macs", "theoretical speed-up")):
        full, left = found.dense.get(name), found.cost[name]
        if full is not None and left is not None:
            times = f"{words} {full / left:.2f}x" if left else ""
            made.add_row(name.replace("macs", "MACs"), f"{full:,}", f"{left:,}", times)
    known = found.latency or {"batch": (), "dense": (), "pruned": ()}
    for size, *seconds in zip(*(known[n] for n in ("batch", "dense", "pruned")), strict=True):
        times = f"measured speed-up {seconds[0] / seconds[1]:.2f}x" if seconds[1] else ""
        shown = (f"{in_milliseconds(one)} ms" for one in seconds)
        made.add_row(f"latency of {many(size, 'example')}", *shown, times)
    return made


def _measured(found: doors.SearchResult) -> str:
    """Of what, where and how often latencies were measured; empty without any."""
    known = found.latency
    if known is None or not known["batch"]:
        return ""
    return (
        f"latency: {medians_in_words(known['repeats'], known['device'], known['threads'])}, of the "
        "dense network and of the candidate of median MACs in turn"
    )


def _value(metric: Metric, value: float) -> str:
    is_share = (metric.low, metric.high) == (0, 1)
    return f"{value:.2%}" if is_share else number(value, 4)


def _replay(
    study: str, wanted: SearchSettings, figure: Path | None, chosen: Chosen, output: Output
) -> None:
    results = doors.open_results(doors.find_run(study, chosen.runs, chosen.overrides))
    found = results.replay(wanted.criterion, by=wanted.by)
    if figure is not None:
        drawn = doors.draw_budget(doors.budget_data(found, title=titled(results.spec)))
        with replacing(figure) as draft:
            drawn.savefig(draft, dpi=110)
    if output.as_json:
        rows = [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]
        print_json([finite_or_none(row) for row in rows])
    elif not output.quiet:
        _show_replay(results, found, wanted.criterion or results.criteria[0])
        if figure is not None:
            out().print(f"figure {figure}")


def _show_replay(results: doors.Results, found: pd.DataFrame, criterion: str) -> None:
    console = out()
    sampled = "" if results.spec.pruning.candidates == "all" else "a sample of "
    seeds = many(int(found["searches"].iloc[0]), "retraining seed")
    console.print(
        f"{results.spec.title}: {sampled}{len(results.candidates):,} candidates ordered "
        f"by {criterion}, {seeds}\n",
        soft_wrap=True,
    )
    if words := badge_of(results.spec):
        console.print(f"{words}\n")
    for outcome in dict.fromkeys(found["outcome"]):
        console.print(_replay_table(found[found["outcome"] == outcome], outcome))
        console.print()
    console.print(
        "regret: what the best candidate is better by, with the middle 95 % of searches; top: "
        "the share of searches that end within the best 1 %; others: the regret judged by the "
        "mean of the other retraining seeds"
    )
    tried = set(found["share"])
    if left_out := [f"{share:.0%}" for share in doors.BUDGETS if share not in tried]:
        console.print(f"budgets that finish no network are left out: {', '.join(left_out)}")


def _replay_table(found: pd.DataFrame, outcome: str) -> FittedTable:
    """The results of each strategy at each budget, for one outcome."""
    has_others = bool((found["network"] == "other seeds").any())
    names = ["strategy", "budget", "epochs", "regret", "95%", "top"] + ["others"] * has_others
    shown = table(*names, right=names[1:], drops=["top", "epochs"])
    shown.title = outcome.replace("_", " ")
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
