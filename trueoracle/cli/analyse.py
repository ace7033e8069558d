"""``trueoracle analyse``: the same statistics for anybody's own tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueoracle.analysis.numbers import number, p_value, percent
from trueoracle.cli.console import Debug, Json, guarded, out, print_json, text_table
from trueoracle.cli.tables import notes
from trueoracle.report.table import brief_table

if TYPE_CHECKING:
    from trueoracle.analysis.assessment import Assessment
    from trueoracle.analysis.table import CandidateTable


APART = (
    "Each kind of pruning is by itself: one kind ends better than another whatever a score says, "
    "so that pooling them would make a correlation out of nothing."
)


@guarded
def analyse(
    points: Annotated[
        list[Path], typer.Argument(help="CSV files with a header; several: one per study.")
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
    higher_is_better: Annotated[
        bool | None,
        typer.Option(
            "--higher-is-better/--lower-is-better",
            help="Whether a higher outcome is better (an accuracy) or a lower one (a loss) "
            "[default: higher, but of columns named as a study's losses are].",
        ),
    ] = None,
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive", help="The rows are all ways to prune, not a sample of candidates."
        ),
    ] = False,
    candidate: Annotated[
        str | None, typer.Option(help="Column naming candidates, where there is one row per seed.")
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(help="Column of retraining seeds, where there is one row per seed."),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Column telling dense networks apart.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Column of kinds of pruning, of which each is looked at by itself."),
    ] = None,
    pruned: Annotated[
        str | None,
        typer.Option(help="Column of pruned filters ('0 3 7'): permute labels (--exhaustive)."),
    ] = None,
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

    Rows whose x or y is missing are left out and counted. Say --lower-is-better where --y is a loss
    or an error: a name does not say it, but for those of a study's own columns (test_loss).

    Examples:

    - trueoracle analyse points.csv --x pruned_loss --y accuracy

    - trueoracle analyse points.csv --x l1 --x taylor --y seed0 --y seed1 --y seed2

    - trueoracle analyse points.csv --x l1 --y accuracy --candidate id --seed seed

    - trueoracle analyse points.csv --x l1 --y accuracy --exhaustive --pruned filters

    - trueoracle analyse conv1.csv conv2.csv conv3.csv --x x --y y --figure forest.png
    """
    from trueoracle.analysis.own import read_tables
    from trueoracle.errors import InputError
    from trueoracle.figures.scatter import FORMATS

    if figure is not None and figure.suffix[1:] not in FORMATS:
        raise InputError(f"--figure takes a .png, .svg or .pdf, got {figure}")
    if len(set(points)) < len(points):
        raise InputError("a file is named twice")
    stems = [path.stem for path in points]
    names = {p: p.stem if stems.count(p.stem) == 1 else str(p) for p in points}
    if len(points) == 1:
        names = {points[0]: ""}
    higher = _higher_is_better(y) if higher_is_better is None else higher_is_better
    studies: dict[str, CandidateTable] = {}
    for path in points:
        read = read_tables(
            path,
            x,
            y,
            higher_is_better=higher,
            exhaustive=exhaustive,
            candidate=candidate,
            seed=seed,
            network=network,
            kind=kind,
            pruned=pruned,
        )
        for label, one in read.items():
            studies[" ".join(filter(None, (names[path], label)))] = one
    outcome = y[0] if len(y) == 1 else f"{y[0]} … {y[-1]}"
    found = {
        label: _assess(one, label or str(points[0]), outcome) for label, one in studies.items()
    }
    pooled = (
        _pooled(list(studies.values()))
        if network is not None and kind is None and len(points) == 1
        else []
    )
    meta = _meta(found) if kind is None else []
    if figure is not None:
        _draw(figure, studies, found, meta, x, outcome)
    if as_json:
        entries = [
            {"study": label, "x": one.criterion, "y": outcome, **one.as_dict()}
            | {"verdict": _verdict(one, outcome)}
            for label, assessments in found.items()
            for one in assessments
        ]
        if len(entries) == 1:
            print_json(entries[0])
            return
        print_json(
            {
                "studies": entries,
                "comparison": {
                    label: _compared(one) for label, one in studies.items() if len(x) > 1
                },
                "pooled": pooled,
                "meta": meta,
            }
        )
        return
    _print(
        studies,
        found,
        pooled,
        meta,
        outcome,
        higher_is_better=higher,
        wants_permutation=pruned is not None,
    )
    if kind is not None and len(found) > 1:
        out().print(APART, soft_wrap=True)


def _higher_is_better(y: list[str]) -> bool:
    """The direction that the columns of a study have; of any other column, higher is better."""
    from trueoracle.tasks.metric import CLASSIFICATION, SPLITS

    known = {
        name: metric.higher_is_better
        for metric in CLASSIFICATION
        for name in (metric.name, *(f"{split}_{metric.name}" for split in SPLITS))
    }
    return all(known.get(name, True) for name in y)


def _assess(one: CandidateTable, where: str, outcome: str) -> list[Assessment]:
    from trueoracle.analysis.assessment import assess
    from trueoracle.errors import InputError

    found = assess(one)
    if not found:
        raise InputError(f"{where}: no row has both a finite score and a finite {outcome}")
    return found


def _compared(one: CandidateTable) -> dict[str, Any]:
    from trueoracle.analysis.comparison import compare

    return compare(one)


def _pooled(tables: list[CandidateTable]) -> list[dict[str, Any]]:
    from trueoracle.analysis.assessment import pool

    return [one.as_dict() for one in pool(tables)] if len(tables) > 1 else []


def _meta(found: dict[str, list[Assessment]]) -> list[dict[str, Any]]:
    """The random-effects mean of each criterion's tau over the studies."""
    from trueoracle.analysis.meta import Effect, effect, meta_analysis

    effects: dict[str, list[Effect]] = {}
    for label, assessments in found.items():
        for one in assessments:
            relation = one.relation
            made = effect(
                label, relation.kendall.value, relation.n, one.standard_error, one.interval
            )
            if made is not None:
                effects.setdefault(one.criterion, []).append(made)
    return [
        {"criterion": criterion, **meta_analysis(several).as_dict()}
        for criterion, several in effects.items()
        if len(several) > 1
    ]


def _verdict(one: Assessment, outcome: str) -> str:
    return one.sentence(f"the score {one.criterion}", f"the outcome {outcome}")


def _draw(
    figure: Path,
    studies: dict[str, CandidateTable],
    found: dict[str, list[Assessment]],
    meta: list[dict[str, Any]],
    x: list[str],
    outcome: str,
) -> None:
    from trueoracle.figures.scatter import draw_scatter, save_figure, scatter_data

    if meta:
        from trueoracle.report.drawings import forest_figure

        first = meta[0]
        what = f"{len(first['studies'])} studies"
        made = forest_figure(first, score=first["criterion"], outcome=outcome, title=what)
    else:
        one = next(iter(studies.values()))
        made = draw_scatter(
            scatter_data(
                one.scores[x[0]],
                one.outcome,
                higher_is_better=one.higher_is_better,
                x_label=x[0],
                y_label=outcome,
            )
        )
    save_figure(made, figure.with_suffix(""), [figure.suffix[1:]])


def _print(
    studies: dict[str, CandidateTable],
    found: dict[str, list[Assessment]],
    pooled: list[dict[str, Any]],
    meta: list[dict[str, Any]],
    outcome: str,
    *,
    higher_is_better: bool,
    wants_permutation: bool,
) -> None:
    better = "higher" if higher_is_better else "lower"
    out().print(
        f"{better} {outcome} is better; a perfect score has tau {-1 if higher_is_better else 1}\n"
    )
    several = len(found) > 1
    out().print(
        text_table(
            brief_table(
                [
                    (
                        ({"study": label} if several else {}) | {"score": one.criterion},
                        one.as_dict(),
                    )
                    for label, assessments in found.items()
                    for one in assessments
                ]
            )
        )
    )
    from trueoracle.analysis.permutation import why_not_permuted

    entries = [
        {"criterion": one.criterion, **one.as_dict()}
        for several in found.values()
        for one in several
    ]
    for note in notes(entries):
        out().print(note, soft_wrap=True)
    if wants_permutation and any(one.pruned is not None for one in studies.values()):
        for label, one_table in studies.items():
            if reason := why_not_permuted(one_table):
                out().print(f"{label + ': ' if label else ''}labels are not permuted: {reason}")
    for label, assessments in found.items():
        for one in assessments:
            if one.relation.dropped:
                where = f"{label}: " if label else ""
                out().print(
                    f"{where}{one.relation.dropped} rows without a finite {one.criterion} and "
                    f"{outcome} are left out"
                )
    if not several:
        for one in next(iter(found.values())):
            out().print(_verdict(one, outcome))
    for label, one_table in studies.items():
        if len(one_table.scores) > 1:
            over = found[label][0].interval_over
            _print_comparison(label, _compared(one_table), over)
    for entry in pooled:
        low, high = number(entry["kendall_low"], 2), number(entry["kendall_high"], 2)
        out().print(
            f"{entry['criterion']}: mean tau {number(entry['kendall_tau'], 2)} [{low}, {high}] "
            f"over {entry['interval_over']}"
        )
    for entry in meta:
        low, high = number(entry["low"], 2), number(entry["high"], 2)
        text = (
            f"{entry['criterion']}: tau {number(entry['tau'], 2)} [{low}, {high}] over "
            f"{len(entry['studies'])} studies (random effects; I² {percent(entry['i2'])}, "
            f"p of no difference {p_value(entry['p_value'])})"
        )
        if entry["prediction_low"] is not None:
            ends = (number(entry[f"prediction_{end}"], 2) for end in ("low", "high"))
            text += f"; one more like these: {' … '.join(ends)}"
        out().print(text)
    if meta:
        out().print(
            "random effects take the studies for independent: of one dense network, or of the "
            "same examples, they are not, and the intervals are too narrow"
        )


def _print_comparison(label: str, compared: dict[str, Any], over: str) -> None:
    where = f"{label}: " if label else ""
    for one in compared["differences"]:
        text = f"{where}{one['first']} against {one['second']}: {number(one['difference'], 2)}"
        if one["p_value"] is not None:
            low, high = number(one["low"], 2), number(one["high"], 2)
            text += f" [{low}, {high}], Holm's p {p_value(one['adjusted_p_value'])}"
        out().print(f"{text} in agreement")
    if any(one["p_value"] is not None for one in compared["differences"]):
        out().print(
            f"differences: over {over}; with other filters they can vanish though p is small",
            soft_wrap=True,
        )
    made = compared["combination"]
    if made is not None:
        out().print(
            f"{where}all together, cross-validated: agreement {number(made['agreement'], 2)}, the "
            f"best single one {number(made['single_agreement'], 2)}"
        )
    sums = compared["additive"]
    if sums is not None:
        out().print(
            f"{where}a sum of one number per filter, fitted to other candidates' outcomes on the "
            f"same examples: agreement {number(sums['agreement'], 2)}"
        )
