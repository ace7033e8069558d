"""Whether a tau could arise by chance, where candidates overlap in what they prune."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from trueoracle.analysis.correlation import kendall_of_finite
from trueoracle.analysis.table import CandidateTable

__all__ = ["label_permutation_p_values", "permuted_rows", "why_not_permuted"]

PERMUTATIONS = 2000
PERMUTATIONS_OF_MANY = 500
MANY = 500
"""Candidates above which their pairs are not held in memory, but counted for each relabelling."""


def label_permutation_p_values(
    table: CandidateTable, *, permutations: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Two-sided p-values of tau by criterion, when filter labels are permuted.

    Candidates that prune nearly the same filters have nearly the same scores and outcomes, so that
    252 candidates of 10 filters are far from 252 independent ones, as a textbook p-value takes
    them. Relabelling the filters of a group at random carries every candidate to another one and
    keeps those similarities, as the quadratic assignment procedure does for matrices (Hubert &
    Schultz 1976; Dekker, Krackhardt & Snijders 2007). The p-value is the share of relabellings, the
    given labels among them, with a tau at least as far from zero; all of them are enumerated where
    there are no more than ``permutations`` (by default 2,000, or 500 of more than 500 candidates).

    A relabelling must carry the candidates to themselves: NaN where they are not all ways to prune,
    and where the table does not say what they prune; for a criterion whose scores or outcomes are
    all equal as well. Pairs with a candidate that has no finite value count for neither side.
    """
    if permutations is None:
        permutations = PERMUTATIONS if len(table) <= MANY else PERMUTATIONS_OF_MANY
    rows = permuted_rows(table, permutations, seed)
    result = dict.fromkeys(table.scores, math.nan)
    if rows is None:
        return result
    if len(table) > MANY:
        return result | _counted(table, rows)
    outcome = _orders(table.outcome)
    orders = {name: _orders(column) for name, column in table.scores.items()}
    orders = {name: order for name, order in orders.items() if order.any()}
    if not orders or not outcome.any():
        return result
    # One product for all criteria: permuting the outcome's pairs is permuting each criterion's.
    stacked = np.stack([order.ravel() for order in orders.values()]).astype(np.float32)
    observed = np.abs(stacked @ outcome.ravel().astype(np.float32))
    as_far = np.zeros(len(orders))
    count = 0
    for moved in rows:
        surplus = np.abs(stacked @ outcome[np.ix_(moved, moved)].ravel().astype(np.float32))
        as_far += surplus >= observed
        count += 1
    for name, hits in zip(orders, as_far, strict=True):
        result[name] = float(hits / count)
    return result


def _counted(table: CandidateTable, rows: Iterator[np.ndarray]) -> dict[str, float]:
    """The same by Kendall's tau of the permuted columns: slower, in little memory."""
    outcome = table.outcome
    taus = {name: kendall_of_finite(x, outcome) for name, x in table.scores.items()}
    taus = {name: tau for name, tau in taus.items() if math.isfinite(tau)}
    hits = dict.fromkeys(taus, 0)
    count = 0
    for moved in rows:
        count += 1
        for name, tau in taus.items():
            other = kendall_of_finite(table.scores[name], outcome[moved])
            hits[name] += abs(other) >= abs(tau) - 1e-12
    return {name: number / count for name, number in hits.items()}


def permuted_rows(
    table: CandidateTable, permutations: int, seed: int
) -> Iterator[np.ndarray] | None:
    """Where each candidate goes ``[P]`` by every relabelling, the given labels first.

    None where relabelling does not carry the candidates to themselves.
    """
    if table.pruned is None or why_not_permuted(table):
        return None
    return _moves(table.pruned, table.groups, permutations, seed)


def why_not_permuted(table: CandidateTable) -> str:
    """The reason in words; empty where labels can be permuted."""
    if table.pruned is None:
        return "the table does not say what candidates prune"
    if table.sampled:
        return "the candidates are a sample, which relabelling does not carry to itself"
    if not _is_closed(table.pruned, table.groups):
        return "the candidates are not all ways to prune so many filters, each once"
    return ""


def _moves(
    pruned: np.ndarray, groups: tuple[int, ...], permutations: int, seed: int
) -> Iterator[np.ndarray]:
    place = {row.tobytes(): index for index, row in enumerate(pruned)}
    labels: Iterator[np.ndarray]
    ends = np.cumsum(groups)
    spans = [np.arange(end - size, end) for end, size in zip(ends, groups, strict=True)]
    if math.prod(map(math.factorial, groups)) <= permutations:
        each = (itertools.permutations(span) for span in spans)
        labels = (np.concatenate(one) for one in itertools.product(*each))
    else:
        generator = np.random.Generator(np.random.PCG64(seed))
        drawn = (
            np.concatenate([generator.permutation(span) for span in spans])
            for _ in range(permutations - 1)
        )
        labels = itertools.chain([np.arange(sum(groups))], drawn)
    for label in labels:
        moved = np.ascontiguousarray(pruned[:, label])
        yield np.array([place[row.tobytes()] for row in moved])


def _is_closed(pruned: np.ndarray, groups: tuple[int, ...]) -> bool:
    """Whether the rows are all ways to prune as many filters of each group as each of them does."""
    counts = [part.sum(axis=1) for part in np.split(pruned, np.cumsum(groups)[:-1], axis=1)]
    if any(np.ptp(count) for count in counts):
        return False
    size = math.prod(math.comb(n, int(c[0])) for n, c in zip(groups, counts, strict=True))
    return size == len(pruned) == len(np.unique(pruned, axis=0))


def _orders(column: np.ndarray) -> np.ndarray:
    """int8 ``[P, P]``: the sign of each difference; 0 for ties and what is not finite."""
    finite = np.where(np.isfinite(column), column, np.nan)
    with np.errstate(invalid="ignore"):
        difference = finite[:, None] - finite[None, :]
    signs: np.ndarray = np.nan_to_num(np.sign(difference)).astype(np.int8)
    return signs
