"""``trueoracle bench``: a criterion against networks whose every pruning has been retrained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import isfinite
from typing import Annotated, Any

import typer

from trueoracle.analysis.numbers import ABSENT, interval, many, number, p_value, percent
from trueoracle.bench.findings import COMPARED, QUESTIONS, Finding, findings
from trueoracle.bench.leaderboard import Place
from trueoracle.bench.places import (
    COLUMNS,
    Places,
    all_statistics,
    choose_studies,
    hold,
    label_of,
)
from trueoracle.bench.table import Bench, BenchStudy, read_bench
from trueoracle.cli import completion, doors
from trueoracle.cli.console import guarded, out, print_json, shown_progress, text_table
from trueoracle.cli.options import Debug, Json, Quiet
from trueoracle.cli.tables import notes
from trueoracle.errors import InputError
from trueoracle.report.table import Column, TextTable, brief_table, number_cell, text_table_of


@guarded
def bench(
    criterion: Annotated[
        str | None,
        typer.Argument(
            help="A file.py (or file.py:NAME), a registered name, or module:attribute.",
            autocompletion=completion.criteria,
        ),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Only this family of networks, such as glyphs-62.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Only this layer, such as conv2.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Only this pruning ratio.")] = None,
    network: Annotated[int | None, typer.Option(help="Only dense networks of this seed.")] = None,
    studies: Annotated[
        bool, typer.Option("--studies", help="Also one row per layer and ratio.")
    ] = False,
    about: Annotated[
        bool,
        typer.Option("--findings", help="Instead: what the bench says of pruning (a minute)."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Test a criterion against pruned networks that have been retrained once and for all.

    The package holds what became of pruned networks of several families (docs/bench.md), so that
    nothing needs to be trained: the criterion scores the candidates, and its place among the
    shipped criteria is looked up. Without a criterion: the places of the shipped ones.

    *agreement* is the mean of tau over layers, ratios and dense networks, its sign turned so that
    +1 is perfect. Its interval is over dense networks and test examples. *places* are those that
    the criterion could have, with 95% for all criteria at once. *regret* is how much better the
    best candidate is than the chosen one, beside that of a random choice: the best is found by one
    retraining and half of the test examples, and judged by the others. Below each table stands what
    a sum of one number per filter reaches, fitted to other candidates and other examples.

    Examples:

    - trueoracle bench my_criterion.py

    - trueoracle bench taylor --family digits --layer conv2 --ratio 0.5

    - trueoracle bench my_criterion.py:score --json > place.json

    - trueoracle bench --findings
    """
    if studies and criterion is None:
        raise InputError("--studies is about one criterion: name it")
    shipped = read_bench()
    if about:
        if (criterion, family, layer, ratio, network) != (None,) * 5:
            raise InputError("--findings are about the whole bench: name nothing else")
        _show_findings(shipped, as_json=as_json, quiet=quiet)
        return
    chosen = choose_studies(shipped, family, layer, ratio, network)
    name, whole = None, shipped
    if criterion is not None:
        name, whole = _with_own(shipped, criterion, chosen, quiet=quiet)
    places = hold(whole, chosen)
    if as_json:
        own = all_statistics(whole, chosen, name) if studies else None
        print_json({"criterion": name, "card": whole.card, **places.as_dict(), "studies": own})
    elif not quiet:
        _print(whole, places, name)
        if studies and name is not None:
            _print_studies(all_statistics(whole, chosen, name))


def _show_findings(shipped: Bench, *, as_json: bool, quiet: bool) -> None:
    found = findings(shipped, COLUMNS)
    if as_json:
        print_json({"card": shipped.card, "findings": [one.as_dict() for one in found]})
    elif not quiet:
        for question, words in QUESTIONS.items():
            own = [one for one in found if one.question == question]
            out().print(words if own else f"{words} The bench lacks networks to compare.")
            if own:
                out().print(text_table(_findings_table(own)))
            out().print()
        out().print("95% and p: over dense networks, and blocks of test examples")


def _findings_table(found: list[Finding]) -> TextTable:
    """One row per finding."""
    words = [
        ("outcome", "", [label_of(one.metric) for one in found]),
        ("family", "", [_difference(one.families, one, COMPARED) for one in found]),
        ("criterion", "", [_difference(one.what, one, ("sum",)) for one in found]),
    ]
    numbers = (
        Column("networks", "", lambda f: str(f["networks"])),
        Column("agreement", "", lambda f: number(f["value"], 2)),
        Column("95%", "", lambda f: interval(f["low"], f["high"])),
        Column("at most", "", lambda f: number(f["at_most"], 2)),
        Column("p (Holm)", "", lambda f: p_value(f["p_value"])),
        Column("answer", "", _answer),
    )
    return text_table_of(words, (), numbers, [one.as_dict() for one in found], keep_empty=True)


def _difference(of: str, finding: Finding, questions: Collection[str]) -> str:
    """What is measured, and what it is less, where a question is about that."""
    return f"{of} − {finding.less}" if finding.less and finding.question in questions else of


def _answer(finding: Mapping[str, Any]) -> str:
    could, answer = finding["could_be_best"], str(finding["answer"])
    return answer if could in (None, 1) else f"{answer}: {could} could be"


def _with_own(
    shipped: Bench, reference: str, studies: list[BenchStudy], *, quiet: bool
) -> tuple[str, Bench]:
    """The criterion's name on the bench, and the bench with its scores."""
    made = doors.load_criterion(reference)
    if made.is_shipped and made.name in shipped.scores:
        return made.name, shipped
    name = f"{made.name} (yours)" if made.name in shipped.scores else made.name
    with shown_progress(quiet=quiet) as progress:
        scores = doors.score_bench(made, shipped, progress, studies)
    return name, replace(shipped, scores={**shipped.scores, name: scores})


def _print(whole: Bench, places: Places, name: str | None) -> None:
    console = out()
    retrained = sum(len(one.rows) for one in places.studies) * int(whole.card["seeds"])
    dense = many(len({one.dense for one in places.studies}), "dense network")
    families = many(len({one.family for one in places.studies}), "family", "families")
    console.print(
        f"{many(len(places.studies), 'study', 'studies')}, {retrained:,} retrained networks "
        f"({dense} of {families})\n"
    )
    for metric, found in places.whole.items():
        first = found[0]
        # Above the table, since a title would be broken at the table's width.
        console.print(
            f"{label_of(metric)}: ceiling of the noise {number(first.ceiling, 2)}, "
            f"regret of a random choice {number(first.random_regret, 4)}"
        )
        console.print(text_table(_places_table(found, places.parts[metric], name)))
        if isfinite(places.additive[metric]):
            console.print(
                f"a sum of one number per filter, fitted to other candidates' outcomes on other "
                f"examples: agreement {number(places.additive[metric], 2)}"
            )
        if first.interval_over:
            console.print(f"95%: over {first.interval_over}")
        console.print()
    if name is not None:
        _print_place(places, name)


def _print_place(places: Places, name: str) -> None:
    """The place of one criterion, in words."""
    for metric, found in places.whole.items():
        place = next(one for one in found if one.criterion == name)
        if place.rank is None:
            out().print(
                f"{name} has no place: it gives a finite score to {percent(place.coverage)} of the "
                "candidates, and a place is among criteria that score all of them"
            )
            return
        out().print(
            f"{name}: number {place.rank} of {place.of} against {label_of(metric)}, agreement "
            f"{number(place.agreement, 2)} of {number(place.ceiling, 2)} that noise allows"
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
        Column("p (Holm)", "", lambda p: p_value(p["adjusted_p_value"])),
        Column("places", "", _could_have),
        *(Column(part, "", number_cell(f"part {part}", 2)) for part in by_part),
        Column("regret", "", lambda p: number(p["regret"], 4)),
    )
    criterion = Column("criterion", "", lambda p: str(p["criterion"]))
    marked = [row for row, place in enumerate(places) if place.criterion == name]
    return text_table_of((), (criterion,), columns, entries, marked=marked, keep_empty=True)


def _could_have(place: Mapping[str, Any]) -> str:
    """The first and the last place that a criterion could have."""
    return ABSENT if place["rank"] is None else f"{place['rank_low']}–{place['rank_high']}"


def _print_studies(entries: list[dict[str, Any]]) -> None:
    rows = [
        (
            {
                "family": entry["family"],
                "network": str(entry["network"]),
                "layer": entry["layer"],
                "ratio": f"{entry['ratio']:g}",
                "outcome": label_of(entry["metric"]),
            },
            entry,
        )
        for entry in entries
    ]
    out().print(text_table(brief_table(rows)))
    for note in notes(entries):
        out().print(note, soft_wrap=True)
