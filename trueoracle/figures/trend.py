"""A coefficient against what was varied, such as tau against width, depth, data set or ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import entitle, plain

__all__ = ["Trend", "TrendData", "draw_trend", "trend_data"]

# Okabe and Ito's palette; the lines differ in their marks as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "oDs^vPX"
_CEILING = "#8C8C8C"
_LETTERS_AN_INCH = 13  # of a legend


@dataclass(frozen=True)
class Trend:
    """One line: ``x, y, low, high [n]``, the interval being from low to high."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class TrendData:
    """What the figure shows: its lines, and the ticks ``(position, label)`` of what was varied.

    ``ceilings`` are ``(position, coefficient)``, the coefficient being what retraining noise leaves
    to any criterion.
    """

    trends: tuple[Trend, ...]
    ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str
    title: str
    ceilings: tuple[tuple[float, float], ...] = ()


def trend_data(
    rows: Sequence[tuple[str, float | str, float, float, float]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    ceilings: Sequence[tuple[float | str, float]] = (),
) -> TrendData:
    """The values of the figure, from rows (line, value varied, coefficient, low, high).

    Numbers have their place on the axis; words are at equal distances in the order given. An
    undefined coefficient (NaN) makes a gap in its line. ``ceilings`` are (value varied, coefficient
    that a perfect criterion would reach), for values that have a row. Raises :class:`InputError`
    where there is no row.
    """
    if not rows:
        raise InputError("a trend needs at least one row")
    values = list(dict.fromkeys(row[1] for row in rows))
    numeric = all(isinstance(value, int | float) for value in values)
    place = {value: float(value) if numeric else float(i) for i, value in enumerate(values)}
    trends = []
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name]
        own.sort(key=lambda row: place[row[1]])
        x = np.array([place[row[1]] for row in own])
        y, low, high = (np.array([float(row[i]) for row in own]) for i in (2, 3, 4))
        trends.append(Trend(name, x, y, low, high))
    ticks = tuple((position, str(value)) for value, position in place.items())
    above = tuple((place[value], ceiling) for value, ceiling in dict.fromkeys(ceilings))
    return TrendData(tuple(trends), ticks, x_label, y_label, title, above)


def draw_trend(data: TrendData, size: tuple[float, float] = (5.0, 3.8)) -> Figure:
    """Draw the lines with their intervals as bars; ``size`` is in inches."""
    figure = new_figure(size)
    axes = figure.subplots()
    axes.axhline(0, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    places = sorted(position for position, _ in data.ticks)
    least = min((b - a for a, b in pairwise(places)), default=1.0)
    if data.ceilings:
        reach = 0.3 * least
        at, ceilings = np.array(sorted(data.ceilings)).T
        axes.hlines(
            ceilings, at - reach, at + reach, color=_CEILING, linewidth=2.2, label="noise ceiling",
            zorder=1.5,
        )  # fmt: skip
    for i, trend in enumerate(data.trends):
        # Lines are drawn a little apart, so that no bar hides another.
        aside = 0.06 * least * (i - (len(data.trends) - 1) / 2)
        # An interval need not include the coefficient itself.
        below, above = (np.maximum(d, 0) for d in (trend.y - trend.low, trend.high - trend.y))
        axes.errorbar(
            trend.x + aside, trend.y, yerr=np.nan_to_num(np.stack([below, above])),
            color=_COLOURS[i % len(_COLOURS)], marker=_MARKS[i % len(_MARKS)], markersize=6,
            linewidth=1.4, elinewidth=1.2, capsize=3, label=plain(trend.name), zorder=2,
        )  # fmt: skip
    axes.set_xticks([p for p, _ in data.ticks], [plain(label) for _, label in data.ticks])
    axes.set(xlabel=plain(data.x_label), ylabel=plain(data.y_label))
    entitle(figure, data.title)
    if len(data.trends) > 1 or data.ceilings:
        handles, labels = axes.get_legend_handles_labels()
        columns = int(_LETTERS_AN_INCH * size[0] / (6 + max(map(len, labels))))
        figure.legend(
            handles, labels, loc="outside lower left", ncols=min(max(columns, 1), 3),
            frameon=False, fontsize="small",
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    return figure
