"""Budget against regret: what a search finds at a part of the cost of retraining all candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.figures.scatter import entitle, plain

__all__ = ["BudgetData", "BudgetLine", "BudgetPanel", "budget_data", "draw_budget"]

# Okabe and Ito's palette; the lines differ in their marks as well.
_STYLES: Mapping[str, tuple[str, str]] = {
    "guided": ("#009E73", "P"),
    "halving": ("#0072B2", "o"),
    "random-halving": ("#56B4E9", "s"),
    "top": ("#D55E00", "D"),
    "random": ("#E69F00", "^"),
    "criterion": ("#CC79A7", "X"),
    "full": ("#000000", "*"),
}
_OTHER = ("0.4", ".")


@dataclass(frozen=True)
class BudgetLine:
    """One strategy: the share of the full budget that it ``spent``, and its regret, ``[n]`` each.

    The interval from ``low`` to ``high`` holds 95 % of the searches.
    """

    strategy: str
    spent: np.ndarray
    regret: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class BudgetPanel:
    """The lines of one outcome."""

    title: str
    lines: tuple[BudgetLine, ...]


@dataclass(frozen=True)
class BudgetData:
    """What the figure shows: one panel per outcome."""

    panels: tuple[BudgetPanel, ...]
    title: str


def budget_data(
    table: pd.DataFrame,
    *,
    outcomes: Sequence[str] | None = None,
    network: str = "own",
    title: str = "",
) -> BudgetData:
    """The values of the figure, from the table of :func:`trueoracle.search.replay.replay`.

    Each of ``outcomes`` (by default all) has a panel; ``network`` says which network judges the
    choice (``own``, ``other seeds``). A strategy that always spends the same is a single point.
    Raises :class:`InputError` where the table has no row for a panel.
    """
    panels = []
    for outcome in outcomes if outcomes is not None else table["outcome"].unique():
        rows = table[(table["outcome"] == outcome) & (table["network"] == network)]
        if rows.empty:
            raise InputError(f"the replay has no regret in {outcome} of network {network!r}")
        lines = []
        for strategy, own in rows.groupby("strategy", sort=False):
            own = own.sort_values("budget").drop_duplicates("spent")
            spent = own["spent_share"].to_numpy(dtype=float)
            values = (own[name].to_numpy(dtype=float) for name in ("regret", "low", "high"))
            lines.append(BudgetLine(str(strategy), spent, *values))
        panels.append(BudgetPanel(str(outcome).replace("_", " "), tuple(lines)))
    return BudgetData(tuple(panels), title)


def draw_budget(data: BudgetData, size: tuple[float, float] = (4.0, 3.4)) -> Figure:
    """Draw the panels side by side; ``size`` is that of one, in inches."""
    count = len(data.panels)
    figure = new_figure((size[0] * count, size[1] + 0.5))
    grid = figure.subplots(1, count, squeeze=False)[0]
    for axes, panel in zip(grid, data.panels, strict=True):
        for line in panel.lines:
            colour, mark = _STYLES.get(line.strategy, _OTHER)
            x = 100 * line.spent
            axes.plot(
                x, line.regret, color=colour, marker=mark, markersize=6, linewidth=1.4,
                label=plain(line.strategy), zorder=3,
            )  # fmt: skip
            if len(x) > 1:
                axes.fill_between(x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
            else:
                ends = np.maximum([line.regret - line.low, line.high - line.regret], 0)
                axes.errorbar(x, line.regret, yerr=ends, color=colour, linewidth=1.2, capsize=3)
        axes.set_xscale("log")
        axes.set_xlabel("epochs spent, of those that retrain all", fontsize="small")
        axes.set_title(panel.title, fontsize="small", fontweight="bold", loc="left")
        axes.set_ylim(bottom=0)
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick >= axes.get_xlim()[0]]
        axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize="small")
    figure.supylabel("regret", fontsize="medium")
    entitle(figure, data.title)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False,
        fontsize="small",
    )  # fmt: skip
    return figure
