"""Scatters side by side, one per study, all in one style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import (
    ScatterData,
    draw_points,
    entitle,
    plain,
    scatter_data,
    wrapped,
)

__all__ = ["PanelData", "draw_panel", "panel_data"]

_MOST_COLUMNS = 4
_LETTERS_AN_INCH = 17  # of a badge
_LINES = 3


@dataclass(frozen=True)
class PanelData:
    """What the panel shows: one scatter per study, in order, and the words that scatters share."""

    scatters: tuple[ScatterData, ...]
    x_label: str
    y_label: str
    title: str

    @property
    def columns(self) -> int:
        """The number of scatters in a row: at most four, with rows of about equal length."""
        rows = math.ceil(len(self.scatters) / _MOST_COLUMNS)
        return math.ceil(len(self.scatters) / rows)


def panel_data(
    points: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    higher_is_better: bool,
    x_label: str,
    y_label: str,
    title: str = "",
    tau_intervals: Mapping[str, tuple[float | None, float | None]] | None = None,
    badges: Mapping[str, str] | None = None,
) -> PanelData:
    """The values of the panel, from (title, scores ``[P]``, outcomes ``[P]``) of each study.

    ``tau_intervals`` maps titles to intervals, ``badges`` titles to what is said below a scatter.
    Raises :class:`InputError` where there is no study, or one without a finite score and outcome.
    """
    if not points:
        raise InputError("a panel needs at least one study")
    scatters = tuple(
        replace(
            scatter_data(
                scores,
                outcomes,
                higher_is_better=higher_is_better,
                x_label=(badges or {}).get(name, ""),
                y_label="",
                tau_interval=(tau_intervals or {}).get(name, (None, None)),
            ),
            title=name,
        )
        for name, scores, outcomes in points
    )
    return PanelData(scatters, x_label, y_label, title)


def draw_panel(
    data: PanelData, size: tuple[float, float] = (3.3, 2.9), *, equal_axes: bool = False
) -> Figure:
    """Draw the panel; ``size`` is that of one scatter, in inches.

    Each scatter has axes of its own unless ``equal_axes``.
    """
    columns = data.columns
    rows = math.ceil(len(data.scatters) / columns)
    figure = new_figure((size[0] * columns, size[1] * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=equal_axes, sharey=equal_axes)
    for place, axes in enumerate(grid.flat):
        if place >= len(data.scatters):
            axes.set_visible(False)
            continue
        one = data.scatters[place]
        draw_points(axes, one)
        axes.tick_params(labelsize="small")
        axes.set_title(plain(one.title), fontsize="small", fontweight="bold", loc="left")
        axes.set_title(one.note, fontsize="x-small", loc="right", linespacing=1.3)
        if one.x_label:
            words = wrapped(one.x_label, int(_LETTERS_AN_INCH * size[0]), _LINES)
            axes.set_xlabel("\n".join(words), fontsize="x-small")
    figure.supxlabel(plain(data.x_label), fontsize="medium")
    figure.supylabel(plain(data.y_label), fontsize="medium")
    entitle(figure, data.title)
    return figure
