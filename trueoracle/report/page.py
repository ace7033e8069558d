"""The report: figures, a summary and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from trueoracle.analysis.numbers import many, mean_count, number, percent
from trueoracle.analysis.power import Power, power
from trueoracle.errors import InputError
from trueoracle.files import write_text
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import SHORT, Results
from trueoracle.record.runs import find_short
from trueoracle.report.drawings import (
    Drawn,
    Folder,
    agreement_figure,
    arms_figure,
    filter_names,
    ladder_figure,
    ladder_in_words,
    learning_figure,
    networks_figures,
    panel_figure,
    scatter_figure,
    slug,
    worth_figure,
)
from trueoracle.report.glossary import GLOSSARY, term_of
from trueoracle.report.headline import badge, conditions, headline, other_outcomes
from trueoracle.report.linked import linked
from trueoracle.report.share import recorded_name, without_places
from trueoracle.report.summary import assess_together, summarise
from trueoracle.report.table import (
    PublishedTable,
    TextTable,
    costs_table,
    differences_table,
    further_table,
    networks_table,
    partial_table,
    published_table,
    relations_table,
)
from trueoracle.report.words import (
    CERTAIN,
    additive_sentence,
    best_first,
    by_agreement,
    ceiling_sentences,
    combination_sentence,
    data_in_words,
    limits_in_words,
    pruned_in_words,
    verdicts,
)
from trueoracle.spec.file import is_reference
from trueoracle.spec.published import published
from trueoracle.spec.scale import changes_in_words

__all__ = [
    "View",
    "WrittenReport",
    "candidates_table",
    "dense_facts",
    "headline_in_words",
    "navigation",
    "render",
    "study_page",
    "tables_of",
    "write_report",
]

_LARGEST_EXPONENT = 100.0

FEW = 4
"""The most criteria that all get a figure of their own; of more, only the best and the oracle."""

_ROWS = 12
"""The candidates of the table that a page has without its script."""

_LADDER = (
    "Agreement is τ with its sign turned so that +1 is perfect; criteria are in the order of its "
    f"mean over the outcomes. A filled dot is certain not to be zero: {CERTAIN}. Where the study "
    "does not say what candidates prune, none is."
)

_HEADINGS = {
    "trend": ("Agreement over the grid", "trend"),
    "forest": ("All studies together", "together"),
    "scatter": ("Score against outcome", "scatter"),
    "found": ("What was found", "found"),
    "candidates": ("Candidates", "candidates"),
    "ladder": ("The criteria, best first", "criteria"),
    "numbers": ("The numbers", "numbers"),
    "curves": ("Learning curves", "curves"),
    "picked": ("Picked candidates", "picked"),
    "filters": ("Which filters matter", "filters"),
    "short": ("Short against full retraining", "short"),
    "arms": ("Side by side, on equal axes", "side by side"),
    "alike": ("The criteria beside each other", "agreement"),
    "published": ("Published beside ours", "published"),
    "costs": ("Costs and time", "costs"),
    "power": ("What the data cannot tell", "limits"),
    "glossary": ("Glossary", "glossary"),
    "provenance": ("Provenance", "provenance"),
}
"""The sections of pages by their id, in order: the heading, and its name in the navigation."""


@dataclass(frozen=True)
class WrittenReport:
    """The files that were written, and the summaries: the study's first, then its arms'."""

    page: Path
    summary: Path
    figures: tuple[Path, ...]
    summaries: tuple[dict[str, Any], ...] = field(repr=False)


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
class View:
    """A linked view of a page: its heading, and what stands there until the script has run."""

    heading: str
    stills: tuple[Drawn, ...] = ()
    table: TextTable | None = None
    intro: str = ""


@dataclass(frozen=True)
class NumbersTable:
    """The numbers of one outcome: the main ones, the others, and (study, criterion) of each row."""

    outcome: str
    column: str
    main: TextTable
    further: TextTable
    keys: tuple[tuple[str, str], ...]


def write_report(
    results: Results, arms: Sequence[Results], out: Path, rule: str = "last"
) -> WrittenReport:
    """Write ``report.html``, ``summary.json`` and ``figures/`` below ``out``.

    ``arms`` are other recorded variants of the study, or other studies, shown beside it. Raises
    :class:`StoreError` where the report cannot be written.
    """
    folder = Folder(out / "figures")
    text, summaries = study_page(results, arms, folder, rule)
    page, summary_path = out / "report.html", out / "summary.json"
    write_text(page, text)
    write_text(summary_path, json.dumps(summaries, indent=2, allow_nan=False) + "\n")
    return WrittenReport(page, summary_path, tuple(folder.written), tuple(summaries))


def study_page(
    results: Results,
    arms: Sequence[Results],
    folder: Folder,
    rule: str = "last",
    version: str | None = None,
) -> tuple[str, list[dict[str, Any]]]:
    """The page of a study and its arms, and their summaries.

    ``version`` names the state of a record that is still filling; a page with one asks for a new
    version as long as it is served (:mod:`trueoracle.report.watch`).
    """
    everyone = (results, *arms)
    shorts = [find_short(one, everyone) for one in everyone]
    together = assess_together(list(zip(everyone, shorts, strict=True)), rule)
    sections = []
    for one, short, assessed in zip(everyone, shorts, together, strict=True):
        summary = summarise(one, rule, short, assessed)
        sections.append(_section(one, summary, short, results, rule, folder))
    main, summaries = sections[0].summary, [section.summary for section in sections]
    views = _views(sections, folder, rule)
    tables = tables_of(
        [
            (_place(section, sections), section.summary["study"], relation)
            for section in sections
            for relation in section.relations
        ]
    )
    published_rows = _published(sections[0])
    limits = limits_in_words(main, _power(results, main))
    shown = {"found", "costs", "glossary", "provenance", *views}
    shown |= {
        section
        for section, one in {"numbers": views, "published": published_rows, "power": limits}.items()
        if one
    }
    text = render(
        "page.html",
        title=main["title"],
        purpose=main["purpose"] or "",
        badge=sections[0].badge,
        headline=headline(main),
        conditions=conditions(main),
        others=other_outcomes(main) if main["relations"] else "",
        nav=navigation(shown),
        study_control="arm" if _are_arms(sections) else "study",
        version=version,
        views=views,
        main=main,
        summaries=summaries,
        sections=sections,
        verdicts=verdicts(main),
        facts=dense_facts(main),
        data_words=data_in_words(main["data_facts"]),
        tables=tables,
        intervals=_intervals([one for section in sections for one in section.relations]),
        published=published_rows,
        costs=costs_table([(section.label, section.summary) for section in sections]),
        limits=limits,
        data=linked([(s.results, s.summary, s.label, s.badge) for s in sections], rule),
    )
    return text, summaries


def navigation(shown: Collection[str]) -> list[tuple[str, str]]:
    """The links to a page's sections, in their order: (id, name)."""
    return [(one, name) for one, (_, name) in _HEADINGS.items() if one in shown]


def tables_of(
    entries: Sequence[tuple[Mapping[str, str], str, Mapping[str, Any]]],
) -> list[NumbersTable]:
    """The tables of each outcome, best criteria first.

    Entries are (words by heading, the study's name, relation), one per row.
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


def _section(
    results: Results,
    summary: dict[str, Any],
    short: Results | None,
    main: Results,
    rule: str,
    folder: Folder,
) -> Section:
    after = (summary["short_retraining"] or {"relations": []})["relations"]
    relations = best_first([*summary["relations"], *after])
    shown = results if short is None else results.with_short(short)
    beside = None if results is main else main.spec
    words = badge(results.spec, summary, beside)
    stills = {}
    if relations:
        is_first = results is main
        stills = _stills(shown, summary, relations, rule, folder, is_first=is_first)
    comparison = _comparison(summary, folder)
    if comparison is not None and comparison.agreement is not None:
        stills["alike"] = (comparison.agreement,)
    return Section(
        results=shown,
        summary=summary,
        label=_label(summary["study"], main.spec.name),
        badge=str(without_places(words)) if results.is_shared else words,
        relations=tuple(relations),
        networks=networks_table(summary) if summary["networks"] and relations else None,
        comparison=comparison,
        stills=stills,
    )


def _label(study: str, main: str) -> str:
    """Which of a page's studies it is: the study itself, an arm of it, or another study."""
    if study == main or not study.startswith(f"{main}@"):
        return study
    return study.removeprefix(main)


def _are_arms(sections: Sequence[Section]) -> bool:
    names = {section.summary["study"].partition("@")[0] for section in sections}
    return len(names) == 1


def _stills(
    results: Results,
    summary: dict[str, Any],
    relations: Sequence[dict[str, Any]],
    rule: str,
    folder: Folder,
    *,
    is_first: bool,
) -> dict[str, tuple[Drawn, ...]]:
    """The pictures of a study by the id of their view; more figures are written than are shown."""
    name, found = summary["study"], dict[str, list[Drawn | None]]()
    found["ladder"] = [
        folder.draw(
            lambda: ladder_figure(summary, relations),
            f"{name}-criteria",
            alt=ladder_in_words(relations),
            caption=" ".join([_LADDER, *ceiling_sentences(summary)]),
        )
    ]
    alone = _alone(summary["relations"])
    for relation in relations:
        if relation["criterion"] != SHORT and (
            (relation["criterion"], relation["metric"]) not in alone
        ):
            continue
        view = "short" if relation["criterion"] == SHORT else "scatter"
        found.setdefault(view, []).extend(_scatters(results, summary, relation, rule, folder))
    _panels(results, summary, rule, folder)
    first = next(r for r in relations if r["criterion"] != SHORT)
    if is_first and len(results.networks) == 1:
        found |= _of_candidates(results, summary, first, rule, folder)
    return {view: tuple(filter(None, drawn[:1])) for view, drawn in found.items()}


def _scatters(
    results: Results,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> list[Drawn | None]:
    if isinstance(results, PooledResults):
        return _networks(results, summary, relation, rule, folder)
    words = f"{relation['criterion']} against {relation['outcome_name']}: {relation['verdict']}"
    return [
        folder.draw(
            lambda: scatter_figure(results, relation, rule),
            f"{summary['study']}-{slug(relation['criterion'])}-{relation['metric']}",
            alt=words,
            caption=_caption(relation),
        )
    ]


def _of_candidates(
    results: Results,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> dict[str, list[Drawn | None]]:
    """The learning curves, and which filters matter, for one outcome of one dense network."""
    name, outcome = summary["study"], relation["outcome_name"]
    found = {
        "curves": [
            folder.draw(
                lambda: learning_figure(results, relation, rule),
                f"{name}-curves-{relation['metric']}",
                alt=f"Learning curves of all candidates: {outcome} by epoch.",
                caption="Grey: all candidates, the middle half of them and their median by epoch.",
            )
        ]
    }
    if filter_names(results):
        found["filters"] = [
            folder.draw(
                lambda: worth_figure(results, relation, rule),
                f"{name}-filters-{relation['metric']}",
                alt=f"Mean {outcome} of the candidates that prune each filter, and that keep it.",
                caption="Left: candidates that prune a filter (filled) and that keep it. Right: "
                "those that prune both of two.",
            )
        ]
    return found


def _views(sections: Sequence[Section], folder: Folder, rule: str) -> dict[str, View]:
    """The linked views of a page by their id; none before anything is retrained."""
    known = [section for section in sections if section.summary["relations"]]
    if not known:
        return {}
    first = known[0]

    def view(name: str, **fields: Any) -> View:
        return View(_HEADINGS[name][0], stills=first.stills.get(name, ()), **fields)

    relation = next(r for r in first.relations if r["criterion"] != SHORT)
    views = {
        "scatter": view("scatter"),
        "candidates": view("candidates", table=candidates_table(first.results, relation, rule)),
        "ladder": View(
            _HEADINGS["ladder"][0],
            stills=tuple(drawn for one in known for drawn in one.stills.get("ladder", ())),
        ),
        "curves": view("curves"),
        "picked": View(_HEADINGS["picked"][0]),
    }
    if "filters" in first.stills or any(filter_names(one) for one in _each(first.results)):
        views["filters"] = view("filters")
    if any(section.summary["short_retraining"] for section in known):
        views["short"] = view("short")
    if len(known) > 1 or len(_each(first.results)) > 1:
        shared = [
            (section.label, section.results)
            for section in known
            if recorded_name(section.results, relation["criterion"]) in section.results.criteria
            and relation["metric"] in section.results.default_outcomes
            and len(section.results.networks) == 1
        ]
        stills: tuple[Drawn, ...] = ()
        if len(shared) > 1:
            drawn = folder.draw(
                lambda: arms_figure(shared, relation, rule),
                f"{first.summary['study']}-arms-{relation['metric']}",
                alt=f"{relation['criterion']} against {relation['outcome_name']} in "
                f"{', '.join(label for label, _ in shared)}.",
            )
            stills = (drawn,) if drawn else ()
        views["arms"] = View(_HEADINGS["arms"][0], stills=stills)
    if first.comparison is not None:
        views["alike"] = view("alike")
    return views


def _each(results: Results) -> list[Results]:
    """The results of each dense network of which any candidate is retrained."""
    return [one for one in results.networks.values() if not one.outcomes.empty]


def candidates_table(results: Results, relation: Mapping[str, Any], rule: str) -> TextTable:
    """The best candidates by outcome, of the first dense network: what each prunes and comes to."""
    one = _each(results)[0]
    outcome = one.outcome(relation["metric"], rule)
    table = one.points(recorded_name(one, relation["criterion"]), outcome.column, rule)
    best = table.sort_values("outcome", ascending=not outcome.higher_is_better, kind="stable")
    head = best.head(_ROWS)
    numbers = [[number(_finite(one), 4) for one in head[name]] for name in ("score", "outcome")]
    rows = tuple(zip(map(pruned_in_words, head["pruned"]), *numbers, strict=True))
    headings = (f"prunes (best {_ROWS} of {len(table):,})", relation["criterion"], outcome.name)
    return TextTable(headings, headings, rows, texts=1)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _power(results: Results, summary: Mapping[str, Any]) -> Power | None:
    """What the study could find by its design; None where it does not prune filters."""
    known = _each(results)
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


def _published(section: Section) -> PublishedTable | None:
    """The published values of a study's setting beside ours; None where none is published."""
    base = section.results.spec.name.partition("@")[0]
    if not section.relations or not is_reference(base):
        return None
    try:
        known = published(base)
    except InputError:  # a grid, or a file that is no longer what it was
        return None
    return published_table(known, section.relations, section.badge)


def _networks(
    results: PooledResults,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> list[Drawn | None]:
    """One criterion against one outcome in every dense network."""
    stem = f"{summary['study']}-{slug(relation['criterion'])}-{relation['metric']}"
    words = f"{relation['criterion']} against {relation['outcome_name']}"
    over = f"95% over {relation['interval_over']}" if relation["interval_over"] else "no interval"
    return [
        folder.draw(
            lambda: networks_figures(results, summary, relation, rule)[0],
            f"{stem}-forest",
            alt=f"{words}, network by network: {relation['verdict']}",
            caption=f"{words} in each dense network, its own interval given that network; the "
            f"diamond is their mean ({over}).",
        ),
        folder.draw(
            lambda: networks_figures(results, summary, relation, rule)[1],
            stem,
            alt=f"{words}, one scatter for each dense network.",
            caption=f"{words}, network by network; a star has the lowest score.",
        ),
    ]


def _place(section: Section, sections: Sequence[Section]) -> dict[str, str]:
    """Which study or arm a row of the table belongs to, with its badge, where there are several."""
    if len(sections) == 1:
        return {}
    label = section.label if section.badge == "" else f"{section.label} ({section.badge})"
    return {"arm" if _are_arms(sections) else "study": label}


def _intervals(relations: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals count, and what they take as given."""
    return "; ".join(dict.fromkeys(over for r in relations if (over := r.get("interval_over"))))


def _alone(relations: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """The criteria that have a scatter of their own, as (criterion, metric)."""
    found = set()
    for metric in dict.fromkeys(r["metric"] for r in relations):
        own = best_first([r for r in relations if r["metric"] == metric])
        names = [r["criterion"] for r in own]
        found |= {
            (name, metric) for name in names if len(names) <= FEW or name in ("oracle", names[0])
        }
    return found


def _panels(results: Results, summary: Mapping[str, Any], rule: str, folder: Folder) -> None:
    """Write one figure per outcome with all criteria, unless each has a scatter of its own."""
    if isinstance(results, PooledResults):  # there, each network has a panel
        return
    for metric in dict.fromkeys(r["metric"] for r in summary["relations"]):
        own = best_first([r for r in summary["relations"] if r["metric"] == metric])
        if len(own) > FEW:
            draw = partial(panel_figure, results, own, metric, rule)
            folder.draw(draw, f"{summary['study']}-every-criterion-{metric}", alt="")


def _comparison(summary: Mapping[str, Any], folder: Folder) -> Comparison | None:
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
            lambda: agreement_figure(alike, summary["title"]),
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


def _caption(relation: Mapping[str, Any]) -> str:
    end = "Highest" if relation["higher_score_is_better"] else "Lowest"
    place = f"number {mean_count(relation['rank'])} of {relation['n']:,}"
    if relation["tied"] > 1:
        text = (
            f"{end} {relation['score_name']}: {relation['tied']:,} candidates share it, and end as "
            f"{place} on average."
        )
    else:
        text = (
            f"{end} {relation['score_name']}: prunes {pruned_in_words(relation['chosen_pruned'])}; "
            f"ends as {place}."
        )
    if dropped := relation["dropped"]:
        text += f" {many(dropped, 'candidate')} without a finite value "
        text += "are left out." if dropped > 1 else "is left out."
    return text


def render(template: str, *, data: Mapping[str, Any], **values: Any) -> str:
    """One of the templates with its values; ``data`` is what its script draws from.

    No name in ``data`` can end the block that holds it, and the page's policy lets no script run
    but its own.
    """
    library, script = _scripts()
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in (library, script)]
    return (
        _environment()
        .get_template(template)
        .render(
            data=htmlsafe_json_dumps(data, dumps=_compact),
            library=Markup(library),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=" ".join(f"'sha256-{digest.decode()}'" for digest in digests),
            glossary=GLOSSARY,
            **values,
        )
    )


def _compact(value: Any, **_: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


@cache
def _scripts() -> tuple[str, str]:
    """The plotting library, and the page's own script: its files in the order of their names."""
    here = files("trueoracle.report")
    own = sorted((here / "script").iterdir(), key=lambda file: file.name)
    texts = [one.read_text(encoding="utf-8") for one in own if one.name.endswith(".js")]
    library = (here / "vendor" / "plot.min.js").read_text(encoding="utf-8")
    return library, "\n".join(texts)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trueoracle.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "changes": changes_in_words,
        "many": many,
        "number": number,
        "percent": percent,
        "term": term_of,
    }
    return environment
