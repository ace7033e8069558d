"""The report: figures, a summary and one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueoracle.analysis.numbers import number
from trueoracle.files import write_text
from trueoracle.record.results import SHORT, Results
from trueoracle.record.runs import find_short
from trueoracle.report.drawings import (
    Drawn,
    Folder,
    arms_figure,
    filter_names,
)
from trueoracle.report.headline import (
    conditions,
    headline,
    nothing_retrained,
    other_outcomes,
)
from trueoracle.report.linked import linked
from trueoracle.report.rendering import HEADINGS, navigation, render
from trueoracle.report.sections import (
    Section,
    are_arms,
    dense_facts,
    intervals_in_words,
    labels_of,
    place_of,
    power_of,
    published_of,
    section_of,
    tables_of,
)
from trueoracle.report.share import recorded_name
from trueoracle.report.stills import FEW, left_out_in_words
from trueoracle.report.summary import assess_together, summarise
from trueoracle.report.table import (
    TextTable,
    costs_table,
)
from trueoracle.report.words import (
    data_in_words,
    latencies_in_words,
    limits_in_words,
    pruned_in_words,
    searches_in_words,
    verdicts,
)

__all__ = [
    "View",
    "WrittenReport",
    "candidates_table",
    "study_page",
    "write_report",
]

_ROWS = 12
"""The candidates of the table that a page has without its script."""


@dataclass(frozen=True)
class WrittenReport:
    """The files that were written, and the summaries: the study's first, then its arms'."""

    page: Path
    summary: Path
    figures: tuple[Path, ...]
    summaries: tuple[dict[str, Any], ...] = field(repr=False)


@dataclass(frozen=True)
class View:
    """A linked view of a page: its heading, and what stands there until the script has run.

    ``note`` says which studies the pictures are of, where these are not all.
    """

    heading: str
    stills: tuple[Drawn, ...] = ()
    table: TextTable | None = None
    intro: str = ""
    note: str = ""


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
    labels, sections = labels_of([one.spec for one in everyone]), []
    for one, label, short, assessed in zip(everyone, labels, shorts, together, strict=True):
        summary = summarise(one, rule, short, assessed)
        sections.append(section_of(one, summary, short, results, label, rule, folder))
    main, summaries = sections[0].summary, [section.summary for section in sections]
    views = _views(sections, folder, rule)
    tables = tables_of(
        [
            (place_of(section, sections), section.label, relation)
            for section in sections
            for relation in section.relations
        ]
    )
    published_rows = published_of(sections[0])
    limits = limits_in_words(main, power_of(results, main))
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
        study_control="arm" if are_arms(sections) else "study",
        version=version,
        views=views,
        main=main,
        summaries=summaries,
        sections=sections,
        verdicts=verdicts(main),
        nothing=nothing_retrained(main),
        searches=searches_in_words(main),
        facts=dense_facts(main),
        data_words=data_in_words(main["data_facts"]),
        tables=tables,
        intervals=intervals_in_words([one for section in sections for one in section.relations]),
        published=published_rows,
        costs=costs_table([(section.label, section.summary) for section in sections]),
        latencies=latencies_in_words([(one.label, one.summary) for one in sections]),
        limits=limits,
        data=linked([(s.results, s.summary, s.label, s.badge) for s in sections], rule),
    )
    return text, summaries


def _views(sections: Sequence[Section], folder: Folder, rule: str) -> dict[str, View]:
    """The linked views of a page by their id; none before anything is retrained."""
    known = [section for section in sections if section.summary["relations"]]
    if not known:
        return {}
    first = known[0]
    relation = next(r for r in first.relations if r["criterion"] != SHORT)

    def view(name: str, shown: Sequence[Section] = known[:FEW]) -> View:
        stills = [
            drawn.of(place_of(section, sections))
            for section in shown
            for drawn in section.stills.get(name, ())
        ]
        note = left_out_in_words(len(known)) if stills and shown == known[:FEW] else ""
        return View(HEADINGS[name][0], stills=tuple(stills), note=note)

    views = {
        "scatter": view("scatter", known[:1]),  # of the others, side by side
        "candidates": View(
            HEADINGS["candidates"][0], table=candidates_table(first.results, relation, rule)
        ),
        "ladder": view("ladder"),
        "curves": view("curves"),
        "picked": view("picked"),
    }
    if any(filter_names(one) for section in known for one in section.results.retrained.values()):
        views["filters"] = view("filters")
    if any(section.summary["short_retraining"] for section in known):
        views["short"] = view("short")
    if len(known) > 1 or len(first.results.retrained) > 1:
        drawn = _side_by_side(known, relation, folder, rule)
        views["arms"] = View(HEADINGS["arms"][0], stills=(drawn,) if drawn else ())
    if any(section.comparison is not None for section in known):
        views["alike"] = view("alike")
    return views


def _side_by_side(
    sections: Sequence[Section], relation: Mapping[str, Any], folder: Folder, rule: str
) -> Drawn | None:
    """One scatter per dense network of each study that has the criterion and the outcome."""
    shared = [
        (
            section.label
            if len(section.results.networks) == 1
            else f"{section.label} network {seed}",
            section.badge,
            one,
        )
        for section in sections
        for seed, one in section.results.retrained.items()
        if recorded_name(one, relation["criterion"]) in one.criteria
        and relation["metric"] in one.default_outcomes
    ]
    if len(shared) < 2:
        return None
    names = [f"{label} ({badge})" if badge else label for label, badge, _ in shared]
    return folder.draw(
        lambda: arms_figure(shared, relation, rule),
        f"{sections[0].summary['study']}-arms-{relation['metric']}",
        alt=f"{relation['criterion']} against {relation['outcome_name']} in {', '.join(names)}.",
        caption=f"{relation['criterion']} against {relation['outcome_name']}; a star has the "
        "lowest score.",
    )


def candidates_table(results: Results, relation: Mapping[str, Any], rule: str) -> TextTable:
    """The best candidates by outcome, of the first dense network: what each prunes and comes to."""
    one = next(iter(results.retrained.values()))
    outcome = one.outcome(relation["metric"], rule)
    table = one.points(recorded_name(one, relation["criterion"]), outcome.column, rule)
    best = table.sort_values("outcome", ascending=not outcome.higher_is_better, kind="stable")
    head = best.head(_ROWS)
    numbers = [[number(_finite(one), 4) for one in head[name]] for name in ("score", "outcome")]
    rows = tuple(zip(map(pruned_in_words, head["pruned"]), *numbers, strict=True))
    headings = (f"prunes (best {len(head)} of {len(table):,})", relation["criterion"], outcome.name)
    return TextTable(headings, headings, rows, texts=1)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
