"""``trueoracle bench``: a criterion against networks whose every pruning has been retrained."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueoracle.analysis.numbers import ABSENT, finite_or_none, interval, many, number, percent
from trueoracle.cli.console import (
    Debug,
    Json,
    Quiet,
    guarded,
    out,
    print_json,
    shown_progress,
    text_table,
)
from trueoracle.report.table import Column, brief_table, number_cell, text_table_of

if TYPE_CHECKING:
    from trueoracle.bench.leaderboard import Place, Taus
    from trueoracle.bench.table import Bench, BenchStudy
    from trueoracle.report.table import TextTable


@guarded
def bench(
    criterion: Annotated[
        str | None,
        typer.Argument(help="A file.py (or file.py:NAME), a registered name, or module:attribute."),
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Only this layer, such as conv2.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Only this pruning ratio.")] = None,
    network: Annotated[
        int | None, typer.Option(help="Only the dense network of this seed.")
    ] = None,
    studies: Annotated[
        bool, typer.Option("--studies", help="Also one row per layer and ratio.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Test a criterion against networks whose every pruning has been retrained.

    The package holds what became of every way to prune a layer of LeNet5-Mini on 5,000 digits, at
    every ratio, so that nothing needs to be trained: the criterion scores the candidates, and its
    place among the shipped ones is looked up. Without a criterion: the places of the shipped ones.

    *agreement* is the mean of tau over layers and ratios, its sign turned so that +1 is perfect.
    Its interval is over retraining seeds, given these dense networks, their filters and these test
    examples; it does not say whether a criterion differs from chance. *of ceiling* is the share of
    what retraining noise leaves to any criterion on these examples. *regret* is how much better the
    best candidate is than the chosen one, beside that of a random choice. Below each table stands
    what a sum of one number per filter reaches, fitted to other candidates' outcomes on the same
    examples.

    Examples:

    - trueoracle bench my_criterion.py

    - trueoracle bench taylor --layer conv2 --ratio 0.5

    - trueoracle bench my_criterion.py:score --json > place.json
    """
    from trueoracle.bench.leaderboard import additive_agreement, leaderboard
    from trueoracle.bench.table import read_bench
    from trueoracle.errors import InputError

    if studies and criterion is None:
        raise InputError("--studies is about one criterion: name it")
    shipped = read_bench()
    chosen = _chosen(shipped, layer, ratio, network)
    name, whole = None, shipped
    if criterion is not None:
        name, whole = _with_own(shipped, criterion, chosen, quiet=quiet)
    known: Taus = {}
    found = {metric: leaderboard(whole, metric, chosen, known) for metric in _columns()}
    parts = _parts(chosen)
    places_in = {
        metric: {one: leaderboard(whole, metric, some, known) for one, some in parts.items()}
        for metric in _columns()
    }
    sums = {metric: additive_agreement(whole, metric, chosen) for metric in _columns()}
    if as_json:
        print_json(
            {
                "criterion": name,
                "card": whole.card,
                "places": {m: [p.as_dict() for p in places] for m, places in found.items()},
                "parts": {
                    metric: {one: [p.as_dict() for p in ps] for one, ps in by_part.items()}
                    for metric, by_part in places_in.items()
                },
                "additive": finite_or_none(sums),
                "studies": _studies(whole, chosen, name) if studies else None,
            }
        )
        return
    if quiet:
        return
    _print(whole, found, places_in, sums, name, chosen)
    if studies and name is not None:
        _print_studies(whole, chosen, name)


def _columns() -> list[str]:
    """The outcomes that criteria are held against, the loss first."""
    from trueoracle.analysis.outcomes import default_outcomes
    from trueoracle.bench.table import METRICS

    return list(reversed(default_outcomes(METRICS)))


def _label(column: str) -> str:
    from trueoracle.analysis.outcomes import find_outcome
    from trueoracle.bench.table import METRICS

    return find_outcome(METRICS, column).label


def _chosen(
    shipped: Bench, layer: str | None, ratio: float | None, network: int | None
) -> list[BenchStudy]:
    from trueoracle.errors import InputError, unknown

    for what, given, known in (
        ("layer of the bench", layer, {one.layer for one in shipped.studies}),
        ("ratio of the bench", ratio, {one.ratio for one in shipped.studies}),
        ("dense network of the bench", network, {one.network for one in shipped.studies}),
    ):
        if given is not None and given not in known:
            raise unknown(what, str(given), sorted(map(str, known)))
    chosen = [
        one
        for one in shipped.studies
        if (layer is None or one.layer == layer)
        and (ratio is None or one.ratio == ratio)
        and (network is None or one.network == network)
    ]
    if not chosen:
        raise InputError("the bench holds no network of that layer, ratio and seed together")
    return chosen


def _parts(studies: list[BenchStudy]) -> dict[str, list[BenchStudy]]:
    """The studies of each layer, and of each dense network where there are several."""
    layers = dict.fromkeys(one.layer for one in studies)
    parts = {layer: [one for one in studies if one.layer == layer] for layer in layers}
    networks = dict.fromkeys(one.network for one in studies)
    if len(networks) > 1:
        parts |= {f"dense {n}": [one for one in studies if one.network == n] for n in networks}
    return parts


def _with_own(
    shipped: Bench, reference: str, studies: list[BenchStudy], *, quiet: bool
) -> tuple[str, Bench]:
    """The bench with the criterion's scores in it, and what it is called there."""
    from dataclasses import replace

    from trueoracle.bench.scoring import score_bench
    from trueoracle.criteria.files import load_criterion

    made = load_criterion(reference)
    if made.is_shipped and made.name in shipped.scores:
        return made.name, shipped
    name = f"{made.name} (yours)" if made.name in shipped.scores else made.name
    with shown_progress(quiet=quiet) as progress:
        scores = score_bench(made, shipped, progress, studies)
    return name, replace(shipped, scores={**shipped.scores, name: scores})


def _print(
    whole: Bench,
    found: dict[str, list[Place]],
    places_in: dict[str, dict[str, list[Place]]],
    sums: dict[str, float],
    name: str | None,
    studies: list[BenchStudy],
) -> None:
    console = out()
    retrained = sum(len(one.rows) for one in studies) * int(whole.card["seeds"])
    dense = many(len({one.network for one in studies}), "dense network")
    console.print(
        f"{many(len(studies), 'study', 'studies')}, {retrained:,} retrained networks of "
        f"{whole.card['network']} ({dense}) on {whole.card['data']}\n"
    )
    for metric, places in found.items():
        first = places[0]
        # Above the table, since a title would be broken at the table's width.
        console.print(
            f"{_label(metric)}: ceiling of retraining noise {number(first.ceiling, 2)}, "
            f"regret of a random choice {number(first.random_regret, 4)}"
        )
        console.print(text_table(_places_table(places, places_in[metric], name)))
        if isfinite(sums[metric]):
            console.print(
                f"a sum of one number per filter, fitted to other candidates' outcomes on the same "
                f"examples: agreement {number(sums[metric], 2)}"
            )
        if first.interval_over:
            console.print(f"95%: over {first.interval_over}")
        console.print()
    console.print(
        "This does not show that a criterion differs from chance, nor what it does on other "
        "examples: other filters and\nother examples change tau by more than other seeds do "
        "(docs/bench.md)."
    )
    if name is None:
        return
    for metric, places in found.items():
        place = next(one for one in places if one.criterion == name)
        if place.rank is None:
            console.print(
                f"{name} has no place: it gives a finite score to {percent(place.coverage)} of the "
                "candidates, and a place is among criteria that score all of them"
            )
            return
        console.print(
            f"{name}: number {place.rank} of {place.of} against {_label(metric)}, agreement "
            f"{number(place.agreement, 2)} of {number(place.ceiling, 2)} that retraining noise "
            f"allows on these examples"
        )


def _places_table(
    places: list[Place], by_part: dict[str, list[Place]], name: str | None
) -> TextTable:
    """One row per criterion; ``name`` is the one that stands out."""
    entries = []
    for place in places:
        own = {
            f"part {part}": next(p for p in some if p.criterion == place.criterion)
            for part, some in by_part.items()
        }
        agreements = {part: one.as_dict()["agreement"] for part, one in own.items()}
        entries.append(place.as_dict() | agreements)
    columns = (
        Column("rank", "", lambda p: ABSENT if p["rank"] is None else str(p["rank"])),
        Column("agreement", "", lambda p: number(p["agreement"], 2)),
        Column("95%", "", lambda p: interval(p["low"], p["high"])),
        Column("of ceiling", "", lambda p: percent(p["share_of_ceiling"])),
        *(Column(part, "", number_cell(f"part {part}", 2)) for part in by_part),
        Column("regret", "", lambda p: number(p["regret"], 4)),
    )
    criterion = Column("criterion", "", lambda p: str(p["criterion"]))
    marked = [row for row, place in enumerate(places) if place.criterion == name]
    return text_table_of((), (criterion,), columns, entries, marked=marked, keep_empty=True)


def _studies(whole: Bench, studies: list[BenchStudy], name: str | None) -> list[dict[str, Any]]:
    """All statistics of one criterion (or of all) in every study."""
    from dataclasses import replace

    from trueoracle.analysis.assessment import assess

    entries = []
    for study in studies:
        for metric in _columns():
            one = whole.table(study, metric)
            if name is not None:
                one = replace(one, scores={name: one.scores[name]})
            entries += [
                {
                    "network": study.network,
                    "layer": study.layer,
                    "ratio": study.ratio,
                    "criterion": assessment.criterion,
                    "metric": metric,
                    **assessment.as_dict(),
                }
                for assessment in assess(one)
            ]
    return entries


def _print_studies(whole: Bench, studies: list[BenchStudy], name: str) -> None:
    from trueoracle.cli.tables import notes

    entries = _studies(whole, studies, name)
    made = brief_table(
        [
            (
                {
                    "network": str(entry["network"]),
                    "layer": entry["layer"],
                    "ratio": f"{entry['ratio']:g}",
                    "outcome": _label(entry["metric"]),
                },
                entry,
            )
            for entry in entries
        ]
    )
    out().print(text_table(made))
    for note in notes(entries):
        out().print(note, soft_wrap=True)
