"""What a page says of each of its studies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueoracle.analysis.numbers import number, percent
from trueoracle.analysis.power import Power, power
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.report.drawings import (
    Drawn,
    Folder,
    agreement_figure,
    title_of,
)
from trueoracle.report.headline import badge
from trueoracle.report.share import without_places
from trueoracle.report.stills import stills_of
from trueoracle.report.table import (
    PublishedTable,
    TextTable,
    differences_table,
    further_table,
    networks_table,
    partial_table,
    published_table,
    relations_table,
)
from trueoracle.report.words import (
    additive_sentence,
    best_first,
    by_agreement,
    combination_sentence,
    told_apart,
)
from trueoracle.spec.file import is_reference
from trueoracle.spec.published import has_published_values, published
from trueoracle.spec.spec import StudySpec

__all__ = [
    "Comparison",
    "NumbersTable",
    "Section",
    "are_arms",
    "dense_facts",
    "headline_in_words",
    "intervals_in_words",
    "labels_of",
    "place_of",
    "power_of",
    "published_of",
    "section_of",
    "tables_of",
]

_LARGEST_EXPONENT = 100.0


@dataclass(frozen=True)
class Comparison:
    """What a page says of a study's criteria compared with each other.

    ``combinations`` are sentences, each with the weights that it is about, the greatest first.
    ``sums`` are sentences on additive models of the filters. ``over`` says what the intervals of
    differences count, and what they take as given.
    """

    agreement: Drawn | None
    combinations: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    sums: tuple[str, ...]
    differences: TextTable | None
    over: str
    partial: TextTable | None


@dataclass(frozen=True)
class Section:
    """A study or an arm as the page shows it.

    ``label`` says which of the page's studies it is, and ``badge`` in which fields it is not what
    its name promises. ``networks`` is the table of its dense networks, where there are several.
    ``stills`` are pictures by the id of their view.
    """

    results: Results
    summary: dict[str, Any]
    label: str
    badge: str
    relations: tuple[dict[str, Any], ...]
    networks: TextTable | None
    comparison: Comparison | None
    stills: Mapping[str, tuple[Drawn, ...]]


@dataclass(frozen=True)
class NumbersTable:
    """The numbers of one outcome: the main ones, the others, and (study, criterion) of each row."""

    outcome: str
    column: str
    main: TextTable
    further: TextTable
    keys: tuple[tuple[str, str], ...]


def section_of(
    results: Results,
    summary: dict[str, Any],
    short: Results | None,
    main: Results,
    label: str,
    rule: str,
    folder: Folder,
) -> Section:
    """A study as a page shows it under its ``label``; the page's first study is ``main``."""
    after = (summary["short_retraining"] or {"relations": []})["relations"]
    relations = best_first([*summary["relations"], *after])
    shown = results if short is None else results.with_short(short)
    beside = None if results is main else main.spec
    words = badge(results.spec, summary, beside)
    stills = {}
    if relations:
        stills = stills_of(shown, summary, relations, rule, folder)
    comparison = _comparison(summary, folder, title_of(results))
    if comparison is not None and comparison.agreement is not None:
        stills["alike"] = (comparison.agreement,)
    return Section(
        results=shown,
        summary=summary,
        label=label,
        badge=str(without_places(words)) if results.is_shared else words,
        relations=tuple(relations),
        networks=networks_table(summary) if summary["networks"] and relations else None,
        comparison=comparison,
        stills=stills,
    )


def labels_of(studies: Sequence[StudySpec]) -> list[str]:
    """What tells a page's studies apart, the first one first.

    It is the name, of an arm of the first study without that study's name; where several have one
    name, with the digest.
    """
    main, names = studies[0].name, [spec.name for spec in studies]
    short = [n.removeprefix(main) if n.startswith(f"{main}@") else n for n in names]
    return told_apart(short, [spec.digest for spec in studies])


def are_arms(sections: Sequence[Section]) -> bool:
    """Whether all of a page's studies are one and its arms."""
    names = {section.summary["study"].partition("@")[0] for section in sections}
    return len(names) == 1


def tables_of(
    entries: Sequence[tuple[Mapping[str, str], str, Mapping[str, Any]]],
) -> list[NumbersTable]:
    """The tables of each outcome, best criteria first.

    Entries are (words by heading, the study's label, relation), one per row.
    """
    found = []
    for column in dict.fromkeys(relation["metric"] for _, _, relation in entries):
        own = [entry for entry in entries if entry[2]["metric"] == column]
        # The entries of all arms are sorted together, since they share a table.
        own.sort(key=lambda entry: by_agreement(entry[2]))
        rows = [(words, relation) for words, _, relation in own]
        found.append(
            NumbersTable(
                outcome=own[0][2]["outcome_name"],
                column=column,
                main=relations_table(rows),
                further=further_table(rows),
                keys=tuple((study, relation["criterion"]) for _, study, relation in own),
            )
        )
    return found


def place_of(section: Section, sections: Sequence[Section]) -> dict[str, str]:
    """Which study or arm a row of the table belongs to, with its badge, where there are several."""
    if len(sections) == 1:
        return {}
    label = section.label if section.badge == "" else f"{section.label} ({section.badge})"
    return {"arm" if are_arms(sections) else "study": label}


def intervals_in_words(relations: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals count, and what they take as given."""
    return "; ".join(dict.fromkeys(over for r in relations if (over := r.get("interval_over"))))


def published_of(section: Section) -> PublishedTable | None:
    """The published values of a study's setting beside ours; None where none is published."""
    base = section.results.spec.name.partition("@")[0]
    if not section.relations or not is_reference(base):
        return None
    if not has_published_values(section.results.spec):
        return None
    try:
        known = published(base)
    except InputError:  # a grid, or a file that is no longer what it was
        return None
    return published_table(known, section.relations, section.badge)


def power_of(results: Results, summary: Mapping[str, Any]) -> Power | None:
    """What the study could find by its design; None where it does not prune filters."""
    known = list(results.retrained.values())
    if not known or (groups := known[0].table().groups) == ():
        return None
    try:
        return power(
            sum(groups),
            layers=len(groups),
            candidates=None if summary["exhaustive"] else len(known[0].candidates),
            seeds=len(summary["seeds"]),
            networks=len(known),
            criteria=len(summary["relations"]),
        )
    except InputError:  # too small to say anything of
        return None


def _comparison(summary: Mapping[str, Any], folder: Folder, title: str) -> Comparison | None:
    """The comparison of criteria: None for one criterion, and only the difference for two."""
    found = {metric: one for metric, one in (summary.get("comparison") or {}).items() if one}
    outcomes = {r["metric"]: r["outcome_name"] for r in summary["relations"]}
    found = {outcomes[metric]: one for metric, one in found.items() if metric in outcomes}
    if not found:
        return None
    name, agreement, combinations, partial = summary["study"], None, [], []
    if len({r["criterion"] for r in summary["relations"]}) > 2:
        # How far criteria agree with each other does not depend on the outcome.
        alike = next(iter(found.values()))["agreement"]
        agreement = folder.draw(
            lambda: agreement_figure(alike, title),
            f"{name}-agreement",
            alt=_alike_in_words(alike),
            caption="Blue: two criteria order the candidates alike; orange: against each other. "
            "The tree joins those that are most alike first.",
        )
        partial = [(outcome, entry) for outcome, one in found.items() for entry in one["partial"]]
        combinations = [
            (combination_sentence(made, outcome), _by_size(made["weights"]))
            for outcome, one in found.items()
            if (made := one["combination"]) is not None
        ]
    pairs = [(outcome, entry) for outcome, one in found.items() for entry in one["differences"]]
    return Comparison(
        agreement=agreement,
        combinations=tuple(combinations),
        sums=tuple(
            additive_sentence(made, outcome)
            for outcome, one in found.items()
            if (made := one.get("additive")) is not None and made["agreement"] is not None
        ),
        differences=differences_table(pairs) if pairs else None,
        over="; ".join(dict.fromkeys(entry["over"] for _, entry in pairs if entry.get("over"))),
        partial=partial_table(partial) if partial else None,
    )


def _by_size(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items(), key=lambda item: -abs(item[1])))


def _alike_in_words(agreement: Mapping[str, Any]) -> str:
    """The two criteria whose orders of the candidates are most alike, and the two least alike."""
    criteria, tau = agreement["criteria"], agreement["tau"]
    pairs = [
        (tau[i][j], f"{criteria[i]} and {criteria[j]}")
        for i in range(len(criteria))
        for j in range(i)
        if tau[i][j] is not None
    ]
    text = f"Rank agreement among {len(criteria)} criteria"
    if not pairs:
        return f"{text}."
    (least, apart), (most, alike) = min(pairs), max(pairs)
    return f"{text}: most alike {alike} ({number(most, 2)}), least {apart} ({number(least, 2)})."


def dense_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The dense network in numbers, each as (value, words); none before it is recorded."""
    dense = summary["dense"]
    if not dense:
        return []
    loss, *others = summary["metrics"]
    train, test = dense.get(f"train_{loss['name']}"), dense.get(f"test_{loss['name']}")
    facts = [(f"{number(train)} / {number(test)}", f"train / test {loss['label']}")]
    if loss["exponential"] and test is not None and test < _LARGEST_EXPONENT:
        facts.append((f"{math.exp(test):,.1f}", f"test {loss['exponential']}"))
    known = summary["data_facts"].get("baselines") or ()
    for metric in others:
        value, words = _on_test(metric, dense)
        beside = [
            f"{percent(one['test'])} {one['label']}"
            for one in known
            if one["metric"] == metric["name"]
        ]
        facts.append((value, f"{words} ({', '.join(beside)})" if beside else words))
    return facts


def headline_in_words(summary: Mapping[str, Any]) -> str:
    """The dense network's headline metric, such as ``"test mean IoU 71.3%"``."""
    metrics = summary["metrics"]
    value, words = _on_test(metrics[1] if len(metrics) > 1 else metrics[0], summary["dense"] or {})
    return f"{words} {value}"


def _on_test(metric: Mapping[str, Any], dense: Mapping[str, Any]) -> tuple[str, str]:
    value = dense.get(f"test_{metric['name']}")
    is_share = (metric["low"], metric["high"], metric["unit"]) == (0, 1, "")
    shown = percent(value) if is_share else f"{number(value)} {metric['unit']}".strip()
    return shown, f"test {metric['label']}"
