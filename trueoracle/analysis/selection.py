"""What it is worth to choose by a score: regret, rank, the lowest few, chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from trueoracle.analysis.bootstrap import bootstrap
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.table import CandidateTable

__all__ = ["Selection", "lowest_few", "select"]

SHARE = 0.05
"""Of the candidates: the k lowest, at least three, where k is not given."""


@dataclass(frozen=True)
class Selection:
    """What the candidates of the lowest scores come to.

    Of the one of the lowest score: ``percentile``, the share (in percent) of the other candidates
    that end worse, ties counting half; the 95 % intervals of its ``rank`` (1 = best) and of its
    ``regret``, had the seeds been others; and ``beats_random``, how often (0 … 1) it ends better
    than a candidate chosen at random when each is retrained once, with the same seed, ties counting
    half. Of the ``k`` lowest: ``anomaly_ratio_k``, the mean over them of the share of candidates
    that end better; ``precision_at_k``, the share of them among the k best; ``regret_at_k``, what
    the best outcome has over the best of theirs.
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

    Ties in the score go to the candidate that is listed first, ties in the outcome at the border of
    the k best are shared among those tied.
    """
    few = lowest_few(min(map(len, tables))) if k is None else k

    def place_of_chosen(
        table: CandidateTable, rows: np.ndarray, outcome: np.ndarray
    ) -> Sequence[float]:
        scores, better = _columns(table, criterion, rows, outcome)
        if not len(scores):
            return math.nan, math.nan
        chosen = better[np.argmin(scores)]
        return float((better > chosen).sum()) + 1, float(better.max() - chosen)

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
    scores = table.scores[criterion][rows]
    if criterion in table.higher_is_chosen:
        scores = -scores
    better = outcome if table.higher_is_better else -outcome
    finite = np.isfinite(scores) & np.isfinite(better)
    return scores[finite], better[finite]


def _of_table(
    table: CandidateTable, criterion: str, k: int
) -> tuple[float, float, float, float, float]:
    rows = np.arange(len(table))
    scores, better = _columns(table, criterion, rows, table.outcome)
    if not len(scores):
        return (math.nan,) * 5
    lowest = np.argsort(scores, kind="stable")[:k]
    chosen = better[lowest[0]]
    others = max(1, len(better) - 1)
    percentile = 100 * _wins(chosen, better) / others if len(better) > 1 else 100.0
    anomalies = np.mean([(better > one).mean() for one in better[lowest]])
    regret = better.max() - better[lowest].max()
    return (
        percentile,
        _beats_random(table, criterion),
        float(anomalies),
        _precision(better, lowest),
        float(regret),
    )


def _wins(chosen: float, better: np.ndarray) -> float:
    """How many of the others end worse than the chosen one, itself not counted; ties half."""
    return float((better < chosen).sum() + ((better == chosen).sum() - 1) / 2)


def _beats_random(table: CandidateTable, criterion: str) -> float:
    shares = []
    for seed in range(table.seeds):
        rows = np.arange(len(table))
        scores, better = _columns(table, criterion, rows, table.outcomes[:, seed])
        if len(better) > 1:
            shares.append(_wins(better[np.argmin(scores)], better) / (len(better) - 1))
    return float(np.mean(shares)) if shares else math.nan


def _precision(better: np.ndarray, lowest: np.ndarray) -> float:
    """The share of ``lowest`` among as many best ones; those tied at the border count in part."""
    k = len(lowest)
    border = np.sort(better)[::-1][k - 1]
    above = better > border
    tied = better == border
    part = (k - above.sum()) / tied.sum()
    return float((above[lowest].sum() + part * tied[lowest].sum()) / k)
