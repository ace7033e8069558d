"""Criteria in order of how well they predict the outcome, below the ceiling of retraining noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trueoracle.analysis.numbers import number
from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import TICK, entitle, plain

__all__ = ["LadderColumn", "LadderData", "draw_ladder", "ladder_data"]

# Okabe and Ito's palette; certain values also differ from uncertain ones in their filling.
_GOOD, _BAD, _UNSURE = "#0072B2", "#D55E00", "#6B6B6B"
_CEILING, _BEYOND, _STRIPE = "#009E73", "0.9", "0.965"


@dataclass(frozen=True)
class LadderColumn:
    """One outcome: ``agreement, low, high [n]`` in the order of the rungs, NaN where unknown.

    ``sure [n]`` says which are certain not to be zero. ``ceiling`` is the agreement that retraining
    noise leaves to a perfect criterion, NaN where unknown.
    """

    outcome: str
    agreement: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sure: np.ndarray
    ceiling: float


@dataclass(frozen=True)
class LadderData:
    """What the ladder shows: criteria from the best down, and one column per outcome.

    ``marked`` are the criteria that stand out in bold.
    """

    criteria: tuple[str, ...]
    columns: tuple[LadderColumn, ...]
    marked: tuple[str, ...]
    title: str


def ladder_data(
    rows: Sequence[tuple[str, str, float, float, float, bool]],
    *,
    ceilings: Mapping[str, float] | None = None,
    marked: Sequence[str] = (),
    title: str = "",
) -> LadderData:
    """The values of the ladder, from rows (outcome, criterion, agreement, low, high, certain).

    Agreement is tau with its sign turned so that +1 is perfect. Criteria are in the order of their
    mean agreement over the outcomes; those without any come last. ``ceilings`` has the ceiling of
    each outcome where it is known. Raises :class:`InputError` where there is no row.
    """
    if not rows:
        raise InputError("a ladder needs at least one row")
    outcomes = list(dict.fromkeys(row[0] for row in rows))
    values = {(row[0], row[1]): row[2:] for row in rows}

    def mean(criterion: str) -> float:
        known = [values[key][0] for o in outcomes if (key := (o, criterion)) in values]
        finite = [value for value in known if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else -math.inf

    criteria = sorted(dict.fromkeys(row[1] for row in rows), key=mean, reverse=True)
    columns = []
    for outcome in outcomes:
        absent = (math.nan, math.nan, math.nan, False)
        cells = [values.get((outcome, criterion), absent) for criterion in criteria]
        agreement, low, high, certain = np.array(cells, dtype=np.float64).T
        ceiling = (ceilings or {}).get(outcome, math.nan)
        columns.append(LadderColumn(outcome, agreement, low, high, certain > 0, ceiling))
    return LadderData(tuple(criteria), tuple(columns), tuple(marked), title)


def draw_ladder(data: LadderData, size: tuple[float, float] | None = None) -> Figure:
    """Draw the ladder; ``size`` is in inches, by default as high as its rungs need.

    A filled dot is certain not to be zero. The range beyond the ceiling is shaded.
    """
    if size is None:
        longest = max(len(name) for name in data.criteria)
        width = 0.6 + 0.075 * min(longest, 40) + 3.6 * len(data.columns)
        size = (max(width, 5.0), 1.25 + 0.27 * len(data.criteria))
    figure = new_figure(size)
    every = figure.subplots(1, len(data.columns), sharey=True, squeeze=False)[0]
    least, most = _limits(data)
    for column, axes in zip(data.columns, every, strict=True):
        axes.set_xlim(least, most)
        _draw_column(axes, column, most)
        axes.set_title(plain(column.outcome), fontsize="medium", loc="left")
        axes.set_xlabel("agreement (τ, +1 is perfect)")
    first = every[0]
    first.set_yticks(range(len(data.criteria)), [plain(name, TICK) for name in data.criteria])
    for label, name in zip(first.get_yticklabels(), data.criteria, strict=True):
        label.set_fontweight("bold" if name in data.marked else "normal")
    first.set_ylim(len(data.criteria) - 0.4, -0.6)
    entitle(figure, data.title)
    return figure


def _limits(data: LadderData) -> tuple[float, float]:
    """Limits for all columns, so that lengths compare, with room for a number on the right."""
    known = [0.0]
    for column in data.columns:
        known += [*column.agreement, *column.low, *column.high, column.ceiling]
    finite = [value for value in known if math.isfinite(value)]
    least, most = min(finite), max(finite)
    room = max(most - least, 0.2)
    return least - 0.06 * room, most + 0.08 * room


def _draw_column(axes: Axes, column: LadderColumn, most: float) -> None:
    for place in range(0, len(column.agreement), 2):
        axes.axhspan(place - 0.5, place + 0.5, color=_STRIPE, linewidth=0, zorder=0)
    axes.axvline(0, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if math.isfinite(column.ceiling):
        axes.axvspan(column.ceiling, most, color=_BEYOND, linewidth=0, zorder=0.5)
        axes.axvline(column.ceiling, color=_CEILING, linewidth=1.6, zorder=1.5)
        axes.set_title(
            f"noise ceiling {number(column.ceiling, 2)}",
            fontsize="small",
            color="#00664B",
            loc="right",
        )
    for place, (value, low, high, sure) in enumerate(
        zip(column.agreement, column.low, column.high, column.sure, strict=True)
    ):
        if not math.isfinite(value):
            axes.text(0.0, place, "  not defined", va="center", fontsize="x-small", color=_UNSURE)
            continue
        colour = _UNSURE if not sure else _GOOD if value > 0 else _BAD
        if math.isfinite(low) and math.isfinite(high):
            axes.plot(
                [low, high], [place, place], color=colour, linewidth=1.6, zorder=2,
                solid_capstyle="round",
            )  # fmt: skip
        axes.plot(
            [value], [place], "o", markersize=6.5, color=colour, zorder=3, markeredgewidth=1.4,
            markerfacecolor=colour if sure else "white",
        )  # fmt: skip
        axes.annotate(
            number(value, 2), (1, place), xycoords=("axes fraction", "data"), xytext=(36, 0),
            textcoords="offset points", va="center", ha="right", fontsize="small", color=colour,
            annotation_clip=False,
        )  # fmt: skip
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
