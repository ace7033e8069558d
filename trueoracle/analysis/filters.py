"""Which filters matter: what candidates come to that prune a filter, or a pair of filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trueoracle.analysis.additive import PENALTY
from trueoracle.analysis.table import CandidateTable

__all__ = ["MOST_PAIRED", "FilterWorth", "filter_worth"]

MOST_PAIRED = 40
"""The most filters whose pairs are averaged: a picture of more has cells that nobody can see."""


@dataclass(frozen=True, eq=False)
class FilterWorth:
    """The mean outcome of candidates by which of F filters they prune.

    - ``pruned``, ``kept`` ``[F]``: the mean outcome of the candidates that prune a filter, and of
      those that keep it; NaN where there are none;
    - ``additive`` ``[F]``: what pruning the filter adds to the outcome in a sum over all filters,
      fitted to all candidates by ridge regression (Hoerl & Kennard 1970); sums to zero within a
      group of which every candidate prunes as many;
    - ``pairs`` ``[F, F]``: the mean outcome of the candidates that prune both of two filters, NaN
      where there are none and on the diagonal; None for more than :data:`MOST_PAIRED` filters;
    - ``mean``: the mean outcome of all candidates, to which a sum over filters adds.

    Diverged networks count as the worst finite outcome, as everywhere.
    """

    pruned: np.ndarray
    kept: np.ndarray
    additive: np.ndarray
    pairs: np.ndarray | None
    mean: float

    @property
    def fitted(self) -> np.ndarray:
        """What a sum over filters makes of pruning each filter, all else on average ``[F]``."""
        return self.mean + self.additive


def filter_worth(table: CandidateTable) -> FilterWorth | None:
    """The worth of each filter; None where the table does not say what candidates prune."""
    if table.pruned is None or not np.isfinite(table.outcome).any():
        return None
    known = np.isfinite(table.outcome)
    outcome, pruned = table.outcome[known], table.pruned[known].astype(np.float64)
    pairs = None
    if pruned.shape[1] <= MOST_PAIRED:
        pairs = _means(pruned.T @ (pruned * outcome[:, None]), pruned.T @ pruned)
        np.fill_diagonal(pairs, np.nan)
    return FilterWorth(
        pruned=_means(outcome @ pruned, pruned.sum(axis=0)),
        kept=_means(outcome @ (1 - pruned), (1 - pruned).sum(axis=0)),
        additive=_fit(pruned, outcome, table.groups),
        pairs=pairs,
        mean=float(outcome.mean()),
    )


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    made: np.ndarray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return made


def _fit(pruned: np.ndarray, outcome: np.ndarray, groups: tuple[int, ...]) -> np.ndarray:
    from sklearn.linear_model import Ridge

    found: np.ndarray = Ridge(alpha=PENALTY).fit(pruned, outcome).coef_
    start = 0
    for count in groups:  # as many go in every candidate: only differences within a group count
        own = slice(start, start + count)
        if np.ptp(pruned[:, own].sum(axis=1)) == 0:
            found[own] -= found[own].mean()
        start += count
    return found
