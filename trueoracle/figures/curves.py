"""Learning curves: the spread of all candidates by epoch, and some of them as lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trueoracle.analysis.curves import Curves, spread
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import ANOMALY, CHOSEN, USUAL, entitle, plain

__all__ = ["CurvesData", "curves_data", "draw_curves"]


@dataclass(frozen=True)
class CurvesData:
    """What the figure shows: ``epochs [E]`` from 1 on, the ``spread [5, E]``, and named lines."""

    epochs: np.ndarray
    spread: np.ndarray
    lines: tuple[tuple[str, np.ndarray], ...]
    y_label: str
    title: str


def curves_data(
    curves: Curves, *, lines: Mapping[str, int], y_label: str, title: str = ""
) -> CurvesData:
    """The values: means over seeds; ``lines`` are rows of candidates by their label."""
    means = curves.mean
    named = tuple((label, means[row]) for label, row in lines.items())
    return CurvesData(np.array(curves.epochs) + 1, spread(means), named, y_label, title)


def draw_curves(data: CurvesData, size: tuple[float, float] = (6.4, 3.6)) -> Figure:
    """Draw the curves; ``size`` is in inches."""
    figure = new_figure(size)
    axes = figure.subplots()
    low, lower, middle, upper, high = data.spread
    axes.fill_between(data.epochs, low, high, color="0.88", linewidth=0, label="all candidates")
    axes.fill_between(data.epochs, lower, upper, color="0.75", linewidth=0, label="middle half")
    axes.plot(data.epochs, middle, color="0.45", linewidth=1, marker=".", label="median")
    for (label, values), colour in zip(data.lines, (CHOSEN, ANOMALY, USUAL), strict=False):
        axes.plot(data.epochs, values, color=colour, linewidth=1.6, marker=".", label=plain(label))
    axes.set(xlabel="epoch of retraining", ylabel=plain(data.y_label))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(fontsize="small", frameon=False)
    entitle(figure, data.title)
    return figure
