"""``trueoracle reproduce``: the published settings, ours beside them, and running one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from trueoracle.analysis.numbers import number, p_value, percent
from trueoracle.cli import doors
from trueoracle.cli.completion import studies
from trueoracle.cli.console import check_failures, guarded, out, print_json, shown_progress, table
from trueoracle.cli.fitted import FittedTable
from trueoracle.cli.options import Chosen, Machine, Output, RetryFailed, Workers, command_line
from trueoracle.cli.tables import notes, relations_of, relations_table
from trueoracle.errors import InputError
from trueoracle.run.progress import duration
from trueoracle.spec.published import PRINTED


@dataclass(frozen=True)
class Arms:
    """Options that say which arms of a study are meant, and what is listed of them."""

    scale: Annotated[
        Literal["full", "small"] | None,
        typer.Option(
            help="small: cut to what a laptop holds, and marked so [default: that of NAME, full "
            "without @small; the list shows full scale where it is finished, else small]."
        ),
    ] = None
    surgery: Annotated[
        Literal["exact", "as-released"],
        typer.Option(help="as-released: the wiring of the paper's released code."),
    ] = "exact"
    outcome: Annotated[
        str, typer.Option(help="Epochs that count; best-on-test is the paper's choice.")
    ] = "last"
    times: Annotated[
        bool, typer.Option("--times", help="List: time networks, to estimate how long each takes.")
    ] = False


@guarded
def reproduce(
    arms: Arms,
    chosen: Chosen,
    machine: Machine,
    workers: Workers,
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A published setting, a study (its name or .toml) or a grid's point, GRID+POINT; "
            "left out: list the settings.",
            autocompletion=studies,
        ),
    ] = None,
    retry_failed: RetryFailed = False,
) -> None:
    """List the paper's 45 published settings with ours beside them, or run one.

    The list has one row per setting: its study, the published Kendall's tau, p-value and anomaly
    ratio, ours where they are recorded below --runs, and how many networks it retrains; with
    --times, in about a minute, an estimate of the time here. Settings that the paper names
    without a scatter come last.

    With a NAME, its study is run as by **run** (run it again to resume) and the published values
    are shown beside ours. The study of a direction setting is run with its short retraining. With
    --scale small, the embedded digits stand in for a data set that is not at hand.

    Examples:

    - trueoracle reproduce

    - trueoracle reproduce lenet5/conv105

    - trueoracle reproduce direction/conv105 --scale small

    - trueoracle reproduce resnet56-cifar10-0.5 --scale small --surgery as-released
    """
    if name is None and chosen.changes:
        raise InputError(
            "--set and --weights change the study that is run: name a setting or a study"
        )
    how: dict[str, Any] = {"scale": arms.scale, "surgery": arms.surgery, "rule": arms.outcome}
    with (
        workers.opened(chosen.runs) as executor,
        shown_progress(quiet=output.quiet) as progress,
    ):
        how["progress"] = progress
        if name is None:
            device = machine.device if arms.times else None
            rows = doors.list_settings(chosen.runs, device=device, **how)
        else:
            how |= {"overrides": chosen.overrides, "retry_failed": retry_failed}
            how |= {"executor": executor, **asdict(machine)}
            results = doors.reproduce(name, chosen.runs, **how)
    if output.as_json:
        print_json(rows if name is None else results)
    elif not output.quiet and name is None:
        _print_rows(rows)
    elif not output.quiet:
        _print_comparison(results)
    if name is not None:
        check_failures(results["failed"])


COLUMNS = ("n", "tau", "p", "anomalies")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    ours = tuple(f"our {name}" for name in COLUMNS)
    times = ("time here",) if any(row["engine"] for row in rows) else ()
    right = (*COLUMNS, *ours, "networks", *times)
    made = table(
        "setting", "study", *COLUMNS, *ours, "scale", "networks", *times,
        right=right, drops=("n", "our n", "study", "p", "our p", "scale", *times, "networks"),
    )  # fmt: skip
    for row in rows:
        seconds = row["seconds"]
        made.add_row(
            row["setting"],
            row["study"],
            *_published_cells(row["published"]),
            *_our_cells(row["ours"], row["scale"]),
            f"{row['networks']:,}",
            *(number(None) if seconds is None else _long(seconds) for _ in times),
        )
    out().print(made)
    out().print(
        "x is the pruned train loss; for a direction, the accuracy after a tenth of the epochs (at "
        "small scale a fifth). Networks are those of the scale"
        f"{', and so are times, of retraining alone' if times else ''}. p is the textbook's on "
        "both sides, as the paper prints it; candidates overlap, so that it is too small."
    )


def _long(seconds: float) -> str:
    """Such as ``"3 h 5 min"``, and days from three on."""
    days = seconds / 86400
    return f"{days:,.0f} days" if days >= 3 else duration(seconds)


def _published_cells(values: dict[str, Any]) -> tuple[str, ...]:
    p = p_value(values["p_value"], PRINTED)
    tau, anomalies = number(values["kendall_tau"], 2), percent(values["anomaly_ratio"])
    n = number(None) if values["n"] is None else f"{values['n']:,}"
    return n, tau, p, anomalies


def _our_cells(ours: dict[str, Any] | None, scale: str) -> tuple[str, ...]:
    """The four numbers and the scale: full is only what is all there and as its file has it."""
    if ours is None:
        return (*(number(None) for _ in COLUMNS), scale)
    if scale == "small" and ours["changed"]:
        scale += ", changed"
    if ours["retrained"] < ours["to_retrain"]:
        scale = f"{ours['retrained']}/{ours['to_retrain']} of {scale}"
    tau, p = number(ours["kendall_tau"], 2), p_value(ours["kendall_p_value"])
    return f"{ours['n']:,}", tau, p, percent(ours["anomaly_ratio"]), scale


def _print_comparison(results: dict[str, Any]) -> None:
    console = out()
    console.print()
    summary = results["summary"]
    console.print(relations_table([summary]))
    for note in notes(relations_of(summary)):
        console.print(note)
    console.print()
    if results["comparisons"]:
        console.print(_comparison_table(results["comparisons"], results["scale"]))
        console.print("p: the textbook's on both sides, as the paper prints it")
    else:
        console.print("no value of this study is published that we know of")
    if summary["badge"]:
        console.print(f"{summary['badge']}: not to be read as the paper's experiment")
    if summary["retrained"] < summary["to_retrain"]:
        count = f"{summary['retrained']:,} of {summary['to_retrain']:,}"
        console.print(f"only {count} networks are retrained: not the whole study")
    console.print(f"\nrecorded in {summary['folder']}")
    figures = command_line("report", summary["folder"])
    console.print(f"the figures: {figures}", soft_wrap=True)


def _comparison_table(comparisons: list[dict[str, Any]], scale: str) -> FittedTable:
    made = table("setting", "whose", "x", *COLUMNS, "scale", right=COLUMNS, drops=["n", "p"])
    for one in comparisons:
        made.add_row(one["setting"], "published", one["x"], *_published_cells(one["published"]), "")
        surgery = f"ours, {one['ours']['surgery']}" if one["ours"] else "ours"
        made.add_row(one["setting"], surgery, one["x"], *_our_cells(one["ours"], scale))
    return made
