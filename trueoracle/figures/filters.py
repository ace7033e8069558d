"""Which filters matter: outcomes with and without each, in a sum of them, and of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from trueoracle.analysis.filters import FilterWorth
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import ANOMALY, TICK, USUAL, entitle, plain

__all__ = ["FiltersData", "draw_filters", "filters_data"]

_MOST_SHOWN = 60
_INCHES_A_LETTER = 0.075


@dataclass(frozen=True)
class FiltersData:
    """What the figure shows: the ``names [F]`` and worth of filters, and the figure's words."""

    names: tuple[str, ...]
    worth: FilterWorth
    higher_is_better: bool
    label: str
    title: str


def filters_data(
    worth: FilterWorth,
    names: Sequence[str],
    *,
    higher_is_better: bool,
    label: str,
    title: str = "",
) -> FiltersData:
    """The values; of very many filters, those that change the outcome most are shown."""
    if len(names) > _MOST_SHOWN:
        change = np.nan_to_num(np.abs(worth.pruned - worth.kept))
        rows = np.sort(np.argsort(-change, kind="stable")[:_MOST_SHOWN])
        columns = (worth.pruned[rows], worth.kept[rows], worth.additive[rows])
        worth = FilterWorth(*columns, pairs=None, mean=worth.mean)
        names = [names[row] for row in rows]
    return FiltersData(tuple(names), worth, higher_is_better, label, title)


def draw_filters(data: FiltersData) -> Figure:
    """Draw the filters as rows, and beside them the heat map where pairs are known."""
    count, worth = len(data.names), data.worth
    paired = worth.pairs is not None and bool(np.isfinite(worth.pairs).any())
    names = [plain(name, TICK) for name in data.names]
    room = _INCHES_A_LETTER * max(map(len, names), default=0)
    height = max(1.2 + 0.24 * count, 2.4 + room if paired else 0)
    figure = new_figure(((7.8 if paired else 4.4) + room, height))
    axes, *right = figure.subplots(1, 2 if paired else 1, squeeze=False)[0]
    rows = np.arange(count)
    axes.hlines(rows, worth.kept, worth.pruned, color="0.75", linewidth=1.2)
    axes.plot(worth.kept, rows, "o", mfc="white", mec=USUAL, ms=5, label="kept")
    axes.plot(worth.pruned, rows, "o", color=USUAL, ms=6, label="pruned")
    axes.plot(worth.fitted, rows, "x", color=ANOMALY, ms=5, label="in a sum over filters")
    axes.set_yticks(rows, names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(f"mean {plain(data.label)}")
    axes.legend(
        fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    for other in right:
        colours = "PuOr" if data.higher_is_better else "PuOr_r"
        picture = other.imshow(worth.pairs, cmap=colours)
        other.set_xticks(rows, names, rotation=90, fontsize="small")
        other.set_yticks([])
        figure.colorbar(picture, ax=other, label=f"both pruned: mean {plain(data.label)}")
    entitle(figure, data.title)
    return figure
