"""How well one column orders another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np

__all__ = [
    "Correlation",
    "discordant_ratio",
    "kendall",
    "kendall_of_finite",
    "kendalls",
    "kendalls_of_each",
    "pearson",
    "sign_of",
    "spearman",
    "top_weighted",
]


@dataclass(frozen=True)
class Correlation:
    """A coefficient in [-1, 1] and its two-sided textbook p-value.

    Both are NaN where the coefficient is undefined: fewer than two rows, or a constant column.
    """

    value: float
    p_value: float


UNDEFINED = Correlation(math.nan, math.nan)


def sign_of(*, higher_is_better: bool, higher_score_is_better: bool = False) -> int:
    """What turns a raw coefficient into agreement: 1, or -1.

    A raw coefficient is that of score and outcome as they are. Agreement is +1 where the score
    orders candidates as the outcome does. Where low scores are chosen and high outcomes are better,
    that is a raw coefficient of -1. Signs are turned nowhere else.
    """
    return -1 if higher_is_better != higher_score_is_better else 1


def _stats() -> ModuleType:
    """SciPy's statistics, imported on first use, which saves half a second of every other run."""
    from scipy import stats

    return stats


def _defined(x: np.ndarray, y: np.ndarray) -> bool:
    return len(x) >= 2 and bool(np.ptp(x) > 0) and bool(np.ptp(y) > 0)


def kendall(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Kendall's tau-b of two columns ``[n]``, which allows for ties (Kendall 1945)."""
    if not _defined(x, y):
        return UNDEFINED
    result = _stats().kendalltau(x, y, variant="b")
    return Correlation(float(result.statistic), float(result.pvalue))


def kendall_of_finite(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b of the rows ``[n]`` where both are finite; NaN where undefined."""
    finite = np.isfinite(x) & np.isfinite(y)
    return kendall(x[finite], y[finite]).value


FEW_PAIRS = 400
"""The most rows of which all pairs are held in memory, which is faster than sorting."""


MANY_COLUMNS = 50
"""The fewest columns that are compared all at once, in one pass over the rows."""


def kendalls(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b ``[K]`` of every one of the ``columns`` ``[K, n]`` with ``y`` ``[n]``.

    Only rows where both are finite count; NaN where undefined.
    """
    known = np.isfinite(y)
    columns, y = columns[:, known], y[known]
    whole = np.isfinite(columns).all(axis=1)
    if len(y) < 2 or (len(y) > FEW_PAIRS and len(columns) < MANY_COLUMNS):
        return np.array([kendall_of_finite(x, y) for x in columns], dtype=np.float64)
    taus = np.array(
        [math.nan if ok else kendall_of_finite(x, y) for x, ok in zip(columns, whole, strict=True)]
    )
    compare = _kendalls_of_many if len(columns) >= MANY_COLUMNS else _kendalls_of_few
    taus[whole] = compare(columns[whole], y)
    return taus


def kendalls_of_each(columns: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """The same ``[M, K]`` with every one of the ``outcomes`` ``[M, n]``."""
    if outcomes.shape[1] > FEW_PAIRS or not (
        np.isfinite(columns).all() and np.isfinite(outcomes).all()
    ):
        return np.array([kendalls(columns, y) for y in outcomes])
    return _kendalls_of_few(columns, outcomes)


def _kendalls_of_few(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same for finite values of y ``[n]`` or ``[M, n]``, from all pairs of rows at once."""
    one, other = np.triu_indices(y.shape[-1], 1)
    of_y = np.sign(y[..., one] - y[..., other]).astype(np.float32)
    of_x = np.sign(columns[:, one] - columns[:, other]).astype(np.float32)
    pairs = np.count_nonzero(of_y, axis=-1)[..., None].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # There are fewer pairs than a float32 can count exactly.
        taus: np.ndarray = (of_y @ of_x.T).astype(np.float64) / np.sqrt(
            np.count_nonzero(of_x, axis=1) * pairs
        )
    return taus


def _kendalls_of_many(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same for finite values, computed row by row, for all columns at once."""
    order = np.argsort(y, kind="stable")
    ordered, y = np.ascontiguousarray(columns[:, order].T), y[order]
    after = np.searchsorted(y, y, side="right")  # rows that tie in y order nothing
    surplus, untied = np.zeros(len(columns)), np.zeros(len(columns))
    pairs = 0
    for row, later in enumerate(after):
        value, rest, tied = ordered[row], ordered[later:], ordered[row + 1 : later]
        more, less = np.count_nonzero(rest > value, axis=0), np.count_nonzero(rest < value, axis=0)
        surplus += more - less
        untied += more + less
        if len(tied):
            untied += np.count_nonzero(tied != value, axis=0)
        pairs += len(rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        taus: np.ndarray = surplus / np.sqrt(untied * pairs)
    return taus


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rank correlation of two columns ``[n]``."""
    if not _defined(x, y):
        return UNDEFINED
    result = _stats().spearmanr(x, y)
    return Correlation(float(result.statistic), float(result.pvalue))


def pearson(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Pearson's linear correlation of two columns ``[n]``."""
    if not _defined(x, y):
        return UNDEFINED
    result = _stats().pearsonr(x, y)
    return Correlation(float(result.statistic), float(result.pvalue))


def top_weighted(x: np.ndarray, y: np.ndarray, *, higher_is_better: bool) -> float:
    """Top-weighted agreement of a score x (lower is chosen) with an outcome y, both ``[n]``.

    Kendall's tau in which the weight of a pair is the sum of its ranks' inverses, by score and by
    outcome in turn (Vigna 2015, arXiv 1404.3325). +1 is a perfect criterion, whichever way the
    outcome is better; NaN where undefined.
    """
    if not _defined(x, y):
        return math.nan
    result = _stats().weightedtau(-x, y if higher_is_better else -y)
    return float(result.statistic)


def discordant_ratio(x: np.ndarray, y: np.ndarray, *, higher_is_better: bool) -> float:
    """The share of all pairs of rows that x and y order oppositely (the paper's counterexamples).

    x is a score (lower is better), y an outcome. A pair tied in either is no counterexample. NaN
    for fewer than two rows.
    """
    n = len(x)
    if n < 2:
        return math.nan
    if not _defined(x, y):
        return 0.0
    better = -y if higher_is_better else y
    pairs = n * (n - 1) // 2
    tied_x, tied_y, tied_both = _tied_pairs(x), _tied_pairs(y), _tied_pairs(x, y)
    # tau-b is (concordant - discordant) / sqrt((pairs - tied_x)(pairs - tied_y)). SciPy needs only
    # n log n steps, and the counts are whole numbers, so that rounding gives them back exactly.
    surplus = round(kendall(x, better).value * math.sqrt((pairs - tied_x) * (pairs - tied_y)))
    ordered = pairs - tied_x - tied_y + tied_both
    return (ordered - surplus) / 2 / pairs


def _tied_pairs(*columns: np.ndarray) -> int:
    _, counts = np.unique(np.column_stack(columns), axis=0, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())
