"""Several criteria on the same candidates: which is better, which agree, what they add."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trueoracle.analysis.additive import additive
from trueoracle.analysis.correlation import kendall, kendall_of_finite, kendalls
from trueoracle.analysis.interactions import standardised_ranks
from trueoracle.analysis.jackknife import in_words, jackknife
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError

__all__ = [
    "Agreement",
    "Combination",
    "Difference",
    "adjusted_p_values",
    "combine",
    "compare",
    "differences",
    "partial_kendall",
    "rank_agreement",
]


def compare(
    tables: CandidateTable | Sequence[CandidateTable], reference: str | None = None
) -> dict[str, Any]:
    """All that can be said of the criteria of one table compared with each other, as plain values.

    ``reference`` is the criterion that the others are compared with, by default the first; the
    others' partial tau (``kendall_tau``, raw) is their tau given the reference. For several tables,
    each of another dense network and with the same criteria, the values are means over the tables;
    what is fitted to candidates (``combination``, ``additive``) is then None.
    """
    several = [tables] if isinstance(tables, CandidateTable) else list(tables)
    names = list(several[0].scores)
    first = reference or names[0]
    alone = several[0] if len(several) == 1 else None
    return {
        "differences": [one.as_dict() for one in differences(several, first)],
        "partial": [
            finite_or_none(
                {"criterion": name, "given": first, "kendall_tau": _partial(several, name, first)}
            )
            for name in names
            if name != first
        ],
        "agreement": rank_agreement([table.scores for table in several]).as_dict(),
        "combination": made.as_dict() if alone and (made := combine(alone)) else None,
        "additive": sums.as_dict() if alone and (sums := additive(alone)) else None,
    }


def _partial(tables: Sequence[CandidateTable], name: str, given: str) -> float:
    """The mean over tables of a criterion's partial tau."""
    found = []
    for table in tables:
        columns = table.scores[name], table.outcome, table.scores[given]
        finite = np.all([np.isfinite(column) for column in columns], axis=0)
        found.append(partial_kendall(*(column[finite] for column in columns)))
    return float(np.mean(found))


@dataclass(frozen=True)
class Difference:
    """How much better one criterion agrees with the outcome than another.

    ``difference`` is that of the agreements (tau with its sign turned so that +1 is perfect), first
    minus second. ``low`` to ``high`` is its 95 % interval. ``p_value`` comes from the same
    jackknife, which leaves each unit out of both criteria together; ``adjusted_p_value`` allows for
    all differences of the table. ``over`` says what these count and what they take as given.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    adjusted_p_value: float
    over: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def differences(
    tables: Sequence[CandidateTable],
    reference: str,
    *,
    method: Literal["holm", "fdr_bh"] = "holm",
) -> list[Difference]:
    """Every criterion against the ``reference``, paired: each unit is left out of both."""
    others = [name for name in tables[0].scores if name != reference]
    if not others:
        return []

    def gains(table: CandidateTable) -> np.ndarray:
        base, *found = _agreements(table, [reference, *others])
        made: np.ndarray = np.array(found) - base
        return made

    columns = []
    for table in tables:
        scores = [table.lowest_first(name) for name in (reference, *others)]
        ranks = standardised_ranks(np.stack(scores))
        columns.append(ranks[1:] - ranks[0])
    resampled = jackknife(tables, gains, columns=columns)
    p_values = [resampled.p_value(place) for place in range(len(others))]
    made = []
    for place, (name, adjusted) in enumerate(
        zip(others, adjusted_p_values(p_values, method), strict=True)
    ):
        interval = resampled.interval(place, bounds=(-2, 2))
        made.append(
            Difference(
                first=name,
                second=reference,
                difference=float(resampled.estimate[place]),
                low=interval.low,
                high=interval.high,
                p_value=p_values[place],
                adjusted_p_value=adjusted,
                over=in_words(tables),
            )
        )
    return made


def adjusted_p_values(
    p_values: Sequence[float], method: Literal["holm", "fdr_bh"] = "holm"
) -> list[float]:
    """P-values that allow for their number; NaN stay NaN and are not counted.

    ``holm`` bounds the chance of any false finding (Holm 1979), ``fdr_bh`` the share of false ones
    among the findings (Benjamini & Hochberg 1995).
    """
    given = np.asarray(p_values, dtype=np.float64)
    finite = np.isfinite(given)
    result = np.full(len(given), math.nan)
    known = given[finite]
    if method == "fdr_bh" and len(known):
        from scipy.stats import false_discovery_control

        result[finite] = false_discovery_control(known)
    elif len(known):
        order = np.argsort(known)
        left = len(known) - np.arange(len(known))  # p-values that are not smaller
        adjusted = np.empty(len(known))
        adjusted[order] = np.minimum(1, np.maximum.accumulate(left * known[order]))
        result[finite] = adjusted
    return [float(value) for value in result]


def partial_kendall(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Kendall's partial tau of x and y given a third column (Kendall 1942); rows ``[n]``.

    NaN where one of the taus is undefined, or where the third column orders rows as x or y does.
    """
    xy, xz, yz = kendall(x, y).value, kendall(x, given).value, kendall(y, given).value
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(left) if left > 1e-12 else math.nan


@dataclass(frozen=True)
class Agreement:
    """Raw tau among criteria ``[C, C]``, and an order that puts similar criteria side by side.

    ``linkage`` ``[C-1, 4]`` is SciPy's, of average distances 1 - tau; empty for a single criterion.
    """

    criteria: tuple[str, ...]
    tau: tuple[tuple[float, ...], ...]
    order: tuple[int, ...]
    linkage: tuple[tuple[float, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return {
            "criteria": list(self.criteria),
            "tau": [[None if math.isnan(v) else v for v in row] for row in self.tau],
            "order": [self.criteria[place] for place in self.order],
            "linkage": [list(row) for row in self.linkage],
        }


def rank_agreement(each: Sequence[Mapping[str, np.ndarray]]) -> Agreement:
    """How far criteria order the candidates alike, on average over dense networks.

    ``each`` has one mapping per network, of criteria to their scores. Undefined taus count as 0 in
    the clustering.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    names = list(each[0])
    size = len(names)
    tau = np.ones((size, size))
    for i in range(size):
        for j in range(i):
            taus = [kendall_of_finite(scores[names[i]], scores[names[j]]) for scores in each]
            tau[i, j] = tau[j, i] = np.mean(taus)
    shown = tuple(tuple(map(float, row)) for row in tau)
    if size < 2:
        return Agreement(tuple(names), shown, tuple(range(size)), ())
    distance = squareform(1 - np.nan_to_num(tau), checks=False)
    tree = optimal_leaf_ordering(linkage(distance, method="average"), distance)
    order = tuple(map(int, leaves_list(tree)))
    return Agreement(tuple(names), shown, order, tuple(tuple(map(float, row)) for row in tree))


@dataclass(frozen=True)
class Combination:
    """What criteria predict together, on candidates that the fit has not seen.

    ``agreement`` (+1 is perfect) is that of ridge regression of the outcome's ranks on the
    criteria's ranks, ``single_agreement`` that of the criterion which agrees best on the candidates
    of the fit; both are predicted fold by fold. ``weights`` are those of a fit to all candidates,
    on ranks scaled to unit variance, positive where a low score is good. ``other_examples`` says
    that both were judged by other examples than they were fitted on.
    """

    agreement: float
    single: str
    single_agreement: float
    gain: float
    folds: int
    weights: dict[str, float]
    other_examples: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def combine(table: CandidateTable, *, folds: int = 5, seed: int = 0) -> Combination | None:
    """How much a fitted combination of all criteria gains over the best single one.

    Cross-validated over candidates and, where the table has blocks of examples, over these: fitted
    on every other block and judged on the blocks between, and the other way round. Candidates of a
    fold overlap with those of the fit, as all candidates do, so that the gain holds within this
    list only. Criteria without a finite score for some candidate are left out. None where fewer
    than two criteria are left, or fewer than four candidates per fold.
    """
    if folds < 2:
        raise InputError(f"cross-validation needs at least 2 folds, got {folds}")
    rows = table.order[np.isfinite(table.outcome[table.order])]
    if len(rows) < 4 * folds:
        return None
    names = [
        name
        for name, column in table.scores.items()
        if np.isfinite(column[rows]).all() and np.ptp(column[rows]) > 0
    ]
    if len(names) < 2 or np.ptp(table.outcome[rows]) == 0:
        return None
    from scipy.stats import rankdata
    from sklearn.linear_model import RidgeCV

    # Turned so that low is good on both sides: predictions and outcomes then agree positively.
    ranks = np.column_stack([rankdata(table.lowest_first(name)[rows]) for name in names])
    ranks = (ranks - ranks.mean(axis=0)) / ranks.std(axis=0)

    def standardised(outcome: np.ndarray) -> np.ndarray:
        places: np.ndarray = rankdata(-table.better(outcome)[rows])
        scaled: np.ndarray = (places - places.mean()) / (float(places.std()) or 1.0)
        return scaled

    outcome, parts = standardised(table.outcome), table.fitted_and_judged
    model = RidgeCV(alphas=np.logspace(-2, 4, 13))
    fold = np.random.Generator(np.random.PCG64(seed)).permutation(len(outcome)) % folds
    taus = []
    for fitted, judged in (map(standardised, part) for part in parts):
        for one in range(folds):
            seen, held = fold != one, fold == one
            both = model.fit(ranks[seen], fitted[seen]).predict(ranks[held])
            single = ranks[held, _best(ranks[seen], fitted[seen])]
            # One tau per fold, since predictions of different fits are not on one scale.
            taus.append([kendall(column, judged[held]).value for column in (both, single)])
    of_all, of_single = np.nanmean(taus, axis=0)
    return Combination(
        agreement=float(of_all),
        single=names[_best(ranks, outcome)],
        single_agreement=float(of_single),
        gain=float(of_all - of_single),
        folds=folds,
        weights=dict(zip(names, map(float, model.fit(ranks, outcome).coef_), strict=True)),
        other_examples=len(parts) > 1,
    )


def _best(ranks: np.ndarray, outcome: np.ndarray) -> int:
    """The column of ``ranks`` that agrees best with the outcome."""
    taus = [kendall(column, outcome).value for column in ranks.T]
    return int(np.argmax(np.nan_to_num(taus, nan=-2)))


def _agreements(table: CandidateTable, names: Sequence[str]) -> list[float]:
    taus = kendalls(np.stack([table.scores[name] for name in names]), table.outcome)
    return [table.sign(name) * float(tau) for name, tau in zip(names, taus, strict=True)]
