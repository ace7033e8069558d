"""``trueoracle analyse``: the statistics of a study for tables of a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trueoracle.analysis import several
from trueoracle.analysis.numbers import interval, many, number, p_value, percent
from trueoracle.analysis.permutation import how_permuted
from trueoracle.analysis.several import OwnAnalysis
from trueoracle.cli.console import guarded, out, print_json, text_table
from trueoracle.cli.options import Debug, Json, check_figure
from trueoracle.cli.tables import LEAST, notes
from trueoracle.figures.scatter import save_figure
from trueoracle.report.drawings import analysis_figure
from trueoracle.report.table import brief_table
from trueoracle.report.words import kinds_in_words


@dataclass(frozen=True)
class Columns:
    """Options that say what the columns and rows of the tables are."""

    higher_is_better: Annotated[
        bool | None,
        typer.Option(
            "--higher-is-better/--lower-is-better",
            help="Whether a higher outcome is better (an accuracy) or a lower one (a loss) "
            "[default: higher, but of columns named as a study's losses are].",
        ),
    ] = None
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive", help="The rows are all ways to prune, not a sample of candidates."
        ),
    ] = False
    candidate: Annotated[
        str | None,
        typer.Option(
            help="Column naming candidates, where there is one row per seed [default: found]."
        ),
    ] = None
    seed: Annotated[
        str | None,
        typer.Option(
            help="Column of retraining seeds, where there is one row per seed [default: found]."
        ),
    ] = None
    network: Annotated[str | None, typer.Option(help="Column telling dense networks apart.")] = None
    kind: Annotated[
        str | None,
        typer.Option(help="Column of kinds of pruning, each of which is looked at by itself."),
    ] = None
    pruned: Annotated[
        str | None,
        typer.Option(help="Column of pruned filters ('0 3 7'): allow for other filters."),
    ] = None


@guarded
def analyse(
    points: Annotated[
        list[Path],
        typer.Argument(
            help="CSV (of any dialect) or Parquet tables with a header; several: one per study."
        ),
    ],
    x: Annotated[
        list[str],
        typer.Option("--x", help="Column of scores before retraining; low = prune. Repeatable."),
    ],
    y: Annotated[
        list[str],
        typer.Option(
            "--y", help="Column of outcomes after retraining; repeated: one column per seed."
        ),
    ],
    columns: Columns,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Also draw, to a .png, .svg or .pdf: a scatter, of several studies a forest."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply the statistics of a study to tables of your own.

    Rows whose x or y is missing are left out and counted; an infinite y is of a network that
    diverged, and counts as the worst. Nothing is certain without --pruned: other filters would give
    another tau, and by nothing else are they allowed for. Say --lower-is-better where --y is a loss
    or an error: a name does not say it, but for those of a study's own columns (test_loss).

    Examples:

    - trueoracle analyse points.csv --x pruned_loss --y accuracy

    - trueoracle analyse points.csv --x l1 --x taylor --y seed0 --y seed1 --y seed2

    - trueoracle analyse points.csv --x l1 --y accuracy --candidate id --seed seed

    - trueoracle analyse points.csv --x l1 --y accuracy --exhaustive --pruned filters

    - trueoracle analyse conv1.csv conv2.csv conv3.csv --x x --y y --figure forest.png
    """
    check_figure(figure)
    found = several.analyse(points, x, y, **asdict(columns))
    if figure is not None:
        save_figure(analysis_figure(found), figure.with_suffix(""), [figure.suffix[1:]])
    if as_json:
        print_json(found.as_dict())
        return
    _print_relations(found)
    for line in (*_lines_of_each(found), *_lines_over_all(found)):
        out().print(line)


def _print_relations(found: OwnAnalysis) -> None:
    better, perfect = ("higher", -1) if found.higher_is_better else ("lower", 1)
    out().print(f"{better} {found.outcome} is better; a perfect score has tau {perfect}\n")
    rows = [
        (
            ({"study": label} if len(found.tables) > 1 else {}) | {"score": one.criterion},
            one.as_dict(),
        )
        for label, one in found.each()
    ]
    out().print(text_table(brief_table(rows), LEAST))


def _lines_of_each(found: OwnAnalysis) -> Iterator[str]:
    """What the columns mean, and what is to be said of each study."""
    yield from notes([{"criterion": one.criterion, **one.as_dict()} for _, one in found.each()])
    if any(table.pruned is not None for table in found.tables.values()):
        for label, table in found.tables.items():
            if how := how_permuted(table):
                yield f"{_where(label)}{how}"
    for label, one in found.each():
        if one.relation.dropped:
            yield (
                f"{_where(label)}{one.relation.dropped} rows without a finite {one.criterion} and "
                f"{found.outcome} are left out"
            )
        if one.relation.diverged:
            yield f"{_where(label)}{one.relation.diverged} diverged, and count as the worst"
    if len(found.tables) == 1:
        yield from (found.verdict(one) for _, one in found.each())
    for label, compared in found.comparisons.items():
        yield from _compared(_where(label), compared)


def _where(label: str) -> str:
    return f"{label}: " if label else ""


def _compared(where: str, compared: dict[str, Any]) -> Iterator[str]:
    """How the criteria of one study compare."""
    for one in compared["differences"]:
        text = f"{where}{one['first']} against {one['second']}: {number(one['difference'], 2)}"
        if one["p_value"] is not None:
            ends = interval(one["low"], one["high"])
            text += f" {ends}, Holm's p {p_value(one['adjusted_p_value'])}"
        yield f"{text} in agreement"
    over = dict.fromkeys(one["over"] for one in compared["differences"] if one["over"])
    for words in over:
        yield f"differences: over {words}"
    if (made := compared["combination"]) is not None:
        yield (
            f"{where}all together, cross-validated: agreement {number(made['agreement'], 2)}, the "
            f"best single one {number(made['single_agreement'], 2)}"
        )
    if (sums := compared["additive"]) is not None:
        yield (
            f"{where}a sum of one number per filter, fitted to other candidates' outcomes on "
            f"{'other' if sums['other_examples'] else 'the same'} examples: agreement "
            f"{number(sums['agreement'], 2)}"
        )


def _lines_over_all(found: OwnAnalysis) -> Iterator[str]:
    """Each criterion's mean tau over several studies."""
    if len(found.kinds) > 1:
        yield kinds_in_words(found.kinds)
    for entry in found.pooled:
        ends = interval(entry["kendall_low"], entry["kendall_high"])
        yield (
            f"{entry['criterion']}: mean tau {number(entry['kendall_tau'], 2)} {ends} "
            f"over {many(entry['networks'], 'dense network')}, of size "
            f"{number(entry['at_most'], 2)} at most with 95%"
            + (f" (over {entry['interval_over']})" if entry["interval_over"] else "")
        )
    for entry in found.meta:
        text = (
            f"{entry['criterion']}: tau {number(entry['tau'], 2)} "
            f"{interval(entry['low'], entry['high'])} over "
            f"{_studies(entry)} (random effects; I² {percent(entry['i2'])}, "
            f"p of no difference {p_value(entry['p_value'])})"
        )
        if entry["prediction_low"] is not None:
            low, high = (number(entry[f"prediction_{end}"], 2) for end in ("low", "high"))
            text += f"; one more like these: {low} … {high}"
        yield text
    if found.meta and not found.networks:
        yield (
            "each study is taken for one of another dense network: where they are of the same, "
            "name the column that says so with --network"
        )


def _studies(entry: dict[str, Any]) -> str:
    """The studies of a mean, and the dense networks that they are of."""
    studies = many(len(entry["studies"]), "study", "studies")
    if entry["clusters"] == len(entry["studies"]):
        return studies
    of = many(entry["clusters"], "dense network")
    return f"{studies} of {of}" + (
        ", which say nothing of another" if entry["clusters"] == 1 else ""
    )
