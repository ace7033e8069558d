"""An additive model of the outcome: the sum of what each pruned filter is worth by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.correlation import kendall
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
    from sklearn.linear_model import Ridge

    features = pruned.astype(np.float64)
    model = Ridge(alpha=PENALTY).fit(features[np.asarray(known)], rankdata(values))
    predicted: np.ndarray = model.predict(features)
    return predicted


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


def additive(table: CandidateTable, *, folds: int = FOLDS, seed: int = 0) -> Additive | None:
    """The additive model of a table's mean outcome, cross-validated over candidates.

    Where the table has blocks of examples, the model is fitted on every other block and judged on
    the blocks between, and the other way round. None where the table does not say which filters
    candidates prune, and for fewer than four candidates per filter or per fold.
    """
    rows = table.order[np.isfinite(table.outcome[table.order])]
    if table.pruned is None or len(rows) < max(4 * folds, LEAST_A_FILTER * table.pruned.shape[1]):
        return None
    parts = table.fitted_and_judged
    fold = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows)) % folds
    taus = []
    for fitted, judged in parts:
        for one in range(folds):
            held = fold == one
            predicted = predict_additive(
                table.pruned[rows], np.flatnonzero(~held), fitted[rows][~held]
            )
            taus.append(kendall(predicted[held], judged[rows][held]).value)
    known = [tau for tau in taus if math.isfinite(tau)]
    return Additive(float(np.mean(known)) if known else math.nan, folds, len(parts) > 1)
