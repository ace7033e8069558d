"""A forest plot: tau of several studies, and the random-effects meta-analysis of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trueoracle.analysis.numbers import interval, number, p_value, percent
from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import TICK, entitle, plain

__all__ = ["ForestData", "draw_forest", "forest_data"]

_STUDY, _POOLED, _PREDICTION = "#0072B2", "#000000", "#D55E00"


@dataclass(frozen=True)
class ForestData:
    """What the plot shows: ``tau, low, high [n]`` of each study, and its ``share [n]`` of weight.

    ``pooled`` is tau over all studies with its interval. ``prediction`` is the interval in which
    the tau of another study is expected, NaN where there is none. ``note`` says how much studies
    differ.
    """

    labels: tuple[str, ...]
    tau: np.ndarray
    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    pooled: tuple[float, float, float]
    prediction: tuple[float, float]
    x_label: str
    title: str
    note: str
    whole: str = "all studies"


def forest_data(
    meta: Mapping[str, Any],
    *,
    x_label: str = "Kendall's τ",
    title: str = "",
    whole: str = "all studies",
) -> ForestData:
    """The values of the plot, from the plain values of a meta-analysis.

    ``meta`` has the values of :class:`trueoracle.analysis.meta.MetaAnalysis`, with None for what is
    unknown:

    - ``studies``, each with ``label``, ``tau``, ``low``, ``high`` and ``weight``;
    - over all studies, ``tau``, ``low``, ``high``, ``prediction_low`` and ``prediction_high``;
    - how much studies differ: ``i2`` (a fraction), ``tau2`` (the variance between studies), ``q``
      and ``p_value``.

    ``whole`` names the row of all. Raises :class:`InputError` where there is no study, or no
    weight.
    """

    def value(name: str, entry: Mapping[str, Any] = meta) -> float:
        found = entry.get(name)
        return math.nan if found is None else float(found)

    studies = meta["studies"]
    weights = np.array([value("weight", study) for study in studies], dtype=np.float64)
    if not len(weights) or not np.nansum(weights) > 0:
        raise InputError("a forest needs at least one study with a weight")
    tau, low, high = (
        np.array([value(name, study) for study in studies]) for name in ("tau", "low", "high")
    )
    i2, tau2, q, p = (value(name) for name in ("i2", "tau2", "q", "p_value"))
    said = []
    if math.isfinite(i2):
        said.append(f"{percent(i2).replace('.0%', '%')} of the variation is between studies (I²)")
    if math.isfinite(tau2):
        spread = number(math.sqrt(tau2), 2)
        said.append(f"their standard deviation is {spread} (τ² = {number(tau2, 3)})")
    if math.isfinite(q) and math.isfinite(p):
        said.append(f"Q = {number(q, 1)}, p = {p_value(p)}".replace("= <", "< "))
    return ForestData(
        labels=tuple(str(study["label"]) for study in studies),
        tau=tau,
        low=low,
        high=high,
        share=weights / np.nansum(weights),
        pooled=(value("tau"), value("low"), value("high")),
        prediction=(value("prediction_low"), value("prediction_high")),
        x_label=x_label,
        title=title,
        note="; ".join(said),
        whole=whole,
    )


def draw_forest(data: ForestData, size: tuple[float, float] | None = None) -> Figure:
    """Draw the plot; ``size`` is in inches, by default as high as its studies need.

    The area of a square is its study's weight; the diamond is as wide as the pooled interval.
    """
    count = len(data.labels)
    if size is None:
        size = (4.6 + 0.075 * min(max(map(len, data.labels)), 40) + 1.9, 1.75 + 0.3 * count)
    figure = new_figure(size)
    axes = figure.subplots()
    axes.axvline(0, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for place, (value, low, high, share) in enumerate(
        zip(data.tau, data.low, data.high, data.share, strict=True)
    ):
        axes.plot([low, high], [place, place], color=_STUDY, linewidth=1.4, zorder=2)
        # Where weights are equal, each square is about half a row high.
        axes.scatter(
            [value], [place], s=70 * share * count, marker="s", color=_STUDY, linewidths=0, zorder=3
        )
        _say(axes, place, f"{number(value, 2)} {interval(low, high)}", percent(share))
    tau, low, high = data.pooled
    bottom = count + 0.4
    axes.axhline(count - 0.35, color="0.8", linewidth=0.8)
    names = [*data.labels, data.whole]
    places = [*range(count), bottom]
    if math.isfinite(tau):
        axes.axvline(tau, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
        axes.fill(
            [low, tau, high, tau], [bottom, bottom - 0.3, bottom, bottom + 0.3], color=_POOLED,
            linewidth=0, zorder=3,
        )  # fmt: skip
    _say(axes, bottom, f"{number(tau, 2)} {interval(low, high)}", "", fontweight="bold")
    if all(map(math.isfinite, data.prediction)):
        bottom += 1
        axes.errorbar(
            [sum(data.prediction) / 2], [bottom], fmt="none", color=_PREDICTION, capsize=4,
            xerr=(data.prediction[1] - data.prediction[0]) / 2, elinewidth=1.8, zorder=3,
        )  # fmt: skip
        names.append("another study (95%)")
        places.append(bottom)
        _say(axes, bottom, interval(*data.prediction), "")
    axes.set_yticks(places, [plain(name, TICK) for name in names])
    axes.get_yticklabels()[count].set_fontweight("bold")
    axes.set_ylim(bottom + 0.6, -0.7)
    axes.set_xlabel(plain(data.x_label))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    _say(axes, -0.95, "τ [95%]", "weight", color="0.35")
    entitle(figure, data.title)
    if data.note:
        figure.supxlabel(data.note, fontsize="small", x=0.02, ha="left", color="0.25")
    return figure


def _say(axes: Axes, place: float, value: str, weight: str, **style: Any) -> None:
    """Write a value, and how much it weighs, on the right of a row."""
    for text, right in ((value, 118), (weight, 160)):
        axes.annotate(
            text, (1, place), xycoords=("axes fraction", "data"), xytext=(right, 0), ha="right",
            textcoords="offset points", va="center", fontsize="small", annotation_clip=False,
            **style,
        )  # fmt: skip
