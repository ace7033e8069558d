"""Interactions of filters: how much of a tau could come by chance of what they do only together."""

from __future__ import annotations

import itertools

import numpy as np

from trueoracle.analysis.table import CandidateTable

__all__ = ["interaction_variance", "standardised_ranks"]

MOST_CELLS = 400_000
"""The most candidates × pairs of filters of which pairs are told from threes and more."""


def standardised_ranks(columns: np.ndarray) -> np.ndarray:
    """The ranks of each column ``[K, P]``, scaled to mean 0 and variance 1.

    The rank is 0 where a value is not finite, and where all values of the column are equal.
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
    """The variance ``[K]`` of tau that filters' interactions would add if unrelated to the score.

    ``columns`` ``[K, P]`` are standardised ranks of scores, or differences of two such. A column
    has three orthogonal parts: a sum over filters, what filters do in pairs, and the rest. Where
    the parts of two columns, of D dimensions, are unrelated, the correlation that they add has the
    variance (share of the one) × (share of the other) / D, and tau (2/π)² of that variance
    (Greiner's relation at 0). Where there are too many pairs of filters to tell their part from the
    rest, all of the rest counts as theirs.
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
    """The part of the columns ``[K, P]`` that lies outside the basis ``[P, D]``."""
    rest: np.ndarray = columns - (columns @ basis) @ basis.T
    return rest


def _basis(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the space that the columns ``[P, n]`` span."""
    u, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    kept: np.ndarray = u[:, sizes > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))]
    return kept
