"""What it is worth to choose by a score: regret, rank, the lowest few, chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from trueoracle.analysis.bootstrap import bootstrap
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.ranking import best_of_sample
from trueoracle.analysis.table import CandidateTable
from trueoracle.analysis.ties import chances_of_lowest, count_above, lowest

__all__ = ["Selection", "lowest_few", "select"]

SHARE = 0.05
"""Of the candidates: the k lowest, at least three, where k is not given."""


@dataclass(frozen=True)
class Selection:
    """How good the candidates of the lowest scores are.

    Where scores tie, all of these are means over the ways to break the ties, each as likely. None
    has a sign: high or low is said of each.

    Of the candidate of the lowest score:

    - ``percentile``: the share (in percent) of the other candidates that end worse, ties counting
      half;
    - ``rank_low`` to ``rank_high``, ``regret_low`` to ``regret_high``: 95 % intervals of its rank
      (1 = best) and of its regret, had the seeds been others;
    - ``beats_random``: how often (0 … 1) it ends better than a candidate chosen at random when
      each is retrained once, with the same seed, ties counting half.

    Of the ``k`` lowest:

    - ``anomaly_ratio_k``: the mean over them of the share of candidates that end better;
    - ``precision_at_k``: the share of them among the k best;
    - ``regret_at_k``: the difference between the best outcome and the best of theirs.
    """

    percentile: float
    rank_low: float
    rank_high: float
    regret_low: float
    regret_high: float
    beats_random: float
    k: int
    anomaly_ratio_k: float
    precision_at_k: float
    regret_at_k: float

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def lowest_few(candidates: int) -> int:
    """The k of a table of so many candidates: 5 % of them, at least 3 and at most all."""
    return min(candidates, max(3, round(SHARE * candidates)))


def select(tables: Sequence[CandidateTable], criterion: str, *, k: int | None = None) -> Selection:
    """The worth of choosing by one criterion, a mean over dense networks.

    Ties in the score are broken in all ways, each as likely; ties in the outcome at the border of
    the k best are shared among those tied.
    """
    few = lowest_few(min(map(len, tables))) if k is None else k

    def place_of_chosen(
        table: CandidateTable, rows: np.ndarray, outcome: np.ndarray
    ) -> Sequence[float]:
        scores, better = _columns(table, criterion, rows, outcome)
        if not len(scores):
            return math.nan, math.nan
        chosen = better[lowest(scores)]
        rank = 1 + float(count_above(better, chosen).mean())
        return rank, float((better.max() - chosen).mean())

    resampled = bootstrap(tables, place_of_chosen)
    rank = resampled.interval(0, bounds=(1, max(map(len, tables))))
    regret = resampled.interval(1, bounds=(0, math.inf))
    plain = np.mean([_of_table(table, criterion, few) for table in tables], axis=0)
    percentile, beats, anomalies, precision, regret_at_k = map(float, plain)
    return Selection(
        percentile=percentile,
        rank_low=rank.low,
        rank_high=rank.high,
        regret_low=regret.low,
        regret_high=regret.high,
        beats_random=beats,
        k=few,
        anomaly_ratio_k=anomalies,
        precision_at_k=precision,
        regret_at_k=regret_at_k,
    )


def _columns(
    table: CandidateTable, criterion: str, rows: np.ndarray, outcome: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (lowest chosen) and outcomes (highest best), where both are finite."""
    scores, better = table.lowest_first(criterion)[rows], table.better(outcome)
    finite = np.isfinite(scores) & np.isfinite(better)
    return scores[finite], better[finite]


def _of_table(
    table: CandidateTable, criterion: str, k: int
) -> tuple[float, float, float, float, float]:
    rows = np.arange(len(table))
    scores, better = _columns(table, criterion, rows, table.outcome)
    if not len(scores):
        return (math.nan,) * 5
    chances = chances_of_lowest(scores, min(k, len(scores)))
    share_above = count_above(better, better) / len(better)
    return (
        _percentile(better[lowest(scores)], better),
        _beats_random(table, criterion),
        float(np.average(share_above, weights=chances)),
        float(np.average(_chances_of_best(better, k), weights=chances)),
        _least_regret(better.max() - better, chances),
    )


def _percentile(chosen: np.ndarray, better: np.ndarray) -> float:
    """The mean share, in percent, of the others that end worse than each chosen one; ties half."""
    if len(better) == 1:
        return 100.0
    above, below = count_above(better, chosen), count_above(-better, -chosen)
    others = len(better) - 1
    return float(100 * np.mean(below + (others - above - below) / 2) / others)


def _beats_random(table: CandidateTable, criterion: str) -> float:
    shares = []
    for seed in range(table.seeds):
        rows = np.arange(len(table))
        scores, better = _columns(table, criterion, rows, table.outcomes[:, seed])
        if len(better) > 1:
            shares.append(_percentile(better[lowest(scores)], better) / 100)
    return float(np.mean(shares)) if shares else math.nan


def _chances_of_best(better: np.ndarray, k: int) -> np.ndarray:
    """The part ``[n]`` of each candidate in the k best; those tied at the border count in part."""
    return chances_of_lowest(-better, min(k, len(better)))


def _least_regret(regret: np.ndarray, chances: np.ndarray) -> float:
    """The expected least regret of the chosen, of which some are sure and others share places."""
    sure, shared = regret[chances == 1], np.sort(regret[(chances > 0) & (chances < 1)])
    least = sure.min() if len(sure) else math.inf
    if not len(shared):
        return float(least)
    places = round(float(chances.sum())) - len(sure)
    of_rank = best_of_sample(len(shared), places)
    return float(of_rank @ np.minimum(shared[: len(of_rank)], least))
