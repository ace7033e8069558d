"""How alike criteria order candidates: a heat map of tau, in the order of a dendrogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from trueoracle.analysis.numbers import number
from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import TICK, entitle, plain

__all__ = ["AgreementData", "agreement_data", "draw_agreement"]

# From Okabe and Ito's vermilion (opposite orders) over white to their blue (the same order).
_COLOURS = LinearSegmentedColormap.from_list("agreement", ["#D55E00", "#FFFFFF", "#0072B2"])
_MOST_NUMBERS = 14


@dataclass(frozen=True)
class AgreementData:
    """What the heat map shows: ``tau [n, n]`` among criteria, both in clustered order.

    ``branches`` are the joints of the dendrogram, the first one first: place and height of the left
    arm, of the joint, and of the right arm. Places count along the order. Empty without a
    dendrogram.
    """

    criteria: tuple[str, ...]
    tau: np.ndarray
    branches: tuple[tuple[float, float, float, float, float], ...]
    title: str


def agreement_data(
    criteria: Sequence[str],
    tau: Sequence[Sequence[float | None]],
    *,
    order: Sequence[int] | None = None,
    linkage: Sequence[Sequence[float]] | None = None,
    title: str = "",
) -> AgreementData:
    """The values of the heat map from ``tau [n, n]``; None and NaN are undefined.

    ``order`` holds the rows from the top down, ``linkage`` is scipy's ``[n - 1, 4]``. Raises
    :class:`InputError` where the shapes or the order do not fit the criteria.
    """
    count = len(criteria)
    values = np.array(tau, dtype=np.float64)
    if count < 2 or values.shape != (count, count):
        raise InputError(
            f"agreement needs two criteria or more and their square table, got {count} criteria "
            f"and a table of shape {list(values.shape)}"
        )
    rows = list(range(count)) if order is None else list(order)
    if sorted(rows) != list(range(count)):
        raise InputError(f"the order of {count} criteria must name each row once, got {rows}")
    if linkage is not None and np.shape(linkage) != (count - 1, 4):
        raise InputError(
            f"a linkage of {count} criteria has the shape {[count - 1, 4]}, got "
            f"{list(np.shape(linkage))}"
        )
    branches = () if linkage is None else _branches(linkage, rows)
    names = tuple(criteria[row] for row in rows)
    return AgreementData(names, values[np.ix_(rows, rows)], branches, title)


def _branches(
    linkage: Sequence[Sequence[float]], rows: Sequence[int]
) -> tuple[tuple[float, float, float, float, float], ...]:
    # A leaf's place is that in the order, a node's place the middle between its two arms.
    places = {row: float(place) for place, row in enumerate(rows)}
    heights = dict.fromkeys(places, 0.0)
    branches = []
    for joint, (one, other, height, *_) in enumerate(linkage, start=len(rows)):
        left, right = sorted((int(one), int(other)), key=places.__getitem__)
        branches.append((places[left], heights[left], float(height), places[right], heights[right]))
        places[joint], heights[joint] = (places[left] + places[right]) / 2, float(height)
    return tuple(branches)


def draw_agreement(data: AgreementData, size: tuple[float, float] | None = None) -> Figure:
    """Draw the heat map, with its dendrogram on the left; ``size`` is in inches.

    By default the figure is as large as its cells need. Up to 14 criteria have tau in the cells.
    """
    count = len(data.criteria)
    numbered = count <= _MOST_NUMBERS
    if size is None:
        side = max((0.46 if numbered else 0.27) * count, 1.6)
        names = 0.4 + 0.07 * min(max(map(len, data.criteria)), 40)
        size = (side + names + 1.9, side + names + 0.5)
    figure = new_figure(size)
    tree, axes = figure.subplots(1, 2, width_ratios=[0.9, max(count * 0.3, 2.0)], sharey=True)
    colours = _COLOURS.with_extremes(bad="0.85")
    shown = axes.imshow(
        np.ma.masked_invalid(data.tau), cmap=colours, vmin=-1, vmax=1, aspect="auto"
    )
    axes.set_xticks(range(count), [plain(name, TICK) for name in data.criteria], rotation=90)
    # The names of the rows go beside the map, where they do not hide the dendrogram.
    axes.set_yticks(range(count), [plain(name, TICK) for name in data.criteria])
    axes.tick_params(length=0, labelsize="small", labelleft=True)
    axes.spines[:].set_visible(False)
    if numbered:
        for (row, column), value in np.ndenumerate(data.tau):
            if math.isfinite(value):
                axes.text(
                    column, row, number(value, 2), ha="center", va="center", fontsize="x-small",
                    color="white" if abs(value) > 0.65 else "black",
                )  # fmt: skip
    tree.axis("off")
    for left, left_height, height, right, right_height in data.branches:
        tree.plot(
            [left_height, height, height, right_height], [left, left, right, right],
            color="0.35", linewidth=1.1,
        )  # fmt: skip
    if data.branches:
        tree.set_xlim(max(branch[2] for branch in data.branches) * 1.03 or 1.0, 0)
    bar = figure.colorbar(shown, ax=axes, shrink=min(1.0, 2.4 / size[1]), aspect=14)
    bar.set_label("Kendall's τ between scores", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)
    entitle(figure, data.title)
    return figure
