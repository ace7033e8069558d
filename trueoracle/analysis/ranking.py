"""What scores say by themselves: the best candidate, its margin, and how lucky a sample is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.errors import InputError

__all__ = ["QUANTILES", "Ranking", "Sampled", "best_of_sample", "rank", "small_percent"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Sampled:
    """Where the lowest score of a sample of ``n`` falls among all, drawn without repeats.

    Of any sample: the mean of its rank (1 = lowest of all), the quantiles of 5, 50 and 95%, the
    chance that it is the oracle itself, and the mean of what its score has over the oracle's.
    ``own_rank``, ``own_excess`` and ``own_index`` are those of the one sample that was drawn.
    """

    n: int
    mean_rank: float
    rank_5: int
    rank_50: int
    rank_95: int
    chance: float
    mean_excess: float
    own_index: int
    own_rank: int
    own_excess: float


@dataclass(frozen=True)
class Ranking:
    """The order of N scores, lower being better.

    ``oracle`` and ``runner_up`` are rows of the scores given, the first ones among ties;
    ``margin`` is what the runner-up has over the oracle, ``relative_margin`` its share of the
    oracle's score (NaN where that is not above zero). ``dropped`` rows had no finite score.
    ``every_way`` says that all ways to prune have one; elsewhere the oracle is only the best of
    those that do, and ``sampled`` is None.
    """

    n: int
    dropped: int
    every_way: bool
    oracle: int
    oracle_score: float
    runner_up: int | None
    runner_up_score: float
    margin: float
    relative_margin: float
    quantiles: dict[str, float]
    sampled: Sampled | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        fields = finite_or_none(asdict(self))
        if self.sampled is not None:
            fields["sampled"] = finite_or_none(asdict(self.sampled))
        return fields

    def sentence(self, score: str = "the score") -> str:
        """The ranking in words."""
        what = f"{score[0].upper()}{score[1:]}"
        if not self.every_way:
            return (
                f"{what} is lowest, {self.oracle_score:.4g}, for one of {self.n:,} candidates; "
                "they are not all ways to prune, so that a lower one may exist."
            )
        best = f"{what} is lowest, {self.oracle_score:.4g}, for one of all {self.n:,} ways to prune"
        if self.runner_up is None:
            return f"{best}."
        share = (
            "" if math.isnan(self.relative_margin) else f" ({small_percent(self.relative_margin)})"
        )
        margin = f"{best}, {self.margin:.3g}{share} below the runner-up"
        if self.sampled is None:
            return f"{margin}."
        s = self.sampled
        return (
            f"{margin}; the lowest of {s.n:,} sampled would be number {s.mean_rank:,.0f} on "
            f"average ({s.rank_5:,} to {s.rank_95:,} in 90% of samples), and of the sample drawn "
            f"is number {s.own_rank:,}."
        )


def rank(scores: np.ndarray, *, every_way: bool = True, drawn: Sequence[int] = ()) -> Ranking:
    """Rank scores ``[P]``; rows that are not finite are dropped and counted.

    ``every_way`` says that P is all ways to prune. Then samples of that many ways as ``drawn``, the
    rows of one such sample, are compared with all; none are where it is empty. Raises
    :class:`InputError` where no score is finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(scores))
    if len(rows) == 0:
        raise InputError("no candidate has a finite score")
    order = rows[np.argsort(scores[rows], kind="stable")]
    lowest = scores[order]
    second = lowest[1] if len(order) > 1 else math.nan
    margin = float(second - lowest[0])
    complete = every_way and len(rows) == len(scores)
    return Ranking(
        n=len(rows),
        dropped=len(scores) - len(rows),
        every_way=complete,
        oracle=int(order[0]),
        oracle_score=float(lowest[0]),
        runner_up=int(order[1]) if len(order) > 1 else None,
        runner_up_score=float(second),
        margin=margin,
        relative_margin=margin / float(lowest[0]) if lowest[0] > 0 else math.nan,
        quantiles={f"{q:g}": float(np.quantile(lowest, q)) for q in QUANTILES},
        sampled=_sampled(scores, lowest, drawn) if complete and len(drawn) else None,
    )


def small_percent(value: float) -> str:
    """Such as ``"12.3%"`` or ``"0.0041%"``: a small margin is not shown as none."""
    return f"{value:.1%}" if value >= 1e-3 or value <= 0 else f"{100 * value:.2g}%"


def _sampled(scores: np.ndarray, lowest: np.ndarray, drawn: Sequence[int]) -> Sampled:
    n = len(drawn)
    chances = best_of_sample(len(lowest), n)
    # Up to rounding, which a sum over many ranks could carry past the last one.
    below = np.minimum(np.cumsum(chances), 1.0)
    ranks = [int(np.searchsorted(below, q - 1e-12)) + 1 for q in (0.05, 0.5, 0.95)]
    own = drawn[int(np.argmin(scores[np.asarray(drawn)]))]
    return Sampled(
        n=n,
        mean_rank=(len(lowest) + 1) / (n + 1),
        rank_5=ranks[0],
        rank_50=ranks[1],
        rank_95=ranks[2],
        chance=float(chances[0]),
        mean_excess=float(chances @ (lowest[: len(chances)] - lowest[0])),
        own_index=int(own),
        own_rank=int((lowest < scores[own]).sum()) + 1,
        own_excess=float(scores[own] - lowest[0]),
    )


def best_of_sample(total: int, n: int) -> np.ndarray:
    """The chances ``[total-n+1]`` that the best of ``n`` drawn from ``total`` has rank 1, 2, ….

    Drawn without repeats, all ranks being distinct: rank r needs the r-1 better ones to stay out.
    """
    if not 1 <= n <= total:
        raise InputError(f"a sample holds 1 to {total} of {total}, got {n}")
    left = total - np.arange(total - n + 1)  # when r-1 better ones are out: r = 1, 2, …
    stays_out = 1 - n / left
    none_yet = np.concatenate([[1.0], np.cumprod(stays_out[:-1])])
    chances: np.ndarray = none_yet * (n / left)
    return chances
