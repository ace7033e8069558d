"""Whether a tau could arise by chance, where candidates overlap in what they prune."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from trueoracle.analysis.correlation import kendalls
from trueoracle.analysis.interactions import standardised_ranks
from trueoracle.analysis.table import CandidateTable

__all__ = [
    "how_permuted",
    "label_permutation_p_values",
    "permuted_rows",
    "why_not_permuted",
]

PERMUTATIONS, PERMUTATIONS_OF_MANY = 2000, 500

FITTED, FITTED_OF_MANY = 1000, 200
"""Relabellings of a sample of candidates, fewer since each takes longer."""

LEAST_FITTED = 5
"""The fewest candidates of a sample to which a sum over filters is fitted."""

MANY = 500
"""The most candidates whose pairs are held in memory; of more, they are counted each time."""

FEW_HITS = 10
"""A p-value of fewer relabellings as far from zero than this is read from the tail's shape."""


def label_permutation_p_values(
    tables: CandidateTable | Sequence[CandidateTable],
    *,
    permutations: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Two-sided p-values of tau by criterion, when filter labels are permuted.

    Candidates that prune nearly the same filters have nearly the same scores and outcomes, so that
    252 candidates of 10 filters are far from 252 independent ones, as a textbook p-value takes
    them. Relabelling the filters of a group at random carries every candidate to another one and
    keeps those similarities, as the quadratic assignment procedure does for matrices (Hubert &
    Schultz 1976; Dekker, Krackhardt & Snijders 2007). The p-value is the share of relabellings, the
    given labels among them, with a tau at least as far from zero. All relabellings are enumerated
    where there are no more than ``permutations`` (by default 2,000, or 500 for more than 500
    candidates; half as many or fewer for a sample).

    Relabelling does not carry a sample of candidates to itself. There the score is divided into two
    parts. One is what a sum over filters (ridge regression of the score's ranks) predicts of a
    candidate; the sum has a value for the relabelled candidate, too, though that was never scored.
    The other part is the rest, which is shuffled among candidates (after Freedman & Lane 1983).

    Fewer than ten relabellings as far from zero leave a p-value uncertain, and small p-values are
    needed where many are adjusted together. The p-value is then read from a normal distribution of
    atanh(sin(πτ/2)) with the relabellings' spread, and is never below two of all relabellings, or
    of all orders of the candidates.

    For tables of several dense networks it is the p-value of their mean tau; the filters of each
    network are relabelled independently. All tables have the same criteria.

    NaN where the table does not say what candidates prune, where a sample has fewer than five
    candidates with a value, and for a criterion whose scores or outcomes are all equal. Pairs with
    a candidate that has no finite value count for neither side.
    """
    several = [tables] if isinstance(tables, CandidateTable) else list(tables)
    result = dict.fromkeys(several[0].scores, math.nan)
    if not result or any(table.pruned is None for table in several):
        return result
    each = [_relabelled(one, permutations, seed + place) for place, one in enumerate(several)]
    observed = np.mean([own for own, _ in each], axis=0)
    relabelled = _drawn_together([others for _, others in each], permutations, seed)
    every = math.prod(math.factorial(size) for table in several for size in table.groups)
    for name, tau, others in zip(result, observed, relabelled.T, strict=True):
        if math.isfinite(tau):
            # However many relabellings there are, candidates have no more orders than these.
            orders = math.prod(math.factorial(_with_values(one, name)) for one in several)
            result[name] = _p_value(float(tau), others, every, min(every, orders))
    return result


def _with_values(table: CandidateTable, name: str) -> int:
    return int((np.isfinite(table.scores[name]) & np.isfinite(table.outcome)).sum())


def _relabelled(
    table: CandidateTable, permutations: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Taus ``[C]`` of a table, and those of relabellings ``[R, C]``, the given labels first."""
    few = len(table) <= MANY
    rows = permuted_rows(
        table, permutations or (PERMUTATIONS if few else PERMUTATIONS_OF_MANY), seed
    )
    if rows is None:
        number = permutations or (FITTED if few else FITTED_OF_MANY)
        return _fitted(table, number, seed)
    return _counted(table, rows) if len(table) > MANY else _paired(table, rows)


def _drawn_together(each: Sequence[np.ndarray], permutations: int | None, seed: int) -> np.ndarray:
    """Means ``[R, C]`` over tables of relabelled taus, the given labels of all of them first."""
    if len(each) == 1:
        return each[0]
    number = permutations or PERMUTATIONS
    places = [np.arange(len(own)) for own in each]
    if math.prod(map(len, each)) <= number:
        chosen = [axis.ravel() for axis in np.meshgrid(*places, indexing="ij")]
    else:
        generator = np.random.Generator(np.random.PCG64(seed))
        chosen = [np.append(0, generator.choice(one, size=number - 1)) for one in places]
    means: np.ndarray = np.mean([own[one] for own, one in zip(each, chosen, strict=True)], axis=0)
    return means


def _p_value(tau: float, relabelled: np.ndarray, every: int, orders: int) -> float:
    """The p-value of the observed tau among relabelled ones ``[R]``, of which it is the first.

    It is at least 2 of ``orders``: the opposite order is as far from zero.
    """
    from scipy import stats

    hits = int((np.abs(relabelled) >= abs(tau) - 1e-6).sum())
    share = hits / len(relabelled)
    if len(relabelled) >= every:
        return share
    least = math.exp(math.log(2) - math.log(orders))
    spread = float(_fisher(relabelled[1:]).std())
    if hits >= FEW_HITS or len(relabelled) < 10 * FEW_HITS or spread == 0:
        return max(share, least)
    tail = float(2 * stats.norm.sf(abs(float(_fisher(np.array(tau)))) / spread))
    return max(min(share, tail), least)


def _fisher(taus: np.ndarray) -> np.ndarray:
    made: np.ndarray = np.arctanh(np.sin(np.pi / 2 * np.clip(taus, -0.999, 0.999)))
    return made


def _paired(table: CandidateTable, rows: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Taus ``[C]`` and relabelled ones ``[R, C]``, from all pairs of candidates at once."""
    outcome = _orders(table.outcome)
    orders = np.stack([_orders(column) for column in table.scores.values()])
    # Permuting the outcome's pairs permutes those of every criterion: one product serves all.
    stacked = orders.reshape(len(orders), -1).astype(np.float32)
    untied = np.abs(stacked).sum(axis=1) * float(np.abs(outcome).sum(dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        relabelled = np.array(
            [
                stacked @ outcome[np.ix_(moved, moved)].ravel().astype(np.float32) / np.sqrt(untied)
                for moved in rows
            ]
        )
    return relabelled[0], relabelled


def _counted(table: CandidateTable, rows: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same by Kendall's tau of the permuted columns: slower, but with little memory."""
    columns, outcome = np.stack(list(table.scores.values())), table.outcome
    relabelled = np.array([kendalls(columns, outcome[moved]) for moved in rows])
    return relabelled[0], relabelled


def _fitted(table: CandidateTable, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Taus and relabelled ones of a sample; a fit gives the scores of relabelled candidates."""
    from sklearn.linear_model import RidgeCV

    pruned, outcome = np.asarray(table.pruned, dtype=np.float32), table.outcome
    columns = np.stack(list(table.scores.values()))
    observed = kendalls(columns, outcome)
    relabelled = np.full((permutations, len(columns)), math.nan)
    generator = np.random.Generator(np.random.PCG64(seed))
    spans = _spans(table.groups)
    labels = [
        np.concatenate([generator.permutation(span) for span in spans])
        for _ in range(permutations - 1)
    ]
    for place, column in enumerate(columns):
        # Drawn along an order that does not depend on how candidates are listed.
        rows = table.order[np.isfinite(column[table.order])]
        if not math.isfinite(observed[place]) or len(rows) < LEAST_FITTED:
            observed[place] = math.nan
            continue
        ranks = standardised_ranks(column[rows][None])[0]
        worth = RidgeCV(alphas=np.logspace(-3, 4, 15)).fit(pruned[rows], ranks).coef_
        rest = ranks - pruned[rows] @ worth
        moved = pruned[rows] @ np.stack([_moved(worth, label) for label in labels], axis=1)
        moved += np.stack([rest[generator.permutation(len(rows))] for _ in labels], axis=1)
        relabelled[0, place] = observed[place]
        relabelled[1:, place] = kendalls(moved.T, outcome[rows])
    return observed, relabelled


def _moved(worth: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The worth of each filter after its label was given to another filter."""
    made = np.empty(len(worth), dtype=np.float32)
    made[label] = worth
    return made


def permuted_rows(
    table: CandidateTable, permutations: int, seed: int
) -> Iterator[np.ndarray] | None:
    """Where each candidate goes ``[P]`` by every relabelling, the given labels first.

    None where relabelling does not carry the candidates to themselves.
    """
    if table.pruned is None or table.sampled or not _is_closed(table.pruned, table.groups):
        return None
    return _moves(table.pruned, table.groups, permutations, seed)


def why_not_permuted(table: CandidateTable) -> str:
    """The reason in words; empty where labels can be permuted."""
    return "the table does not say what candidates prune" if table.pruned is None else ""


def how_permuted(table: CandidateTable) -> str:
    """How labels are permuted where candidates are not all ways to prune, in words; else empty."""
    if table.pruned is None:
        return ""
    what = "the sum over filters that fits the score is relabelled, the rest of it shuffled"
    if table.sampled:
        return f"the candidates are a sample: {what}"
    if not _is_closed(table.pruned, table.groups):
        return f"the candidates are not all ways to prune so many filters, each once: {what}"
    return ""


def _spans(groups: tuple[int, ...]) -> list[np.ndarray]:
    ends = np.cumsum(groups)
    return [np.arange(end - size, end) for end, size in zip(ends, groups, strict=True)]


def _moves(
    pruned: np.ndarray, groups: tuple[int, ...], permutations: int, seed: int
) -> Iterator[np.ndarray]:
    find = _finder(pruned)
    labels: Iterator[np.ndarray]
    spans = _spans(groups)
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
        yield find(pruned[:, label])


def _finder(pruned: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that finds the rows ``[P]`` that prune the same as given rows."""
    if pruned.shape[1] < 63:
        bits = 1 << np.arange(pruned.shape[1], dtype=np.int64)
        keys = pruned @ bits
        order = np.argsort(keys)
        return lambda moved: order[np.searchsorted(keys[order], moved @ bits)]
    place = {row.tobytes(): index for index, row in enumerate(pruned)}
    return lambda moved: np.array([place[row.tobytes()] for row in np.ascontiguousarray(moved)])


def _is_closed(pruned: np.ndarray, groups: tuple[int, ...]) -> bool:
    """Whether the rows are all ways to prune their number of filters of each group."""
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
