"""What filters do only together: how much of a tau could come of it by chance."""

from __future__ import annotations

import itertools

import numpy as np

from trueoracle.analysis.table import CandidateTable

__all__ = ["interaction_variance", "standardised_ranks"]

MOST_CELLS = 400_000
"""Candidates × twos of filters up to which twos are told from threes and more."""


def standardised_ranks(columns: np.ndarray) -> np.ndarray:
    """The ranks of each column ``[K, P]``, of mean 0 and variance 1.

    0 for what is not finite, and where all are equal.
    """
    from scipy.stats import rankdata

    made = np.zeros(columns.shape)
    for row, column in zip(made, columns, strict=True):
        finite = np.isfinite(column)
        ranks = rankdata(column[finite])
        if len(ranks) and np.ptp(ranks) > 0:
            row[finite] = (ranks - ranks.mean()) / ranks.std()
    return made


def interaction_variance(
    table: CandidateTable, columns: np.ndarray, outcome: np.ndarray
) -> np.ndarray:
    """The variance ``[K]`` of tau by what is no sum over filters, were it unrelated to the score.

    ``columns`` ``[K, P]`` are standardised ranks of scores, or differences of two such. Sums over
    filters, what filters do in twos, and the rest are orthogonal parts of a column. Two columns
    whose parts of D dimensions are unrelated correlate by them with the variance of (share of the
    one) × (share of the other) / D, and tau by (2/π)² of it (Greiner's relation at 0). Where there
    are too many twos to tell them from the rest, all of it counts as theirs.
    """
    variance = np.zeros(len(columns))
    rows = np.isfinite(outcome)
    if table.pruned is None or rows.sum() < 4:
        return variance
    pruned, number = table.pruned[rows].astype(np.float64), int(rows.sum())
    given = columns[:, rows]
    given = given - given.mean(axis=1, keepdims=True)
    of_outcome = standardised_ranks(outcome[rows][None])
    single = _basis(pruned - pruned.mean(axis=0))
    left = number - 1 - single.shape[1]
    filters = pruned.shape[1]
    pairs = list(itertools.combinations(range(filters), 2))
    one, other = _less(given, single), _less(of_outcome, single)
    if len(pairs) * number <= MOST_CELLS:
        twos = np.column_stack([pruned[:, i] * pruned[:, j] for i, j in pairs] or [np.ones(number)])
        twos = twos - twos.mean(axis=0)
        basis = _basis(twos - single @ (single.T @ twos))
        if basis.shape[1]:
            share = ((one @ basis) ** 2).sum(axis=1) * ((other @ basis) ** 2).sum()
            variance += share / number**2 / basis.shape[1]
        one, other = _less(one, basis), _less(other, basis)
        left -= basis.shape[1]
    else:
        left = min(left, len(pairs))
    if left > 0:
        variance += (one**2).sum(axis=1) * (other**2).sum() / number**2 / left
    found: np.ndarray = (2 / np.pi) ** 2 * variance
    return found


def _less(columns: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What of the columns ``[K, P]`` the basis ``[P, D]`` does not hold."""
    rest: np.ndarray = columns - (columns @ basis) @ basis.T
    return rest


def _basis(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what the columns ``[P, n]`` span."""
    u, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    kept: np.ndarray = u[:, sizes > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))]
    return kept
