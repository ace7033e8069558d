"""The figures of a report, from its summary and the recorded tables."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from trueoracle.analysis.curves import learning_curves
from trueoracle.analysis.filters import filter_worth
from trueoracle.analysis.numbers import number
from trueoracle.analysis.several import OwnAnalysis
from trueoracle.errors import InputError
from trueoracle.figures.agreement import AgreementData, agreement_data, draw_agreement
from trueoracle.figures.curves import curves_data, draw_curves
from trueoracle.figures.filters import draw_filters, filters_data
from trueoracle.figures.forest import draw_forest, forest_data
from trueoracle.figures.ladder import LadderData, draw_ladder, ladder_data
from trueoracle.figures.panel import draw_panel, panel_data
from trueoracle.figures.scatter import FORMATS, ScatterData, draw_scatter, save_figure, scatter_data
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import Results
from trueoracle.report.share import recorded_name, without_places
from trueoracle.report.words import best_first
from trueoracle.spec.scale import titled

__all__ = [
    "Drawn",
    "Folder",
    "agreement_figure",
    "agreement_values",
    "analysis_figure",
    "arms_figure",
    "filter_names",
    "forest_figure",
    "ladder_figure",
    "ladder_in_words",
    "ladder_values",
    "learning_figure",
    "networks_forest",
    "networks_panel",
    "panel_figure",
    "points_of",
    "scatter_figure",
    "scatter_values",
    "slug",
    "title_of",
    "worth_figure",
]

_MOST_SVG = 150_000
"""The most bytes of a figure that a page holds as SVG; a larger one becomes a PNG."""

_LONGEST_NAME = 60
"""The most characters of a criterion's name in a file's name."""


@dataclass(frozen=True)
class Drawn:
    """A figure in a page: the source of its picture, its content in words, and its caption."""

    source: str
    alt: str
    caption: str

    def of(self, where: Mapping[str, str]) -> Drawn:
        """The same figure, whose words begin with what it is of (words by heading, maybe none)."""
        before = "".join(f"{words}: " for words in where.values())
        return replace(self, alt=f"{before}{self.alt}", caption=f"{before}{self.caption}")


class Folder:
    """The folder of a report's figures, and the files written so far; without one, none is."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.written: list[Path] = []
        self._stems: dict[str, int] = {}

    def draw(
        self, figure: Callable[[], Figure], stem: str, *, alt: str, caption: str = ""
    ) -> Drawn | None:
        """Write a figure in all formats; raises :class:`StoreError` where that fails.

        A second figure of one stem has a number behind it: none is written over another.
        """
        if self.folder is None:
            return None
        count = self._stems[stem] = self._stems.get(stem, 0) + 1
        stem = stem if count == 1 else f"{stem}-{count}"
        written = save_figure(figure(), self.folder / stem, FORMATS)
        self.written += written
        by_form = {path.suffix[1:]: path for path in written}
        return Drawn(_source(by_form["svg"], by_form["png"]), alt, caption)


def _source(svg: Path, png: Path) -> str:
    """A figure as the source of a picture.

    The source is a data URI, since the ids of an inline SVG could clash with another figure's.
    """
    slim = _slim(svg.read_text(encoding="utf-8")).encode()
    if len(slim) <= _MOST_SVG:
        return f"data:image/svg+xml;base64,{base64.b64encode(slim).decode()}"
    with Image.open(png) as picture:
        half = picture.convert("RGB").reduce(2).quantize(32)
    held = io.BytesIO()
    half.save(held, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def _slim(svg: str) -> str:
    """The same picture in half the bytes: two decimals, and each repeated style written once."""
    # Every text names a long list of fonts.
    fonts = "font-family: 'DejaVu Sans', Verdana, sans-serif"
    svg = re.sub(r"font-family: 'DejaVu Sans'[^;\"]*", fonts, svg)
    # Only coordinates are shortened, never the text between the tags.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"\n +", "\n", svg)
    often = [style for style, n in Counter(re.findall(r' style="([^"]*)"', svg)).items() if n > 4]
    for place, style in enumerate(often):
        svg = svg.replace(f' style="{style}"', f' class="s{place}"')
    rules = "".join(f".s{place}{{{style}}}" for place, style in enumerate(often))
    return svg.replace("</style>", f"{rules}</style>", 1)


def title_of(results: Results) -> str:
    """The title of a study's figures, which names changed fields on a second line."""
    title = titled(results.spec)
    return str(without_places(title)) if results.is_shared else title


def ladder_figure(results: Results, relations: Sequence[Mapping[str, Any]]) -> Figure:
    """The criteria of one study in order of their agreement, one column per outcome."""
    return draw_ladder(ladder_values(relations, ["oracle"], title_of(results)))


def ladder_values(
    relations: Sequence[Mapping[str, Any]], marked: Sequence[str] = (), title: str = ""
) -> LadderData:
    """What :func:`ladder_figure` draws, with some criteria marked."""
    return ladder_data(
        [(r["outcome_name"], r["criterion"], *_agreement(r)) for r in relations],
        ceilings={r["outcome_name"]: c for r in relations if (c := r.get("ceiling")) is not None},
        marked=marked,
        title=title,
    )


def ladder_in_words(relations: Sequence[Mapping[str, Any]]) -> str:
    """The ladder in words, for readers who cannot see it."""
    said = []
    for outcome in dict.fromkeys(r["outcome_name"] for r in relations):
        own = best_first([r for r in relations if r["outcome_name"] == outcome])
        rungs = ", ".join(f"{r['criterion']} {number(r['agreement'], 2)}" for r in own)
        known = next((r for r in own if r.get("ceiling") is not None), None)
        above = ""
        if known is not None:
            noise = "noise" if known.get("ceiling_of_examples") else "retraining noise"
            above = f"; ceiling of {noise} {number(known['ceiling'], 2)}"
        said.append(f"Agreement with {outcome}: {rungs}{above}.")
    return " ".join(said)


def _agreement(relation: Mapping[str, Any]) -> tuple[float, float, float, bool]:
    """Agreement, its interval, and whether it is certain not to be zero."""
    names = ("agreement", "agreement_low", "agreement_high")
    agreement, low, high = (
        math.nan if relation.get(name) is None else float(relation[name]) for name in names
    )
    return agreement, low, high, bool(relation.get("certain"))


def agreement_figure(agreement: Mapping[str, Any], title: str) -> Figure:
    """How alike the criteria order the candidates."""
    return draw_agreement(agreement_values(agreement, title))


def agreement_values(agreement: Mapping[str, Any], title: str = "") -> AgreementData:
    """What :func:`agreement_figure` draws."""
    criteria = list(agreement["criteria"])
    order = [
        criteria.index(one) if isinstance(one, str) else int(one)
        for one in agreement.get("order") or criteria
    ]
    return agreement_data(
        criteria, agreement["tau"], order=order, linkage=agreement.get("linkage"), title=title
    )


def scatter_figure(results: Results, relation: Mapping[str, Any], rule: str, title: str) -> Figure:
    """One criterion against one outcome."""
    points = points_of(results, relation, rule)
    return draw_scatter(scatter_values(results, relation, rule, points, title))


def points_of(results: Results, relation: Mapping[str, Any], rule: str) -> pd.DataFrame:
    """The candidates with their scores and outcomes of one relation."""
    name = recorded_name(results, relation["criterion"])
    return results.points(name, relation["metric"], rule)


def scatter_values(
    results: Results,
    relation: Mapping[str, Any],
    rule: str,
    points: pd.DataFrame,
    title: str = "",
) -> ScatterData:
    """What :func:`scatter_figure` draws."""
    outcome = results.outcome(relation["metric"], rule)
    return scatter_data(
        points["score"].to_numpy(),
        points["outcome"].to_numpy(),
        higher_is_better=outcome.higher_is_better,
        higher_score_is_better=relation["higher_score_is_better"],
        x_label=relation["score_name"],
        y_label=outcome.axis,
        title=title,
        tau_interval=(relation.get("kendall_low"), relation.get("kendall_high")),
        ceiling=relation.get("ceiling"),
    )


def panel_figure(
    results: Results, relations: Sequence[Mapping[str, Any]], column: str, rule: str
) -> Figure:
    """Every criterion against one outcome, in the order given."""
    outcome, points = results.outcome(column, rule), []
    for relation in relations:
        table = points_of(results, relation, rule)
        columns = (table["score"].to_numpy(), table["outcome"].to_numpy())
        points.append((relation["criterion"], *columns))
    data = panel_data(
        points,
        higher_is_better=outcome.higher_is_better,
        x_label="score before retraining",
        y_label=outcome.axis,
        title=title_of(results),
        tau_intervals={
            r["criterion"]: (r.get("kendall_low"), r.get("kendall_high")) for r in relations
        },
    )
    return draw_panel(data)


def arms_figure(
    studies: Sequence[tuple[str, str, Results]], relation: Mapping[str, Any], rule: str
) -> Figure:
    """One criterion against one outcome in dense networks of studies, on equal axes.

    ``studies`` are (label, badge, results) of each.
    """
    points = []
    for label, _, results in studies:
        table = points_of(results, relation, rule)
        points.append((label, table["score"].to_numpy(), table["outcome"].to_numpy()))
    outcome = studies[0][2].outcome(relation["metric"], rule)
    data = panel_data(
        points,
        higher_is_better=outcome.higher_is_better,
        x_label=relation["score_name"],
        y_label=outcome.axis,
        badges={label: badge for label, badge, _ in studies},
    )
    return draw_panel(data, equal_axes=True)


def learning_figure(results: Results, relation: Mapping[str, Any], rule: str, title: str) -> Figure:
    """The learning curves of one dense network's candidates, and of the chosen one."""
    column = relation["metric"]
    curves = learning_curves(results.outcomes, results.candidates["candidate"], column)
    chosen = relation["chosen"]
    lines = {} if chosen is None else {f"chosen by {relation['criterion']}": chosen}
    axis = results.outcome(column, rule).label
    return draw_curves(curves_data(curves, lines=lines, y_label=axis, title=title))


def worth_figure(results: Results, relation: Mapping[str, Any], rule: str, title: str) -> Figure:
    """Which filters matter in one dense network, of a study whose candidates prune filters."""
    outcome = results.outcome(relation["metric"], rule)
    worth = filter_worth(results.table(outcome.column, rule, []))
    if worth is None:
        raise InputError(f"{results.spec.name} prunes no filters")
    data = filters_data(
        worth,
        filter_names(results),
        higher_is_better=outcome.higher_is_better,
        label=outcome.axis,
        title=title,
    )
    return draw_filters(data)


def filter_names(results: Results) -> list[str]:
    """The filters that candidates prune, in the order of the columns of ``CandidateTable.pruned``.

    Empty where single weights are pruned.
    """
    if results.table().pruned is None:
        return []
    ways = results.candidates["pruned"].tolist()
    numbers = {name: sorted({one for way in ways for one in way[name]}) for name in ways[0]}
    return [f"{name} {one}" for name, own in numbers.items() for one in own]


def forest_figure(
    meta: Mapping[str, Any], *, score: str, outcome: str, title: str, whole: str = "all studies"
) -> Figure:
    """One criterion's tau in every study of a grid, and over all of them."""
    first, *below = title.splitlines()
    title = "\n".join([f"{first}: {score}", *below])
    data = forest_data(meta, x_label=f"Kendall's τ with {outcome}", title=title, whole=whole)
    return draw_forest(data)


def networks_forest(
    results: PooledResults, summary: Mapping[str, Any], relation: Mapping[str, Any]
) -> Figure:
    """One criterion's tau in every dense network of a study, and over all of them."""
    found = _by_network(summary, relation)
    studies = [
        {
            "label": label,
            "tau": one["kendall_tau"],
            "low": one["kendall_low"],
            "high": one["kendall_high"],
            "weight": 1 / len(found),
        }
        for label, one in found.items()
    ]
    pooled = {end: relation[f"kendall_{end}"] for end in ("tau", "low", "high")}
    return forest_figure(
        {"studies": studies, **pooled},
        score=relation["score_name"],
        outcome=relation["outcome_name"],
        title=title_of(results),
        whole="all networks",
    )


def networks_panel(
    results: PooledResults, summary: Mapping[str, Any], relation: Mapping[str, Any], rule: str
) -> Figure:
    """One criterion against one outcome in every dense network of a study."""
    outcome, points = results.outcome(relation["metric"], rule), []
    for seed, one in results.retrained.items():
        table = points_of(one, relation, rule)
        columns = (table["score"].to_numpy(), table["outcome"].to_numpy())
        points.append((_network(seed), *columns))
    data = panel_data(
        points,
        higher_is_better=outcome.higher_is_better,
        x_label=relation["score_name"],
        y_label=outcome.axis,
        title=title_of(results),
        tau_intervals={
            label: (one["kendall_low"], one["kendall_high"])
            for label, one in _by_network(summary, relation).items()
        },
    )
    return draw_panel(data)


def _by_network(
    summary: Mapping[str, Any], relation: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The same relation in each dense network, by the network's name."""
    wanted = (relation["criterion"], relation["metric"])
    return {
        _network(network["dense_seeds"][0]): one
        for network in summary["networks"]
        for one in network["relations"]
        if (one["criterion"], one["metric"]) == wanted
    }


def _network(seed: int) -> str:
    return f"dense network {seed}"


def analysis_figure(found: OwnAnalysis) -> Figure:
    """The first score in a user's own tables: a forest for several studies, a scatter for one."""
    if found.meta:
        first = found.meta[0]
        title = f"{len(first['studies'])} studies"
        return forest_figure(first, score=first["criterion"], outcome=found.outcome, title=title)
    one = next(iter(found.tables.values()))
    name, scores = next(iter(one.scores.items()))
    data = scatter_data(
        scores,
        one.outcome,
        higher_is_better=one.higher_is_better,
        x_label=name,
        y_label=found.outcome,
    )
    return draw_scatter(data)


def slug(criterion: str) -> str:
    """A criterion's name as part of a file's name, cut to a length that file systems allow."""
    text = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in criterion)
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[: _LONGEST_NAME - 9]}-{hashlib.sha256(criterion.encode()).hexdigest()[:8]}"
