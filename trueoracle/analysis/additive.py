"""An additive model of the outcome: the sum of what each pruned filter is worth by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.correlation import kendalls
from trueoracle.analysis.interactions import standardised_ranks
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.table import CandidateTable

__all__ = ["Additive", "additive", "predict_additive"]

PENALTY = 1.0
"""The ridge penalty, which weighs as much as one uninformative candidate. 0.05 to 5 do as well."""

FOLDS = 5

LEAST_A_FILTER = 4
"""The fewest candidates per filter: a fit to fewer depends more on their number than on filters."""


def predict_additive(
    pruned: np.ndarray, known: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray
) -> np.ndarray:
    """The expected value ``[P]`` of every candidate, given the ``values`` ``[K]`` of some.

    Ridge regression (Hoerl & Kennard 1970) of the K ``known`` candidates' ranks on which filters
    they prune, ``pruned`` ``[P, F]``: a candidate's value is the sum of its filters' values. Ranks
    are used so that one network which went wrong does not spoil the rest. They start at 1 for the
    lowest value; infinite values rank last.
    """
    from scipy.stats import rankdata

    some, ranks = pruned[np.asarray(known)], rankdata(values)
    predicted: np.ndarray = ranks.mean() + (pruned - some.mean(axis=0)) @ _worths([(some, ranks)])
    return predicted


def _worths(known: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """What pruning each filter is worth ``[F]``, from lists of candidates and their values.

    Candidates are compared within their own list ``[K, F]`` only.
    """
    features = np.concatenate([pruned - pruned.mean(axis=0) for pruned, _ in known])
    centred = np.concatenate([values - values.mean() for _, values in known])
    penalty = PENALTY * np.eye(features.shape[1])
    worths: np.ndarray = np.linalg.solve(features.T @ features + penalty, features.T @ centred)
    return worths


@dataclass(frozen=True)
class Additive:
    """How well a sum over filters can predict the outcome: what importances could reach.

    A criterion that adds up one importance per filter can do no better than the best such sum.
    ``agreement`` (tau, +1 is perfect) is that of a sum fitted to the outcomes of other candidates
    of the list, fold by fold. It is an estimate, too low where the sum was fitted to few
    candidates. ``other_examples`` says that the sum was judged by other examples than it was fitted
    on. Where it was not, the sum may have learnt what holds for those examples only.
    """

    agreement: float
    folds: int
    other_examples: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def additive(
    tables: CandidateTable | Sequence[CandidateTable], *, folds: int = FOLDS, seed: int = 0
) -> Additive | None:
    """The additive model of a table's mean outcome, cross-validated over candidates.

    Several tables prune different numbers of the same filters. What a filter is worth is then
    fitted to all of them at once, and judged within each. Where tables have blocks of examples, the
    model is fitted on every other block and judged on the blocks between, and the other way round.
    None where a table does not say which filters candidates prune, and for fewer than four
    candidates per filter or per fold.
    """
    several = [tables] if isinstance(tables, CandidateTable) else list(tables)
    lists = []
    for table in several:
        rows = table.order[np.isfinite(table.outcome[table.order])]
        if table.pruned is None or len(rows) < 4 * folds:
            return None
        fold = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows)) % folds
        halves = [(one[rows], other[rows]) for one, other in table.fitted_and_judged]
        lists.append((table.pruned[rows], fold, halves))
    if sum(len(fold) for _, fold, _ in lists) < LEAST_A_FILTER * lists[0][0].shape[1]:
        return None
    taus = []
    parts = len(lists[0][2])
    for part in range(parts):
        for one in range(folds):
            seen = [
                (pruned[fold != one], standardised_ranks(halves[part][0][None, fold != one])[0])
                for pruned, fold, halves in lists
            ]
            worths = _worths(seen)
            for pruned, fold, halves in lists:
                predicted = (pruned[fold == one] @ worths).round(9)
                judged = halves[part][1][fold == one]
                taus.append(float(kendalls(predicted[None], judged)[0]))
    known = [tau for tau in taus if math.isfinite(tau)]
    agreement = float(np.mean(known)) if known else math.nan
    return Additive(agreement, folds, parts > 1)
