"""``trueoracle reproduce``: the published settings, ours beside them, and running one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import trueoracle
from trueoracle.analysis.numbers import number, p_value, percent
from trueoracle.analysis.outcomes import rule_in_words
from trueoracle.cli.console import (
    Chosen,
    Machine,
    Output,
    command_line,
    err,
    guarded,
    out,
    print_json,
    shown_progress,
    table,
)
from trueoracle.cli.tables import notes, relations_of, relations_table
from trueoracle.errors import InputError, unknown
from trueoracle.report.summary import summarise
from trueoracle.reproduce import comparison
from trueoracle.reproduce.comparison import Ours
from trueoracle.reproduce.published import all_settings, published
from trueoracle.run.progress import duration
from trueoracle.spec.file import (
    Published,
    is_reference,
    shipped_studies,
    without_arms,
)
from trueoracle.spec.grid import load_spec, load_variant
from trueoracle.spec.scale import changes_in_words
from trueoracle.spec.spec import StudySpec


class Scale(StrEnum):
    """How much of a study is run."""

    full = "full"
    small = "small"


class Surgery(StrEnum):
    """How filters are removed."""

    exact = "exact"
    as_released = "as-released"


@dataclass(frozen=True)
class Arms:
    """Options that say which arms of a study are meant, and what is listed of them."""

    scale: Annotated[
        Scale | None,
        typer.Option(
            help="small: cut to what a laptop holds, and marked so [default: that of NAME, full "
            "without @small; the list shows full scale where it is finished, else small]."
        ),
    ] = None
    surgery: Annotated[
        Surgery, typer.Option(help="as-released: the wiring of the paper's released code.")
    ] = Surgery.exact
    outcome: Annotated[
        str, typer.Option(help="Epochs that count; best-on-test is the paper's choice.")
    ] = "last"
    times: Annotated[
        bool, typer.Option("--times/--no-times", help="List: estimate how long each takes here.")
    ] = True


@guarded
def reproduce(
    arms: Arms,
    chosen: Chosen,
    machine: Machine,
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A published setting, a study (its name or .toml) or a grid's point, GRID+POINT; "
            "left out: list the settings."
        ),
    ] = None,
) -> None:
    """List the paper's 45 published settings with ours beside them, or run one.

    The list says of each setting its study, the published Kendall's tau, p-value and anomaly ratio,
    ours where they are recorded below --runs, and the networks to retrain with an estimate of the
    time that takes here.

    With a NAME, its study is run as by **run** (run it again to resume), a direction setting's
    with its short retraining, and the published values are shown beside ours. With --scale small,
    the embedded digits stand in for a data set that is not at hand.

    Examples:

    - trueoracle reproduce --no-times

    - trueoracle reproduce lenet5/conv105

    - trueoracle reproduce direction/conv105 --scale small

    - trueoracle reproduce resnet56-cifar10-0.5 --scale small --surgery as-released
    """
    rule_in_words(arms.outcome)
    if name is not None:
        results = _run(name, arms, chosen, machine, output)
        if output.as_json:
            print_json(results)
        elif not output.quiet:
            _print_comparison(results)
        return
    if chosen.changes:
        raise InputError(
            "--set and --weights change the study that is run: name a setting or a study"
        )
    rows = _rows(arms, chosen.runs, machine.device, quiet=output.quiet)
    if output.as_json:
        print_json(rows)
    elif not output.quiet:
        _print_rows(rows)


def _rows(arms: Arms, runs: Path, device: str, *, quiet: bool) -> list[dict[str, Any]]:
    """The published settings, each with ours as far as it is recorded."""
    surgery = arms.surgery.value
    rows = []
    for one in all_settings():
        scale = arms.scale.value if arms.scale else None
        ours = comparison.recorded_ours(
            one, runs, scale=scale, surgery=surgery, rule=arms.outcome
        )
        shown = scale or (ours.scale if ours else "full")
        reference = comparison.arm_reference(one.study, shown, surgery)
        data = {"data.name": ours.data} if ours else {}  # a stand-in, maybe
        specs = [load_spec(reference, data)]
        if one.needs_short:
            specs.append(load_spec(comparison.short_reference(reference), data))
        rows.append(
            {
                **_entry(one, ours),
                "scale": shown,
                "networks": sum(_networks(spec, one) for spec in specs),
                "seconds": None,
                "engine": None,
                "specs": specs,
            }
        )
    if arms.times:
        _add_times(rows, device, quiet=quiet)
    for row in rows:
        del row["specs"]
    return rows


def _entry(one: Published, ours: Ours | None) -> dict[str, Any]:
    fields = ("n", "kendall_tau", "p_value", "anomaly_ratio")
    return {
        "setting": one.setting,
        "study": one.study,
        "x": one.x,
        "y": one.y,
        "source": one.source,
        "published": {field: getattr(one, field) for field in fields},
        "ours": None if ours is None else ours.as_dict(),
    }


def _networks(spec: StudySpec, one: Published) -> int:
    """Networks to retrain; of a study that lists every way to prune, as many as were published."""
    count = spec.pruning.candidates
    return (count if isinstance(count, int) else one.n) * len(spec.retraining.seeds)


def _add_times(rows: list[dict[str, Any]], device: str, *, quiet: bool) -> None:
    from trueoracle.run.estimate import Estimator  # imports torch

    estimator = Estimator(device)
    with shown_progress(quiet=quiet) as progress:
        progress.stage("time a few networks", len(rows), 0, "settings")
        for row in rows:
            try:
                estimates = [estimator.estimate(spec) for spec in row["specs"]]
            except InputError as error:  # a network or data set that this installation lacks
                progress.message(f"{row['setting']}: no estimate: {error}")
                estimates = [None]
            if all(estimates):
                row["seconds"] = sum(one.seconds for one in estimates if one is not None)
                row["engine"] = estimates[0].engine if estimates[0] else None
            progress.advance()


def _run(
    name: str, arms: Arms, chosen: Chosen, machine: Machine, output: Output
) -> dict[str, Any]:
    from trueoracle.data.datasets import at_hand  # imports torch

    study, wanted = _find(name)
    scale = arms.scale.value if arms.scale else None
    references = [comparison.arm_reference(study, scale, arms.surgery.value)]
    overrides = chosen.overrides
    spec = load_spec(references[0], overrides)
    if any(one.needs_short for one in wanted):
        references.append(comparison.short_reference(references[0]))
        comparison.check_direction(*references, overrides)
    replaced = None
    if spec.scale == "small" and spec.data.path is None and not at_hand(spec.data.name):
        replaced = spec.data.name
        overrides["data.name"] = comparison.STAND_IN
        if not output.quiet:
            err().print(f"data set {replaced} is not at hand: {comparison.STAND_IN} stands in for it")
    found = []
    for place, one in enumerate(references, start=1):
        made = trueoracle.Study(load_spec(one, overrides), runs=chosen.runs)
        with shown_progress(quiet=output.quiet) as progress:
            if len(references) > 1:
                progress.message(f"{place} of {len(references)}: {made.spec.name}")
            found.append(
                made.run(
                    progress=progress,
                    device=machine.device,
                    engine=machine.engine,
                    memory=machine.memory,
                )
            )
    short = found[1] if len(found) > 1 else None
    if not wanted and comparison.has_published_values(load_spec(study)):
        wanted = [one for one in published(without_arms(study)) if not one.needs_short]
    rule = arms.outcome
    return {
        "study": study,
        "scale": spec.scale,
        "replaced_data": replaced,
        "comparisons": [
            _entry(
                one, comparison.ours_of(one, found[0], short if one.needs_short else None, rule)
            )
            for one in wanted
        ],
        "summary": summarise(found[0], rule, short),
    }


def _find(name: str) -> tuple[str, list[Published]]:
    """The study that a name means, and the published settings that are asked for by it."""
    settings = {one.setting: one for one in all_settings()}
    if name in settings:
        return settings[name].study, [settings[name]]
    if not is_reference(name):
        raise unknown("published setting or study", name, {*settings, *shipped_studies()})
    variant = load_variant(name)
    # A file of one's own has no settings by name: all of its values are meant.
    asked = list(variant.published) if comparison.has_published_values(variant.spec) else []
    return name, asked


COLUMNS = ("n", "tau", "p", "anomalies")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    ours = tuple(f"our {name}" for name in COLUMNS)
    right = (*COLUMNS, *ours, "networks", "time here")
    made = table("setting", "study", *COLUMNS, *ours, "scale", "networks", "time here", right=right)
    for row in rows:
        seconds = row["seconds"]
        made.add_row(
            row["setting"],
            row["study"],
            *_published_cells(row["published"]),
            *_our_cells(row["ours"], row["scale"]),
            f"{row['networks']:,}",
            number(None) if seconds is None else _long(seconds),
        )
    out().print(made)
    out().print(
        "x is the pruned train loss; for direction/…, the accuracy after a tenth of the epochs (at "
        "small scale a fifth). Networks and times are those of the scale; times are of retraining "
        "alone. p is the textbook's on both sides, as the paper prints it; candidates overlap, so "
        "that it is too small."
    )


def _long(seconds: float) -> str:
    """Such as ``"3 h 5 min"``, and days from three on."""
    days = seconds / 86400
    return f"{days:,.0f} days" if days >= 3 else duration(seconds)


def _published_cells(values: dict[str, Any]) -> tuple[str, ...]:
    # Printed with five digits: 0.00000 is less than half of the last.
    p = "<5e-06" if values["p_value"] == 0 else p_value(values["p_value"])
    tau, anomalies = number(values["kendall_tau"], 2), percent(values["anomaly_ratio"])
    return f"{values['n']:,}", tau, p.replace("-", "−"), anomalies


def _our_cells(ours: dict[str, Any] | None, scale: str) -> tuple[str, ...]:
    """The four numbers and the scale; how much of it is recorded, where it is not all."""
    if ours is None:
        return (*(number(None) for _ in COLUMNS), scale)
    if ours["changed"]:
        scale += ", changed"
    if ours["retrained"] < ours["to_retrain"]:
        scale += f", {ours['retrained']}/{ours['to_retrain']}"
    tau, p = number(ours["kendall_tau"], 2), p_value(ours["kendall_p_value"])
    return f"{ours['n']:,}", tau, p, percent(ours["anomaly_ratio"]), scale


def _print_comparison(results: dict[str, Any]) -> None:
    console = out()
    console.print()
    summary = results["summary"]
    console.print(relations_table([summary]))
    for note in notes(relations_of(summary)):
        console.print(note, soft_wrap=True)
    console.print()
    if results["comparisons"]:
        console.print(_comparison_table(results["comparisons"], results["scale"]))
        console.print("p: the textbook's on both sides, as the paper prints it")
    else:
        console.print("no value of this study is published that we know of")
    if summary["scale_in_words"]:
        console.print(f"{summary['scale_in_words']}: not to be read as the paper's experiment")
    if summary["changed"]:
        changed = changes_in_words(summary["changed"])
        console.print(f"{changed}: not the study as its file has it")
    console.print(f"\nrecorded in {summary['folder']}")
    figures = command_line("report", summary["folder"])
    console.print(f"the figures: {figures}", soft_wrap=True)


def _comparison_table(comparisons: list[dict[str, Any]], scale: str) -> Table:
    made = table("setting", "whose", "x", *COLUMNS, "scale", right=COLUMNS)
    for one in comparisons:
        made.add_row(one["setting"], "published", one["x"], *_published_cells(one["published"]), "")
        surgery = f"ours, {one['ours']['surgery']}" if one["ours"] else "ours"
        made.add_row(one["setting"], surgery, one["x"], *_our_cells(one["ours"], scale))
    return made
