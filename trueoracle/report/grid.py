"""The report of a grid: a panel of scatters, tau against what is varied, and one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trueoracle.analysis.jackknife import NO_INTERVAL, Interval
from trueoracle.analysis.meta import Effect, effect, meta_analysis, slope_in
from trueoracle.analysis.numbers import many, number
from trueoracle.analysis.outcomes import check_rule, rule_in_words
from trueoracle.errors import InputError
from trueoracle.figures.panel import draw_panel, panel_data
from trueoracle.figures.trend import draw_trend, trend_data
from trueoracle.files import write_text
from trueoracle.record.results import Results
from trueoracle.report.drawings import Drawn, Folder, filter_names, forest_figure, slug
from trueoracle.report.headline import grid_headline
from trueoracle.report.linked import linked
from trueoracle.report.page import View, candidates_table
from trueoracle.report.rendering import HEADINGS, navigation, render
from trueoracle.report.sections import headline_in_words, tables_of
from trueoracle.report.share import recorded_name
from trueoracle.report.stills import FEW as FEW_STUDIES
from trueoracle.report.stills import left_out_in_words, stills_of_point
from trueoracle.report.summary import assess_together, summarise
from trueoracle.report.table import costs_table
from trueoracle.report.words import (
    FEW,
    grid_verdicts,
    kinds_in_words,
    latencies_in_words,
    meta_sentence,
    slope_sentence,
)
from trueoracle.spec.grid import Variant
from trueoracle.spec.scale import changes_in_words, scale_in_words, scale_of

__all__ = ["WrittenGrid", "summarise_grid", "write_grid_report"]


@dataclass(frozen=True)
class WrittenGrid:
    """The files that were written, and the summary of the whole grid."""

    page: Path
    summary_path: Path
    figures: tuple[Path, ...]
    summary: dict[str, Any]


def summarise_grid(
    points: Sequence[Variant], recorded: Mapping[str, Results], rule: str = "last"
) -> dict[str, Any]:
    """The summary of a grid, as far as it has come, as plain values.

    ``recorded`` holds the results of points by label. The summary has

    - ``points``: one entry per point, with its ``label``, ``values`` and ``summary`` (None where
      nothing is recorded);
    - ``meta``: one entry per criterion, outcome and kind of pruning with two points or more, with
      the fields of :class:`trueoracle.analysis.meta.MetaAnalysis`, and ``slopes`` against what
      makes the points harder: numbers on an axis, and the dense network's test loss (``by``, and
      the fields of :class:`trueoracle.analysis.meta.Slope`).
    """
    check_rule(rule)
    entries = []
    labels = [point.label for point in points if point.label in recorded]
    together = assess_together([(recorded[label], None) for label in labels], rule)
    assessed = dict(zip(labels, together, strict=True))
    for point in points:
        results = recorded.get(point.label)
        summary = None if results is None else summarise(results, rule, None, assessed[point.label])
        entries.append(
            {
                "label": point.label,
                "values": dict(point.values),
                "study": point.spec.name,
                "summary": summary,
            }
        )
    kinds = list(dict.fromkeys(point.spec.pruning.kind for point in points))
    first = points[0]
    known = next((one for point in points if (one := recorded.get(point.label))), None)
    axes = {axis: list(dict.fromkeys(p.values[axis] for p in points)) for axis in first.values}
    return {
        "grid": first.grid,
        "purpose": first.spec.purpose,
        "title": first.title,
        "scale": scale_of(first.spec),
        "scale_in_words": scale_in_words(*(point.spec for point in points)),
        "axes": axes,
        "outcome": rule,
        "outcome_in_words": "" if known is None else rule_in_words(rule, known.metrics),
        "interval": _interval_in_words(entries),
        "kinds": kinds,
        "kinds_in_words": kinds_in_words(kinds),
        "points": entries,
        "meta": _meta(entries),
    }


def _relations_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (entry["summary"] or {"relations": []})["relations"]
    return found


def _interval_in_words(entries: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals of tau are over, point by point; empty where there are none."""
    over = dict.fromkeys(
        relation["interval_over"]
        for entry in entries
        for relation in _relations_of(entry)
        if relation["interval_over"]
    )
    return f"95% over {'; or '.join(over)}" if over else ""


def _meta(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, str], list[_Row]] = {}
    for entry in entries:
        for label, network in _networks_of(entry):
            for relation in network["relations"]:
                tau, error = relation["kendall_tau"], relation["standard_error"]
                if tau is None:
                    continue
                ends = (relation["kendall_low"], relation["kendall_high"])
                around = NO_INTERVAL if None in ends else Interval(*ends)
                found = effect(label, tau, relation["n"], error, around, _cluster(network))
                if found is not None:
                    key = (relation["criterion"], relation["metric"], network["kind"])
                    rows.setdefault(key, []).append(_Row(entry, network, found))
    made = []
    for (criterion, metric, kind), several in rows.items():
        if len(several) > 1:
            about = {"criterion": criterion, "metric": metric, "kind": kind}
            analysed = meta_analysis([one.effect for one in several]).as_dict()
            made.append({**about, **analysed, "slopes": _slopes(several)})
    return made


@dataclass(frozen=True)
class _Row:
    """The result of one criterion in one dense network of a point."""

    entry: Mapping[str, Any]
    network: Mapping[str, Any]
    effect: Effect


def _networks_of(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The summaries of a point's dense networks, each with a label."""
    summary, label = entry["summary"], entry["label"]
    if summary is None:
        return []
    several = [(f"{label}, network {one['dense_seeds'][0]}", one) for one in summary["networks"]]
    return several or [(label, summary)]


def _cluster(network: Mapping[str, Any]) -> str | None:
    """The dense network and its data, which several studies can share; None where unknown."""
    weights = network["dense"].get("sha256")
    return None if weights is None else f"{weights} {network['data']}"


def _slopes(found: Sequence[_Row]) -> list[dict[str, Any]]:
    """Tau against every axis of numbers, and against how hard the task is for the dense network."""
    effects = [one.effect for one in found]
    measures = {
        axis: [one.entry["values"][axis] for one in found] for axis in found[0].entry["values"]
    }
    loss = found[0].network["metrics"][0]
    measures[f"dense test {loss['label']}"] = [
        one.network["dense"].get(f"test_{loss['name']}") for one in found
    ]
    slopes = []
    for by, values in measures.items():
        if not all(isinstance(value, int | float) for value in values):
            continue
        if (slope := slope_in(effects, values)) is not None:
            slopes.append({"by": by, **slope.as_dict()})
    return slopes


def write_grid_report(
    points: Sequence[Variant], recorded: Mapping[str, Results], out: Path, rule: str = "last"
) -> WrittenGrid:
    """Write ``report.html``, ``summary.json`` and ``figures/`` of a grid below ``out``.

    Raises :class:`InputError` where none of its points has retrained a network, and
    :class:`StoreError` where it cannot be written.
    """
    summary = summarise_grid(points, recorded, rule)
    found = [
        (entry, relation)
        for entry in summary["points"]
        for relation in (entry["summary"] or {"relations": []})["relations"]
    ]
    if not found:
        raise InputError(f"{summary['grid']}: no point of the grid has retrained a network yet")
    folder = Folder(out / "figures")
    text = grid_page(summary, recorded, folder, rule)
    page, summary_path = out / "report.html", out / "summary.json"
    write_text(page, text)
    write_text(summary_path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return WrittenGrid(page, summary_path, tuple(folder.written), summary)


def grid_page(
    summary: Mapping[str, Any], recorded: Mapping[str, Results], folder: Folder, rule: str
) -> str:
    """The page of a grid of which some point has retrained a network."""
    found = [
        (entry, relation)
        for entry in summary["points"]
        for relation in (entry["summary"] or {"relations": []})["relations"]
    ]
    names = {(r["criterion"], r["metric"]): (r["score_name"], r["outcome_name"]) for _, r in found}
    signs = {(r["criterion"], r["metric"]): r["sign"] for _, r in found}
    criteria = list(dict.fromkeys(criterion for criterion, _ in names))
    shown = criteria if len(criteria) <= FEW or "oracle" not in criteria else ["oracle"]
    forests, panels = (
        _forests(summary, names, signs, folder),
        _panels(found, recorded, summary, folder),
    )
    entries = [entry for entry in summary["points"] if entry["summary"]]
    badges = {entry["label"]: changes_in_words(entry["summary"]["changed"]) for entry in entries}
    first = next(entry for entry in entries if entry["summary"]["relations"])
    stills = _stills_of_points(entries, recorded, summary["outcome"], folder)
    note = left_out_in_words(sum(bool(one["summary"]["relations"]) for one in entries))
    filters = any(filter_names(n) for one in recorded.values() for n in one.retrained.values())
    views = {
        "trend": View(HEADINGS["trend"][0], stills=tuple(_trends(found, summary, folder)[:1])),
        "forest": View(
            HEADINGS["forest"][0],
            stills=tuple(drawn for criterion, drawn in forests if criterion in shown)[:1],
            intro="A random-effects meta-analysis, which allows for studies that differ by more "
            "than chance; the diamond is their mean, each weighted by how precise it is. Studies "
            "of one dense network count as one.",
        ),
        "arms": View(
            HEADINGS["arms"][0],
            stills=tuple(drawn for criterion, drawn in panels if criterion in shown)[:1],
        ),
        "candidates": View(
            HEADINGS["candidates"][0],
            table=candidates_table(
                recorded[first["label"]], first["summary"]["relations"][0], summary["outcome"]
            ),
        ),
        "picked": View(HEADINGS["picked"][0]),
        **{
            name: View(HEADINGS[name][0], stills=stills.get(name, ()), note=note)
            for name in ("scatter", "ladder", "curves", *(["filters"] if filters else []))
        },
    }
    if not summary["meta"]:
        del views["forest"]
    return render(
        "grid.html",
        title=summary["title"],
        badge="; ".join(dict.fromkeys(filter(None, [summary["scale_in_words"], *badges.values()]))),
        headline=grid_headline(summary),
        conditions=_conditions(summary, entries),
        nav=navigation({"found", "numbers", "costs", "glossary", "provenance", *views}),
        study_control="study",
        version=None,
        views=views,
        summary=summary,
        verdicts=grid_verdicts(summary),
        slopes=[
            slope_sentence(slope, *names[meta["criterion"], meta["metric"]])
            for meta in summary["meta"]
            if meta["criterion"] in shown
            for slope in meta["slopes"]
        ],
        tables=tables_of(
            [
                (
                    {axis: str(value) for axis, value in entry["values"].items()}
                    | ({"changed": badges[entry["label"]]} if any(badges.values()) else {}),
                    entry["label"],
                    relation,
                )
                for entry, relation in found
            ]
        ),
        dense={entry["label"]: headline_in_words(entry["summary"]) for entry in entries},
        costs=costs_table([(entry["label"], entry["summary"]) for entry in entries]),
        latencies=latencies_in_words([(entry["label"], entry["summary"]) for entry in entries]),
        data=linked(
            [(recorded[e["label"]], e["summary"], e["label"], badges[e["label"]]) for e in entries],
            rule,
        )
        | {"grid": _drawn_from(summary, found, names, signs)},
    )


def _stills_of_points(
    entries: Sequence[Mapping[str, Any]],
    recorded: Mapping[str, Results],
    rule: str,
    folder: Folder,
) -> dict[str, tuple[Drawn, ...]]:
    """The pictures of the first points by the id of their view; all points are side by side."""
    found: dict[str, list[Drawn]] = {}
    for entry in [one for one in entries if one["summary"]["relations"]][:FEW_STUDIES]:
        summary, results = entry["summary"], recorded[entry["label"]]
        shown = stills_of_point(results, summary, rule, folder)
        for view, several in shown.items():
            found.setdefault(view, []).extend(one.of({"point": entry["label"]}) for one in several)
    return {view: tuple(several) for view, several in found.items()}


def _figure_title(summary: Mapping[str, Any]) -> str:
    """The title of a grid's figures, which names changed fields on a second line."""
    known = [entry["summary"] for entry in summary["points"] if entry["summary"]]
    changes = dict.fromkeys(changes_in_words(one["changed"]) for one in known)
    return "\n".join(filter(None, (summary["title"], "; ".join(filter(None, changes)))))


def _conditions(summary: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    axes = ", ".join(
        f"{axis} {', '.join(map(str, values))}" for axis, values in summary["axes"].items()
    )
    over = f"; intervals: {summary['interval']}" if summary["interval"] else ""
    return (
        f"Holds for {axes}: {len(entries)} of {many(len(summary['points']), 'study', 'studies')} "
        f"recorded; outcome at the {summary['outcome_in_words']}{over}."
    )


def _drawn_from(
    summary: Mapping[str, Any],
    found: Found,
    names: Mapping[tuple[str, str], tuple[str, str]],
    signs: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    """What the trend and the forests of the page are drawn from: agreement, +1 is perfect."""
    known = [e for e in summary["points"] if e["summary"] and e["summary"]["relations"]]
    place = {entry["label"]: number for number, entry in enumerate(known)}
    trend = [
        {
            "at": _place(entry)[0],
            "label": entry["label"],
            "study": place[entry["label"]],
            "line": ", ".join(f"{a} {v}" for a, v in list(entry["values"].items())[1:]),
            "criterion": relation["criterion"],
            "outcome": relation["metric"],
            "agreement": relation["agreement"],
            "low": relation["agreement_low"],
            "high": relation["agreement_high"],
            "certain": bool(relation["certain"]),
            "answer": relation["answer"],
            "ceiling": relation.get("ceiling"),
        }
        for entry, relation in found
    ]
    meta = []
    for one in summary["meta"]:
        key = one["criterion"], one["metric"]
        kind = one["kind"] if len(summary["kinds"]) > 1 else ""
        meta.append(
            {
                "criterion": key[0],
                "outcome": key[1],
                "words": meta_sentence(one, *names[key], kind=kind, sign=signs[key]),
                **_turned(one, signs[key]),
                "studies": [
                    {"label": study["label"], **_turned(study, signs[key])}
                    for study in one["studies"]
                ],
            }
        )
    return {"axis": next(iter(summary["axes"])), "trend": trend, "meta": meta}


def _turned(entry: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Tau and its interval with the sign that makes +1 perfect."""
    tau, ends = entry["tau"], [entry["low"], entry["high"]]
    low, high = [None, None] if None in ends else sorted(sign * end for end in ends)
    return {"agreement": None if tau is None else sign * tau, "low": low, "high": high}


Found = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Entries of points, each with one of its relations."""


def _trends(found: Found, summary: Mapping[str, Any], folder: Folder) -> list[Drawn]:
    """Tau against the first of the axes, one figure per outcome."""
    drawn: list[Drawn | None] = []
    axis = next(iter(summary["axes"]))
    bars = f"; bars: {summary['interval']}" if summary["interval"] else ""
    for column in dict.fromkeys(relation["metric"] for _, relation in found):
        own = [(entry, relation) for entry, relation in found if relation["metric"] == column]
        outcome = own[0][1]["outcome_name"]
        ceilings = [
            (_place(entry)[0], relation["sign"] * relation["ceiling"])  # raw, as tau beside it is
            for entry, relation in own
            if relation.get("ceiling") is not None
        ]
        trend = trend_data(
            [(_line(entry, relation), *_place(entry), *_tau(relation)) for entry, relation in own],
            x_label=axis,
            y_label=f"Kendall's τ with {outcome}",
            title=_figure_title(summary),
            ceilings=ceilings,
        )
        values = ", ".join(
            f"{_line(entry, relation)} at {_place(entry)[0]} {number(relation['kendall_tau'], 2)}"
            for entry, relation in own
        )
        drawn.append(
            folder.draw(
                partial(draw_trend, trend),
                f"{summary['grid']}-tau-{column}",
                alt=f"Kendall's τ with {outcome} against {axis}: {values}.",
                caption=f"Kendall's τ against {axis}{bars}."
                + (" The grey line is the ceiling that noise leaves." if ceilings else ""),
            )
        )
    return [one for one in drawn if one is not None]


def _forests(
    summary: Mapping[str, Any],
    names: Mapping[tuple[str, str], tuple[str, str]],
    signs: Mapping[tuple[str, str], int],
    folder: Folder,
) -> list[tuple[str, Drawn]]:
    """One forest per criterion and outcome, with the criterion."""
    drawn: list[tuple[str, Drawn | None]] = []
    for meta in summary.get("meta") or []:
        criterion, metric = meta["criterion"], meta["metric"]
        score, outcome = names[criterion, metric]
        stem, named = f"{summary['grid']}-{slug(criterion)}-{metric}", score
        if len(summary["kinds"]) > 1:
            stem, named = f"{stem}-{slug(meta['kind'])}", f"{score} ({meta['kind']})"
        title = _figure_title(summary)
        figure = partial(forest_figure, meta, score=named, outcome=outcome, title=title)
        stem += "-forest"
        values = ", ".join(f"{one['label']} {number(one['tau'], 2)}" for one in meta["studies"])
        words = meta_sentence(meta, score, outcome, sign=signs[criterion, metric])
        alt = f"Forest plot of Kendall's τ of {score} and {outcome}: {values}. {words}"
        drawn.append((criterion, folder.draw(figure, stem, alt=alt)))
    return _known(drawn)


def _known(drawn: Sequence[tuple[str, Drawn | None]]) -> list[tuple[str, Drawn]]:
    return [(criterion, one) for criterion, one in drawn if one is not None]


def _panels(
    found: Found, recorded: Mapping[str, Results], summary: Mapping[str, Any], folder: Folder
) -> list[tuple[str, Drawn]]:
    """One panel of scatters per criterion and outcome, with the criterion."""
    drawn: list[tuple[str, Drawn | None]] = []
    both: dict[tuple[str, str], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for entry, relation in found:
        both.setdefault((relation["criterion"], relation["metric"]), []).append((entry, relation))
    for (criterion, column), own in both.items():
        points, intervals = [], {}
        for entry, _ in own:
            networks = recorded[entry["label"]].networks
            for label, network in _networks_of(entry):
                for one in network["relations"]:
                    if (one["criterion"], one["metric"]) == (criterion, column):
                        results = networks[network["dense_seeds"][0]]
                        table = results.points(
                            recorded_name(results, criterion), column, summary["outcome"]
                        )
                        columns = table["score"].to_numpy(), table["outcome"].to_numpy()
                        points.append((label, *columns))
                        intervals[label] = one["kendall_low"], one["kendall_high"]
        first, first_relation = own[0]
        outcome = recorded[first["label"]].outcome(column, summary["outcome"])
        panel = panel_data(
            points,
            higher_is_better=outcome.higher_is_better,
            x_label=first_relation["score_name"],
            y_label=outcome.axis,
            title=_figure_title(summary),
            tau_intervals=intervals,
        )
        words = f"{first_relation['score_name']} against {outcome.name}"
        words = f"{words[0].upper()}{words[1:]}"
        one = folder.draw(
            partial(draw_panel, panel, equal_axes=True),
            f"{summary['grid']}-{slug(criterion)}-{column}",
            alt=f"{words}, one scatter per study: {', '.join(intervals)}.",
            caption=f"{words}; a star has the lowest score.",
        )
        drawn.append((criterion, one))
    return _known(drawn)


def _line(entry: Mapping[str, Any], relation: Mapping[str, Any]) -> str:
    """The line that a value belongs to, named by the criterion and all axes but the first."""
    others = [f"{axis} {value}" for axis, value in list(entry["values"].items())[1:]]
    return ", ".join([relation["score_name"], *others])


def _place(entry: Mapping[str, Any]) -> tuple[Any]:
    return (next(iter(entry["values"].values())),)


def _tau(relation: Mapping[str, Any]) -> tuple[float, float, float]:
    nan = float("nan")
    names = ("kendall_tau", "kendall_low", "kendall_high")
    tau, low, high = (nan if relation[n] is None else float(relation[n]) for n in names)
    return tau, low, high
