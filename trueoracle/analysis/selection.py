"""What choosing by a score is worth: regret, rank, the lowest few, and chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from trueoracle.analysis.jackknife import Jackknife, Part, jackknife
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.ranking import best_of_sample
from trueoracle.analysis.table import CandidateTable
from trueoracle.analysis.ties import chances_of_lowest, count_above, lowest

__all__ = ["Selection", "held_out_regrets", "lowest_few", "select"]

SHARE = 0.05
"""The share of candidates that are the k lowest where k is not given; at least three are."""


@dataclass(frozen=True)
class Selection:
    """How good the candidates of the lowest scores are.

    Where scores tie, all of these are means over the ways to break the ties, each as likely. No
    sign is turned: the list says of each what a high value means.

    Of the candidate of the lowest score:

    - ``percentile``: the share (in percent) of the other candidates that end worse, ties counting
      half;
    - ``rank_low`` to ``rank_high``: the 95 % interval of its rank (1 = best), had the seeds and,
      where the table has blocks of them, the examples been others;
    - ``held_out_regret``: how much better the candidate that is best by some retrainings (and
      examples) ends in the others, so that the luck of the best does not count; negative where it
      ends worse. ``regret_low`` to ``regret_high`` is the 95 % interval of this regret; NaN where
      there is one retraining and no blocks of examples;
    - ``best_rank``: the rank in the others of the candidate that is best by some;
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
    held_out_regret: float
    best_rank: float
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

    # Candidates and filters are taken as given: a rank among others would be another number.
    fixed = [replace(table, sampled=False) for table in tables]
    resampled = jackknife(fixed, lambda one: [_rank_of_chosen(one, criterion)], filters=False)
    rank = resampled.interval(0, bounds=(1, max(map(len, tables))))
    held_out = np.mean([_of_folds(table, criterion).mean(axis=0) for table in tables], axis=0)
    regret = _of_held_out(fixed, criterion, held_out).interval(0)
    plain = np.mean([_of_table(table, criterion, few) for table in tables], axis=0)
    percentile, beats, anomalies, precision, regret_at_k = map(float, plain)
    return Selection(
        percentile=percentile,
        rank_low=rank.low,
        rank_high=rank.high,
        held_out_regret=float(held_out[0]),
        best_rank=float(held_out[1]),
        regret_low=regret.low,
        regret_high=regret.high,
        beats_random=beats,
        k=few,
        anomaly_ratio_k=anomalies,
        precision_at_k=precision,
        regret_at_k=regret_at_k,
    )


def held_out_regrets(table: CandidateTable, columns: np.ndarray) -> np.ndarray:
    """The ``held_out_regret`` of choosing by each of the columns of scores ``[K, P]``: ``[K]``.

    Scores that are all equal choose at random. NaN for one retraining of these examples.
    """
    folds = _folds(table)
    return np.array([_held_out(table, column, folds).mean(axis=0)[0] for column in columns])


def _rank_of_chosen(table: CandidateTable, criterion: str) -> float:
    scores, better = _columns(table, criterion, table.outcome)
    if not len(scores):
        return math.nan
    return 1 + float(count_above(better, better[lowest(scores)]).mean())


Fold = list[tuple[np.ndarray, np.ndarray]]
"""Outcomes ``[P]``, higher being better, to choose the best by and to judge it by."""


def _folds(table: CandidateTable) -> list[Fold]:
    """One fold per seed, chosen by the other seeds.

    With blocks of examples, the best is chosen on every other block and judged on those between,
    and the other way round. Empty for one retraining of these examples.
    """
    blocks = 0 if table.blocks is None else len(table.blocks)
    parts: list[tuple[np.ndarray | None, np.ndarray | None]] = [(None, None)]
    if blocks > 1:
        even, odd = np.arange(0, blocks, 2), np.arange(1, blocks, 2)
        parts = [(even, odd), (odd, even)]
    elif table.seeds < 2:
        return []
    folds = []
    for seed in range(table.seeds):
        own = np.array([seed])
        others = np.delete(np.arange(table.seeds), seed) if table.seeds > 1 else own
        folds.append(
            [
                (
                    table.better(table.take(seeds=others, blocks=choosing).outcome),
                    table.better(table.take(seeds=own, blocks=judging).outcome),
                )
                for choosing, judging in parts
            ]
        )
    return folds


def _held_out(table: CandidateTable, scores: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Regret and rank ``[folds, 2]``: the best is chosen by some outcomes, judged by the others.

    The lowest of the ``scores`` ``[P]`` is chosen.
    """
    found = []
    for fold in folds:
        values = []
        for chooser, judge in fold:
            finite = np.isfinite(scores) & np.isfinite(judge)
            known = np.isfinite(chooser) & np.isfinite(judge)
            if not finite.any() or not np.isfinite(chooser).any():
                return np.full((1, 2), math.nan)
            of_judge = judge[known]
            best = of_judge[lowest(-chooser[known])]
            chosen = judge[finite][lowest(scores[finite])]
            values.append(
                (float(best.mean() - chosen.mean()), 1 + float(count_above(of_judge, best).mean()))
            )
        found.append(np.mean(values, axis=0))
    return np.array(found) if found else np.full((1, 2), math.nan)


def _of_folds(table: CandidateTable, criterion: str) -> np.ndarray:
    return _held_out(table, table.lowest_first(criterion), _folds(table))


def _of_held_out(tables: Sequence[CandidateTable], criterion: str, found: np.ndarray) -> Jackknife:
    """The held-out regret with its scatter over seeds, blocks of examples, and networks."""

    def regret(one: CandidateTable) -> list[float]:
        return [_of_folds(one, criterion)[:, 0].mean()]

    if len(tables) > 1:
        return jackknife(tables, regret, filters=False)
    (table,) = tables
    parts = jackknife([table], regret, filters=False, seeds=False).parts
    by_seed = _of_folds(table, criterion)[:, 0]
    if table.seeds > 1:
        variance = np.array([by_seed.var(ddof=1) / len(by_seed)])
        parts = {"seeds": Part(variance, np.array([len(by_seed) - 1.0])), **parts}
    return Jackknife(found[:1], parts)


def _columns(
    table: CandidateTable, criterion: str, outcome: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (lowest chosen) and outcomes (highest best), where both are finite."""
    scores, better = table.lowest_first(criterion), table.better(outcome)
    finite = np.isfinite(scores) & np.isfinite(better)
    return scores[finite], better[finite]


def _of_table(
    table: CandidateTable, criterion: str, k: int
) -> tuple[float, float, float, float, float]:
    scores, better = _columns(table, criterion, table.outcome)
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
        scores, better = _columns(table, criterion, table.finished[:, seed])
        if len(better) > 1:
            shares.append(_percentile(better[lowest(scores)], better) / 100)
    return float(np.mean(shares)) if shares else math.nan


def _chances_of_best(better: np.ndarray, k: int) -> np.ndarray:
    """The chance ``[n]`` of each candidate to be among the k best; ties at the border share it."""
    return chances_of_lowest(-better, min(k, len(better)))


def _least_regret(regret: np.ndarray, chances: np.ndarray) -> float:
    """The expected least regret of the chosen, of which some are certain and some share places."""
    sure, shared = regret[chances == 1], np.sort(regret[(chances > 0) & (chances < 1)])
    least = sure.min() if len(sure) else math.inf
    if not len(shared):
        return float(least)
    places = round(float(chances.sum())) - len(sure)
    of_rank = best_of_sample(len(shared), places)
    return float(of_rank @ np.minimum(shared[: len(of_rank)], least))
