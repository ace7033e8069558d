"""``trueoracle bench``: a criterion against networks whose every pruning has been retrained."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueoracle.analysis.numbers import finite_or_none, interval, many, number, percent
from trueoracle.cli.console import (
    Debug,
    Json,
    Quiet,
    guarded,
    out,
    print_json,
    shown_progress,
    table,
)

if TYPE_CHECKING:
    from trueoracle.bench.leaderboard import Place, Taus
    from trueoracle.bench.table import Bench, Setting

METRICS = ("test_loss", "test_accuracy")


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
    settings: Annotated[
        bool, typer.Option("--settings", help="Also one row a layer and ratio.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Test a criterion against networks whose every pruning has been retrained.

    The package holds what became of every way to prune a layer of LeNet5-Mini on 5,000 digits, at
    every ratio, so that nothing needs to be trained: the criterion scores the candidates, and its
    place among the shipped ones is looked up. Without a criterion: the places of the shipped ones.

    *tau* is the mean over layers and ratios, its sign turned so that +1 is perfect. Its interval is
    over retraining seeds, given these dense networks, their filters and these test images; it does
    not say whether a criterion differs from chance. *of ceiling* is the share of what retraining
    noise leaves to any criterion on these images. *regret* is what the best candidate has over the
    chosen one, beside that of a random choice. Below each table stands what a sum of one number
    per filter reaches, fitted to other candidates' outcomes on the same images.

    Examples:

    - trueoracle bench my_criterion.py

    - trueoracle bench taylor --layer conv2 --ratio 0.5

    - trueoracle bench my_criterion.py:score --json > place.json
    """
    from trueoracle.bench.leaderboard import additive_agreement, leaderboard
    from trueoracle.bench.table import read_bench
    from trueoracle.errors import InputError

    if settings and criterion is None:
        raise InputError("--settings tells of one criterion: name it")
    shipped = read_bench()
    chosen = _chosen(shipped, layer, ratio, network)
    name, whole = None, shipped
    if criterion is not None:
        name, whole = _with_own(shipped, criterion, chosen, quiet=quiet)
    known: Taus = {}
    found = {metric: leaderboard(whole, metric, chosen, known) for metric in METRICS}
    parts = _parts(chosen)
    places_in = {
        metric: {one: leaderboard(whole, metric, some, known) for one, some in parts.items()}
        for metric in METRICS
    }
    sums = {metric: additive_agreement(whole, metric, chosen) for metric in METRICS}
    if as_json:
        print_json(
            {
                "criterion": name,
                "table": whole.card,
                "places": {m: [p.as_dict() for p in places] for m, places in found.items()},
                "parts": {
                    metric: {one: [p.as_dict() for p in ps] for one, ps in by_part.items()}
                    for metric, by_part in places_in.items()
                },
                "additive": finite_or_none(sums),
                "settings": _settings(whole, chosen, name) if settings else None,
            }
        )
        return
    if quiet:
        return
    _print(whole, found, places_in, sums, name, chosen)
    if settings and name is not None:
        _print_settings(whole, chosen, name)


def _chosen(
    shipped: Bench, layer: str | None, ratio: float | None, network: int | None
) -> list[Setting]:
    from trueoracle.errors import InputError, unknown

    for what, given, known in (
        ("layer of the table", layer, {one.layer for one in shipped.settings}),
        ("ratio of the table", ratio, {one.ratio for one in shipped.settings}),
        ("dense network of the table", network, {one.network for one in shipped.settings}),
    ):
        if given is not None and given not in known:
            raise unknown(what, str(given), sorted(map(str, known)))
    chosen = [
        one
        for one in shipped.settings
        if (layer is None or one.layer == layer)
        and (ratio is None or one.ratio == ratio)
        and (network is None or one.network == network)
    ]
    if not chosen:
        raise InputError("the table holds no network of that layer, ratio and seed together")
    return chosen


def _parts(settings: list[Setting]) -> dict[str, list[Setting]]:
    """The settings of each layer, and of each dense network where there are several."""
    layers = dict.fromkeys(one.layer for one in settings)
    parts = {layer: [one for one in settings if one.layer == layer] for layer in layers}
    networks = dict.fromkeys(one.network for one in settings)
    if len(networks) > 1:
        parts |= {f"dense {n}": [one for one in settings if one.network == n] for n in networks}
    return parts


def _with_own(
    shipped: Bench, reference: str, settings: list[Setting], *, quiet: bool
) -> tuple[str, Bench]:
    """The table with the criterion's scores in it, and what it is called there."""
    from dataclasses import replace

    from trueoracle.bench.scoring import score_bench
    from trueoracle.criteria.files import load_criterion

    made = load_criterion(reference)
    if made.is_shipped and made.name in shipped.scores:
        return made.name, shipped
    name = f"{made.name} (yours)" if made.name in shipped.scores else made.name
    with shown_progress(quiet=quiet) as progress:
        scores = score_bench(made, shipped, progress, settings)
    return name, replace(shipped, scores={**shipped.scores, name: scores})


def _print(
    whole: Bench,
    found: dict[str, list[Place]],
    places_in: dict[str, dict[str, list[Place]]],
    sums: dict[str, float],
    name: str | None,
    settings: list[Setting],
) -> None:
    console = out()
    retrained = sum(len(one.rows) for one in settings) * int(whole.card["seeds"])
    dense = many(len({one.network for one in settings}), "dense network")
    console.print(
        f"{many(len(settings), 'setting')}, {retrained:,} retrained networks of "
        f"{whole.card['network']} ({dense}) on {whole.card['data']}\n"
    )
    parts = list(places_in[METRICS[0]])
    for metric, places in found.items():
        names = ("rank", "tau", "95%", "of ceiling", *parts, "regret")
        made = table("criterion", *names, right=names)
        first = places[0]
        # Above the table, since a title would be broken at the table's width.
        console.print(
            f"{metric.replace('_', ' ')}: ceiling of retraining noise {number(first.ceiling, 2)}, "
            f"regret of a random choice {number(first.random_regret, 4)}"
        )
        by_part = {
            one: {place.criterion: place for place in places_in[metric][one]} for one in parts
        }
        for place in places:
            shown = place.as_dict()
            made.add_row(
                place.criterion,
                "–" if place.rank is None else str(place.rank),
                number(shown["agreement"], 2),
                interval(shown["low"], shown["high"]),
                percent(shown["share_of_ceiling"]),
                *(number(by_part[o][place.criterion].as_dict()["agreement"], 2) for o in parts),
                number(shown["regret"], 4),
                style="bold" if place.criterion == name else None,
            )
        console.print(made)
        if isfinite(sums[metric]):
            console.print(
                f"a sum of one number per filter, fitted to other candidates' outcomes on the same "
                f"images: tau {number(sums[metric], 2)}"
            )
        if first.interval_over:
            console.print(f"95%: over {first.interval_over}")
        console.print()
    console.print(
        "This does not show that a criterion differs from chance, nor what it does on other "
        "images: other filters and\nother images change tau by more than other seeds do "
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
            f"{name}: number {place.rank} of {place.of} against {metric.replace('_', ' ')}, tau "
            f"{number(place.agreement, 2)} of {number(place.ceiling, 2)} that retraining noise "
            f"allows on these images"
        )


def _settings(whole: Bench, settings: list[Setting], name: str | None) -> list[dict[str, Any]]:
    """All statistics of one criterion (or all) in every setting."""
    from dataclasses import replace

    from trueoracle.analysis.assessment import assess

    entries = []
    for setting in settings:
        for metric in METRICS:
            one = whole.table(setting, metric)
            if name is not None:
                one = replace(one, scores={name: one.scores[name]})
            entries += [
                {
                    "network": setting.network,
                    "layer": setting.layer,
                    "ratio": setting.ratio,
                    "criterion": assessment.criterion,
                    "metric": metric,
                    **assessment.as_dict(),
                }
                for assessment in assess(one)
            ]
    return entries


def _print_settings(whole: Bench, settings: list[Setting], name: str) -> None:
    from trueoracle.cli.tables import NUMBERS, notes, relation_cells

    entries = _settings(whole, settings, name)
    made = table("network", "layer", "ratio", "outcome", *NUMBERS, right=NUMBERS)
    for entry in entries:
        made.add_row(
            str(entry["network"]),
            entry["layer"],
            f"{entry['ratio']:g}",
            entry["metric"].replace("_", " "),
            *relation_cells(entry),
        )
    out().print(made)
    for note in notes(entries):
        out().print(note, soft_wrap=True)
