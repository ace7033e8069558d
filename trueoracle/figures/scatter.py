"""The paper's figure: score before retraining against outcome after it, one dot per candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trueoracle.analysis.numbers import interval, number, percent
from trueoracle.analysis.relation import Relation, relate
from trueoracle.errors import brief
from trueoracle.figures.drawing import new_figure
from trueoracle.files import make_folder, replacing
from trueoracle.run.progress import one_line

__all__ = [
    "FORMATS",
    "ScatterData",
    "draw_points",
    "draw_scatter",
    "entitle",
    "plain",
    "save_figure",
    "scatter_data",
    "wrapped",
]

FORMATS = ("png", "svg", "pdf")

TICK = 32
"""The longest name at a tick, in characters: names stand side by side, and leave room to plots."""

_LETTERS_AN_INCH = 11  # of a title
_LINES_AN_INCH = 1  # of what stands below it

PDF_FONTS = 42
"""Matplotlib's number for TrueType fonts, which journals ask for."""

# Okabe and Ito's palette, told apart by the colour-blind; anomalies differ in shape as well.
USUAL, ANOMALY, CHOSEN = "#0072B2", "#D55E00", "#000000"


@dataclass(frozen=True)
class ScatterData:
    """What the scatter shows: points ``x, y [n]``, which are anomalies ``[n]``, and its words.

    ``chosen`` are the lowest score and the outcome of its candidate. Where several candidates share
    that score, the outcome is their mean and ``stars`` are their outcomes. Anomalies end better.
    """

    x: np.ndarray
    y: np.ndarray
    anomaly: np.ndarray
    chosen: tuple[float, float]
    stars: np.ndarray
    x_label: str
    y_label: str
    title: str
    note: str
    relation: Relation


def scatter_data(
    scores: np.ndarray,
    outcomes: np.ndarray,
    *,
    higher_is_better: bool,
    x_label: str,
    y_label: str,
    title: str = "",
    higher_score_is_better: bool = False,
    tau_interval: tuple[float | None, float | None] = (None, None),
    ceiling: float | None = None,
) -> ScatterData:
    """The values of the scatter; candidates without a finite score and outcome are left out.

    The note has raw tau, with its interval where that is known. ``ceiling`` is the agreement that
    retraining noise leaves to a perfect criterion.
    """
    relation = relate(
        scores,
        outcomes,
        higher_is_better=higher_is_better,
        higher_score_is_better=higher_score_is_better,
    )
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    chosen = relation.chosen_outcome
    stars = y[x == relation.chosen_score]
    anomaly = y > chosen if higher_is_better else y < chosen
    tau = relation.kendall
    if math.isnan(tau.value):
        said = "Kendall's τ undefined"
    else:
        said = f"Kendall's τ = {number(tau.value, 2)}"
        if None not in tau_interval:
            said += f" {interval(*tau_interval)}"
    if ceiling is not None:
        said += f", noise ceiling {number(ceiling, 2)}"
    note = f"{said}\nanomaly ratio {percent(relation.anomaly_ratio)} of {relation.n}"
    mark = (relation.chosen_score, chosen)
    return ScatterData(x, y, anomaly, mark, stars, x_label, y_label, title, note, relation)


def draw_scatter(data: ScatterData, size: tuple[float, float] = (5.0, 3.8)) -> Figure:
    """Draw the scatter; ``size`` is in inches. Dashed lines and a star mark the lowest score.

    Where several candidates share that score, each has a star, and the lines cross at the mean of
    their outcomes.
    """
    figure = new_figure(size)
    axes = figure.subplots()
    draw_points(axes, data)
    axes.set(xlabel=plain(data.x_label), ylabel=plain(data.y_label))
    entitle(figure, data.title)
    # Above the axes, where neither can hide a point.
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False,
        fontsize="small", handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    axes.text(
        1.0, 1.02, data.note, transform=axes.transAxes, ha="right", va="bottom", fontsize="small",
        linespacing=1.35,
    )  # fmt: skip
    return figure


def draw_points(axes: Axes, data: ScatterData) -> None:
    """Draw the points, the star and its lines on the given axes, without any words."""
    faint = 0.8 if len(data.x) <= 300 else 0.5
    dot = 26 if len(data.x) <= 300 else 12
    usual = ~data.anomaly
    x_chosen, y_chosen = data.chosen
    line: dict[str, Any] = {
        "color": "0.45",
        "linewidth": 0.8,
        "linestyle": (0, (4, 3)),
        "zorder": 1,
    }
    axes.axvline(x_chosen, **line)
    axes.axhline(y_chosen, **line)
    axes.scatter(
        data.x[usual], data.y[usual], s=dot, c=USUAL, alpha=faint, linewidths=0, zorder=2,
        label="candidate",
    )  # fmt: skip
    tied = len(data.stars) > 1
    if data.anomaly.any():
        better = "better than their mean" if tied else "anomaly"
        axes.scatter(
            data.x[data.anomaly], data.y[data.anomaly], s=dot * 1.1, c=ANOMALY, alpha=faint,
            marker="D", linewidths=0, zorder=3, label=f"{better} ({int(data.anomaly.sum())})",
        )  # fmt: skip
    best = "highest" if data.relation.higher_score_is_better else "lowest"
    axes.scatter(
        np.full(len(data.stars), x_chosen), data.stars, marker="*", s=190, c=CHOSEN,
        edgecolors="white", linewidths=0.9, zorder=4,
        label=f"{best} score ({len(data.stars)} tie)" if tied else f"{best} score",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.06)


def entitle(figure: Figure, title: str) -> None:
    """Write a title above a figure: its first line, and others below, as far as there is room."""
    first, *below = title.splitlines() or [""]
    width, height = (float(inches) for inches in figure.get_size_inches())
    most = max(1, int(_LINES_AN_INCH * height))
    if first:
        lines = [plain(first), *wrapped(" ".join(below), int(_LETTERS_AN_INCH * width), most)]
        figure.suptitle("\n".join(lines), fontsize="medium", fontweight="bold", x=0.01, ha="left")


def wrapped(text: str, width: int, most: int) -> list[str]:
    """Lines of at most ``width`` letters, at most so many of them; what is left out is an ellipsis.

    The names of many changed fields would else leave a figure no room.
    """
    return wrap(plain(text, 10**4), max(width, 10), max_lines=most, placeholder=" …")


def plain(label: str, longest: int = 72) -> str:
    """A label as a line of text: names of others may hold mathematics, or characters that no font
    has, or may be longer than any figure.
    """
    return brief(one_line(label), longest).replace("$", r"\$")


def save_figure(
    figure: Figure, stem: Path, formats: Sequence[str] = FORMATS, *, outlines: bool = False
) -> list[Path]:
    """Write ``stem.png``, ``.svg`` and ``.pdf``; raises :class:`StoreError` where that fails.

    All files have the layout of the first. Text stays text in SVG and PDF (in SVG, with
    ``outlines``, the letters' outlines are drawn instead), and files have no date, so that the same
    figure gives the same bytes.
    """
    written = []
    layout = figure.get_layout_engine()
    with mpl.rc_context(
        {
            "svg.fonttype": "path" if outlines else "none",
            "pdf.fonttype": PDF_FONTS,
            "svg.hashsalt": "trueoracle",
        }
    ):
        try:
            for form in formats:
                path = stem.parent / f"{stem.name}.{form}"
                metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
                make_folder(path.parent)
                with replacing(path) as draft:
                    figure.savefig(draft, dpi=200, metadata=metadata)
                written.append(path)
                figure.set_layout_engine("none")  # the layout takes as long as the drawing
        finally:
            figure.set_layout_engine(layout)
    return written
