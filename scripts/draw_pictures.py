"""Draw the five pictures of docs/pictures.md, from a recorded run of the default study.

trueoracle run glyphs-fc1-0.2
python scripts/draw_pictures.py runs/glyphs-fc1-0.2-DIGEST docs/pictures
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trueoracle.analysis.numbers import number
from trueoracle.analysis.relation import relate
from trueoracle.analysis.reliability import noise_ceiling
from trueoracle.record.pooled import open_results
from trueoracle.record.results import Results

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"
UNITS = 12


def candidate(axes: Axes, results: Results) -> None:
    """Twelve units, and three of the 66 ways to leave two of them out."""
    points = results.points("oracle", "test_loss")
    shown = [set(), *(set(points["pruned"][place]["fc1"]) for place in (0, 17, 65))]
    for row, pruned in enumerate(shown):
        for unit in range(UNITS):
            out = unit in pruned
            axes.scatter(
                unit, -row, s=200, facecolors="none" if out else BLUE,
                edgecolors=GREY if out else BLUE, linestyle=":" if out else "-",
            )  # fmt: skip
        name = "dense" if row == 0 else f"without {' and '.join(str(u) for u in sorted(pruned))}"
        axes.text(UNITS, -row, name, va="center")
    axes.set(xlim=(-1, UNITS + 4), ylim=(-3.7, 0.7))
    axes.axis("off")


def score(axes: Axes, results: Results) -> None:
    """The pruned train loss of every candidate, lowest first."""
    scores = np.sort(results.points("oracle", "test_loss")["score"].to_numpy())
    axes.bar(np.arange(len(scores)), scores, color=[ORANGE] + [BLUE] * (len(scores) - 1))
    axes.axhline(
        (results.dense or {})["train_loss"], color=GREY, linestyle="--", label="the dense network"
    )
    axes.set(xlabel="candidates, lowest first", ylabel="pruned train loss (nats)", xticks=[])
    axes.legend(frameon=False)


def retrain(axes: Axes, results: Results) -> None:
    """The test loss of every candidate over its retraining; the chosen one in orange."""
    points = results.points("oracle", "test_loss")
    chosen = points.loc[points["score"].idxmin(), "candidate"]
    curves = results.outcomes.groupby(["candidate", "epoch"])["test_loss"].mean().unstack("epoch")
    for name, curve in curves.iterrows():
        wanted = name == chosen
        axes.plot(
            curve.index + 1, curve, color=ORANGE if wanted else BLUE,
            linewidth=2 if wanted else 0.7, alpha=1 if wanted else 0.4, zorder=3 if wanted else 2,
        )  # fmt: skip
    axes.set(xlabel="epochs of retraining", ylabel="test loss (nats)")


def ceiling(axes: Axes, results: Results) -> None:
    """The final test loss of every candidate, by the one seed and by the other."""
    final = _final(results)
    axes.scatter(final[0], final[1], color=BLUE, s=18)
    told = noise_ceiling(results.table("test_loss")).ceiling
    axes.set(
        xlabel="final test loss, retraining seed 0",
        ylabel="retraining seed 1",
        title=f"ceiling {number(told)}",
    )


def anomaly(axes: Axes, results: Results) -> None:
    """Score against outcome: whichever ends better than the chosen one is an anomaly."""
    points = results.points("oracle", "test_loss")
    best = points.loc[points["score"].idxmin()]
    better = points["outcome"] < best["outcome"]
    axes.scatter(points["score"][~better], points["outcome"][~better], color=BLUE, s=18)
    axes.scatter(points["score"][better], points["outcome"][better], color=ORANGE, s=26, marker="^")
    axes.scatter(best["score"], best["outcome"], color="black", s=120, marker="*")
    axes.axhline(best["outcome"], color=GREY, linewidth=0.8)
    tau = relate(
        points["score"].to_numpy(), points["outcome"].to_numpy(), higher_is_better=False
    ).kendall.value
    axes.set(
        xlabel="pruned train loss, before retraining",
        ylabel="final test loss",
        title=f"Kendall's τ {number(tau)}; {int(better.sum())} of {len(points)} are anomalies",
    )


def _final(results: Results) -> pd.DataFrame:
    outcomes = results.outcomes
    last = outcomes[outcomes["epoch"] == outcomes["epoch"].max()]
    return last.pivot_table(index="candidate", columns="seed", values="test_loss")


PICTURES: tuple[Callable[[Axes, Results], None], ...] = (
    candidate,
    score,
    retrain,
    ceiling,
    anomaly,
)


def main(run: Path, folder: Path) -> None:
    """Draw all five of the first dense network of ``run`` into ``folder``."""
    results = open_results(run).networks[0]
    folder.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        figure = Figure(figsize=(6.4, 2.6 if draw is candidate else 3.6), layout="constrained")
        draw(figure.add_subplot(), results)
        figure.savefig(folder / f"{draw.__name__}.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
