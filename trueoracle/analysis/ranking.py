"""What scores say by themselves: the best candidate, its margin, and how lucky a sample is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.ties import lowest
from trueoracle.errors import InputError

__all__ = ["QUANTILES", "Ranking", "Sampled", "best_of_sample", "rank", "small_percent"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Sampled:
    """Where the lowest score of a sample of ``n`` falls among all, drawn without repeats.

    Over all samples, there are the mean of that score's rank (1 more than there are lower scores),
    the rank's quantiles of 5, 50 and 95%, the chance that no score is lower, and the mean excess of
    that score over the oracle's. ``own_rank``, ``own_excess`` and ``own_index`` are those of the
    one sample that was drawn; the index is None where several of its rows share the lowest score.
    """

    n: int
    mean_rank: float
    rank_5: int
    rank_50: int
    rank_95: int
    chance: float
    mean_excess: float
    own_index: int | None
    own_rank: int
    own_excess: float


@dataclass(frozen=True)
class Ranking:
    """The order of N scores, lower being better.

    ``oracle`` and ``runner_up`` are rows of the scores given: of the lowest score, and of the next
    one. ``tied`` counts the rows that share the lowest score; where there are several, there is no
    single oracle and no runner-up (both are None), and ``margin`` is 0. The runner-up is None, too,
    where several rows share the second place. ``margin`` is the runner-up's score less the
    oracle's, ``relative_margin`` its share of the oracle's score (NaN where that is not above
    zero). ``dropped`` rows had no finite score. ``every_way`` says that all ways to prune have a
    score; otherwise the oracle is only the best of those that have one, and ``sampled`` is None.
    """

    n: int
    dropped: int
    every_way: bool
    tied: int
    oracle: int | None
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
        what = f"{score[0].upper()}{score[1:]} is lowest, {self.oracle_score:.4g}, for"
        who = "one" if self.tied == 1 else f"{self.tied:,}"
        if not self.every_way:
            return (
                f"{what} {who} of {self.n:,} candidates; they are not all ways to prune, so that a "
                "lower one may exist."
            )
        best = f"{what} {who} of all {self.n:,} ways to prune"
        if self.n == 1:
            return f"{best}."
        share = (
            "" if math.isnan(self.relative_margin) else f" ({small_percent(self.relative_margin)})"
        )
        margin = f"{best}, {self.margin:.3g}{share} below the runner-up"
        if self.tied > 1:
            margin = f"{best}, which tie"
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

    ``every_way`` says that P is all ways to prune. Then samples are compared with all ways: the one
    whose rows ``drawn`` has, and any sample of the same size. Where ``drawn`` is empty, no samples
    are compared. Raises :class:`InputError` where no score is finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(scores))
    if len(rows) == 0:
        raise InputError("no candidate has a finite score")
    ordered = np.sort(scores[rows])
    first = ordered[0]
    second = ordered[1] if len(rows) > 1 else math.nan
    margin = float(second - first)
    complete = every_way and len(rows) == len(scores)
    return Ranking(
        n=len(rows),
        dropped=len(scores) - len(rows),
        every_way=complete,
        tied=int((ordered == first).sum()),
        oracle=_only(scores == first),
        oracle_score=float(first),
        runner_up=None if second == first else _only(scores == second),
        runner_up_score=float(second),
        margin=margin,
        relative_margin=margin / float(first) if first > 0 else math.nan,
        quantiles={f"{q:g}": float(np.quantile(ordered, q)) for q in QUANTILES},
        sampled=_sampled(scores, ordered, drawn) if complete and len(drawn) else None,
    )


def _only(rows: np.ndarray) -> int | None:
    """The only row that is True; None where none is, or several are."""
    found = np.flatnonzero(rows)
    return int(found[0]) if len(found) == 1 else None


def small_percent(value: float) -> str:
    """A share such as ``"12.3%"`` or ``"0.0041%"``: a small one is not shown as zero."""
    return f"{value:.1%}" if value >= 1e-3 or value <= 0 else f"{100 * value:.2g}%"


def _sampled(scores: np.ndarray, ordered: np.ndarray, drawn: Sequence[int]) -> Sampled:
    n = len(drawn)
    chances = best_of_sample(len(ordered), n)
    # Rounding could carry a sum over many ranks past the last one.
    below = np.minimum(np.cumsum(chances), 1.0)
    # Those that tie share a rank: one more than there are lower scores.
    ranks = np.searchsorted(ordered, ordered[: len(chances)]) + 1
    quantiles = [int(ranks[np.searchsorted(below, q - 1e-12)]) for q in (0.05, 0.5, 0.95)]
    rows = np.asarray(drawn)
    best = rows[lowest(scores[rows])]
    own = scores[best[0]]
    return Sampled(
        n=n,
        mean_rank=float(chances @ ranks),
        rank_5=quantiles[0],
        rank_50=quantiles[1],
        rank_95=quantiles[2],
        chance=float(chances[ranks == 1].sum()),
        mean_excess=float(chances @ (ordered[: len(chances)] - ordered[0])),
        own_index=int(best[0]) if len(best) == 1 else None,
        own_rank=int((ordered < own).sum()) + 1,
        own_excess=float(own - ordered[0]),
    )


def best_of_sample(total: int, n: int) -> np.ndarray:
    """The chances ``[total-n+1]`` that the best of ``n`` drawn from ``total`` has rank 1, 2, ….

    The sample is drawn without repeats, and all ranks are distinct. For the best to have rank r,
    the r-1 better ones must not be drawn.
    """
    if not 1 <= n <= total:
        raise InputError(f"a sample holds 1 to {total} of {total}, got {n}")
    left = total - np.arange(total - n + 1)  # once the r-1 better ones are out, r = 1, 2, …
    stays_out = 1 - n / left
    none_yet = np.concatenate([[1.0], np.cumprod(stays_out[:-1])])
    chances: np.ndarray = none_yet * (n / left)
    return chances
