"""The report: figures, a summary and one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from trueoracle.analysis.numbers import ABSENT, many, mean_count, number, p_value, percent
from trueoracle.files import write_text
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import SHORT, Results
from trueoracle.record.runs import find_short
from trueoracle.report.drawings import (
    Drawn,
    Folder,
    agreement_figure,
    ladder_figure,
    ladder_in_words,
    networks_figures,
    panel_figure,
    scatter_figure,
    slug,
)
from trueoracle.report.summary import assess_together, cost_in_words, summarise
from trueoracle.report.table import (
    TextTable,
    differences_table,
    further_table,
    networks_table,
    partial_table,
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
    pruned_in_words,
    verdicts,
)
from trueoracle.run.progress import duration
from trueoracle.spec.scale import changes_in_words

__all__ = [
    "WrittenReport",
    "dense_facts",
    "headline_in_words",
    "render",
    "tables_of",
    "write_report",
]

_LARGEST_EXPONENT = 100.0

FEW = 4
"""The most criteria that all get a scatter; of more, only the best and the oracle get one."""

_LADDER = (
    "Agreement is τ with its sign turned so that +1 is perfect; criteria are in the order of its "
    f"mean over the outcomes. A filled dot is certain not to be zero: {CERTAIN}. Where the study "
    "does not say what candidates prune, none is."
)


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
    """A study or an arm as the page shows it: its summary, sentences, tables and figures.

    ``networks`` is the table of its dense networks, where there are several.
    """

    summary: dict[str, Any]
    relations: tuple[dict[str, Any], ...]
    ladder: Drawn | None
    networks: TextTable | None
    comparison: Comparison | None
    scatters: tuple[Drawn, ...]
    panels: tuple[Drawn, ...]


def write_report(
    results: Results, arms: list[Results], out: Path, rule: str = "last"
) -> WrittenReport:
    """Write ``report.html``, ``summary.json`` and ``figures/`` below ``out``.

    ``arms`` are other recorded variants of the study, shown beside it. Raises :class:`StoreError`
    where the report cannot be written.
    """
    folder = Folder(out / "figures")
    summaries, sections = [], []
    shorts = [find_short(one, (results, *arms)) for one in (results, *arms)]
    together = assess_together(list(zip((results, *arms), shorts, strict=True)), rule)
    for one, short, assessed in zip((results, *arms), shorts, together, strict=True):
        summary = summarise(one, rule, short, assessed)
        summaries.append(summary)
        sections.append(_section(one, summary, short, rule, folder))
    entries = [(_place(section, sections), r) for section in sections for r in section.relations]
    metrics = list(dict.fromkeys(relation["metric"] for _, relation in entries))
    # The entries of all arms are sorted together, since they share a table.
    entries.sort(key=lambda entry: (metrics.index(entry[1]["metric"]), *by_agreement(entry[1])))
    page, summary_path = out / "report.html", out / "summary.json"
    text = render(
        "page.html",
        main=summaries[0],
        summaries=summaries,
        sections=sections,
        verdicts=verdicts(summaries[0]),
        facts=dense_facts(summaries[0]),
        data=data_in_words(summaries[0]["data_facts"]),
        tables=tables_of(entries),
        intervals=_intervals([relation for _, relation in entries]),
    )
    write_text(page, text)
    write_text(summary_path, json.dumps(summaries, indent=2, allow_nan=False) + "\n")
    return WrittenReport(page, summary_path, tuple(folder.written), tuple(summaries))


def tables_of(
    entries: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]],
) -> list[tuple[str, TextTable, TextTable]]:
    """The tables of each outcome: its name, the numbers that matter, and the others.

    Entries are (words by heading, relation), one per row.
    """
    found = []
    for outcome in dict.fromkeys(relation["outcome_name"] for _, relation in entries):
        own = [entry for entry in entries if entry[1]["outcome_name"] == outcome]
        found.append((outcome, relations_table(own), further_table(own)))
    return found


def _section(
    results: Results, summary: dict[str, Any], short: Results | None, rule: str, folder: Folder
) -> Section:
    name = summary["study"]
    after = (summary["short_retraining"] or {"relations": []})["relations"]
    relations = best_first([*summary["relations"], *after])
    shown = results if short is None else results.with_short(short)
    ladder = None
    if relations:
        ladder = folder.draw(
            ladder_figure(summary, relations),
            f"{name}-criteria",
            alt=ladder_in_words(relations),
            caption=" ".join([_LADDER, *ceiling_sentences(summary)]),
        )
    scatters = []
    alone = _alone(summary["relations"])
    for relation in relations:
        if isinstance(shown, PooledResults):
            if (relation["criterion"], relation["metric"]) in alone:
                scatters += _networks(shown, summary, relation, rule, folder)
            continue
        if (
            relation["criterion"] != SHORT
            and (relation["criterion"], relation["metric"]) not in alone
        ):
            continue
        figure, spots = scatter_figure(shown, relation, rule)
        stem = f"{name}-{slug(relation['criterion'])}-{relation['metric']}"
        words = f"{relation['criterion']} against {relation['outcome_name']}: {relation['verdict']}"
        scatters.append(
            folder.draw(figure, stem, alt=words, caption=_caption(relation), spots=spots)
        )
    return Section(
        summary=summary,
        relations=tuple(relations),
        ladder=ladder,
        networks=networks_table(summary) if summary["networks"] and relations else None,
        comparison=_comparison(summary, folder),
        scatters=tuple(scatters),
        panels=tuple(_panels(results, summary, rule, folder)),
    )


def _networks(
    results: PooledResults,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> list[Drawn]:
    """One criterion against one outcome in every dense network."""
    forest, panel = networks_figures(results, summary, relation, rule)
    stem = f"{summary['study']}-{slug(relation['criterion'])}-{relation['metric']}"
    words = f"{relation['criterion']} against {relation['outcome_name']}"
    over = f"95% over {relation['interval_over']}" if relation["interval_over"] else "no interval"
    return [
        folder.draw(
            forest,
            f"{stem}-forest",
            alt=f"{words}, network by network: {relation['verdict']}",
            caption=f"{words} in each dense network, its own interval given that network; the "
            f"diamond is their mean ({over}).",
        ),
        folder.draw(
            panel,
            stem,
            alt=f"{words}, one scatter for each dense network.",
            caption=f"{words}, network by network; a star has the lowest score.",
        ),
    ]


def _place(section: Section, sections: Sequence[Section]) -> dict[str, str]:
    """The arm that a row of the table belongs to, where there are several."""
    if len(sections) == 1:
        return {}
    main, own = sections[0].summary["study"], section.summary["study"]
    return {"arm": ABSENT if own == main else own.removeprefix(main)}


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


def _panels(results: Results, summary: Mapping[str, Any], rule: str, folder: Folder) -> list[Drawn]:
    """One figure per outcome with all criteria, unless each has a scatter of its own."""
    drawn: list[Drawn] = []
    if isinstance(results, PooledResults):  # there, each network has a panel
        return drawn
    for metric in dict.fromkeys(r["metric"] for r in summary["relations"]):
        own = best_first([r for r in summary["relations"] if r["metric"] == metric])
        if len(own) > FEW:
            words = f"Every criterion against {own[0]['outcome_name']}, the best first"
            drawn.append(
                folder.draw(
                    panel_figure(results, own, metric, rule),
                    f"{summary['study']}-every-criterion-{metric}",
                    alt=f"{words}: {', '.join(r['criterion'] for r in own)}.",
                    caption=f"{words}; a star has the lowest score.",
                )
            )
    return drawn


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
            agreement_figure(alike, summary["title"]),
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


def render(template: str, **values: Any) -> str:
    """One of the templates with its values."""
    return _environment().get_template(template).render(**values)


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
        "p_value": p_value,
        "percent": percent,
        "duration": duration,
        "cost": cost_in_words,
    }
    return environment
