"""What the bench says of the questions that it was made for. No torch.

Dense networks are left out one by one, each within its family, and so are the blocks of test
examples: what is found allows for other networks trained in the same way, and for other examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trueoracle.analysis.additive import additive
from trueoracle.analysis.assessment import MATTERS, SIGNIFICANT
from trueoracle.analysis.comparison import adjusted_p_values
from trueoracle.analysis.correlation import kendalls_of_each
from trueoracle.analysis.jackknife import LEAST_NETWORKS, Leaves, combine_leaves, in_words
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.table import CandidateTable
from trueoracle.bench.leaderboard import Known, Place, by_layer, leaderboard
from trueoracle.bench.table import FAMILIES, Bench, BenchStudy
from trueoracle.errors import InputError

__all__ = ["COMPARED", "LITTLE", "QUESTIONS", "Finding", "findings"]

QUESTIONS = {
    "oracle": "Does the pruned train loss predict the network after retraining?",
    "best": "Is one criterion the best?",
    "sum": "Does a sum over filters predict on other images, and more than the best criterion?",
    "fit": "Do criteria predict less where dense networks are overfitted than where underfitted?",
    "classes": "Do criteria predict less where the task is harder?",
}
"""The questions, by a word for each."""

COMPARED = {
    "fit": (("glyphs-62-underfit", "glyphs-62"),),
    "classes": (("glyphs-10", "glyphs-62"), ("digits", "glyphs-10")),
}
"""Families of the same network. To each question Yes means that the first has the higher tau."""

ALL, ORACLE, SUM = "all", "oracle", "a sum over filters"

LITTLE = MATTERS / 2
"""The size below which a difference of two agreements counts as none."""


@dataclass(frozen=True)
class Finding:
    """One number that the bench gives, with its 95 % interval ``low`` to ``high``.

    - ``value``: the agreement of ``what`` (+1 is perfect) in some ``families``; less the agreement
      of ``less`` where that is not empty, which is a criterion or a family;
    - ``at_most``: the upper bound of its size, with 95 % confidence;
    - ``p_value``: of its being zero, and ``equivalence_p_value``: of its size being
      :data:`~trueoracle.analysis.assessment.MATTERS` or more (a difference: :data:`LITTLE`). Both
      are Holm's over all findings; those of the best criterion over all criteria;
    - ``networks``: the number of dense networks; ``over``: what the interval counts, in words;
    - ``could_be_best``: the number of criteria that could be the best; None for other questions.
    """

    question: str
    metric: str
    families: str
    what: str
    less: str
    value: float
    low: float
    high: float
    at_most: float
    p_value: float
    equivalence_p_value: float
    networks: int
    over: str
    could_be_best: int | None = None

    @property
    def answer(self) -> str:
        """The answer to the question: ``"Yes"``, ``"No"`` or ``"Unclear"``.

        - Yes: the value is certainly positive and, if it is no difference, at least
          :data:`~trueoracle.analysis.assessment.MATTERS`;
        - No: it is certainly negative, or certainly smaller than what p-values of equivalence test;
        - of the best criterion: Yes where no other criterion could be the best, else Unclear.
        """
        if self.could_be_best is not None:
            return "Yes" if self.could_be_best == 1 else "Unclear"
        is_certain = self.p_value < SIGNIFICANT
        if is_certain and self.value >= (0 if self.less else MATTERS):
            return "Yes"
        is_small = self.equivalence_p_value < SIGNIFICANT
        return "No" if is_small or (is_certain and self.value < 0) else "Unclear"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none({**asdict(self), "answer": self.answer})


def findings(bench: Bench, metrics: Sequence[str]) -> list[Finding]:
    """What the bench says of each question, for each outcome by its column.

    Families with fewer than :data:`~trueoracle.analysis.jackknife.LEAST_NETWORKS` dense networks
    say nothing of other networks and are left out. Raises :class:`InputError` where all are.
    """
    families = {}
    for family in FAMILIES:
        own = [one for one in bench.studies if one.family == family]
        if len({one.dense for one in own}) >= LEAST_NETWORKS:
            families[family] = own
    if not families:
        raise InputError(
            f"the bench has no family with {LEAST_NETWORKS} dense networks or more, which findings "
            "are about"
        )
    found = [one for metric in metrics for one in _of_metric(bench, metric, families)]
    tested = [place for place, one in enumerate(found) if one.could_be_best is None]
    p_values = adjusted_p_values([found[place].p_value for place in tested])
    others = adjusted_p_values([found[place].equivalence_p_value for place in tested])
    for place, p, q in zip(tested, p_values, others, strict=True):
        found[place] = replace(found[place], p_value=p, equivalence_p_value=q)
    return found


Column = tuple[str, str]
"""What is measured of a layer: the agreement of the first, less that of the second, if any."""


def _of_metric(
    bench: Bench, metric: str, families: Mapping[str, list[BenchStudy]]
) -> list[Finding]:
    """The findings of one outcome, with p-values that are not adjusted yet."""
    every = [one for studies in families.values() for one in studies]
    scopes = {ALL: every, **families} if len(families) > 1 else dict(families)
    known: Known = {}
    places = {scope: leaderboard(bench, metric, own, known) for scope, own in scopes.items()}
    best = next(iter(places.values()))[0].criterion
    columns: list[Column] = [(ORACLE, ""), (SUM, ""), (SUM, best)]
    columns += [] if best == ORACLE else [(best, "")]
    layers = [_measured(bench, metric, own, columns) for own in by_layer(every)]
    shares = {scope: _share(layers, own) for scope, own in scopes.items()}

    def finding(question: str, scope: str, share: np.ndarray, of: Column, less: str) -> Finding:
        found = _finding(layers, share, columns.index(of), is_difference=less != "")
        return replace(
            found, question=question, metric=metric, families=scope, what=of[0], less=less
        )

    made = [finding("oracle", scope, share, (ORACLE, ""), "") for scope, share in shares.items()]
    made += [
        _best(metric, scope, own, len({one.dense for one in scopes[scope]}))
        for scope, own in places.items()
    ]
    for scope, share in shares.items():
        made += [finding("sum", scope, share, (SUM, less), less) for less in ("", best)]
    for question, pairs in COMPARED.items():
        for one, other in pairs:
            if one in families and other in families:
                share = shares[one] - shares[other]
                made += [finding(question, one, share, of, other) for of in columns if not of[1]]
    return made


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of a dense network, over all of its ratios."""

    study: BenchStudy
    table: CandidateTable
    leaves: Leaves


def _measured(
    bench: Bench, metric: str, studies: list[BenchStudy], columns: Sequence[Column]
) -> _Layer:
    """The columns of a layer, whole and without each block of examples."""
    tables = [bench.table(one, metric) for one in studies]
    names = sorted({name for column in columns for name in column if name not in ("", SUM)})
    taus = [
        one.sign(ORACLE)
        * kendalls_of_each(np.stack([one.scores[n] for n in names]), one.without_blocks)
        for one in tables
    ]
    found = dict(zip(names, np.nan_to_num(taus).mean(axis=0).T, strict=True))
    every = np.arange(len(tables[0].blocks or ()))
    rest = [[t.take(blocks=np.delete(every, one)) for t in tables] for one in every]
    sums = [additive(some) for some in (tables, *rest)]
    found[SUM] = np.array([math.nan if one is None else one.agreement for one in sums])
    found[""] = np.zeros(len(sums))
    values = np.stack([found[what] - found[less] for what, less in columns], axis=1)
    nothing = values[:0]
    leaves = Leaves(values[0], nothing, values[1:], (), nothing, None)
    return _Layer(studies[0], tables[0], leaves)


def _share(layers: Sequence[_Layer], studies: Sequence[BenchStudy]) -> np.ndarray:
    """The weight of each layer in the mean over the layers of some studies."""
    families = {one.family for one in studies}
    inside = np.array([one.study.family in families for one in layers], dtype=np.float64)
    share: np.ndarray = inside / inside.sum()
    return share


def _finding(
    layers: Sequence[_Layer], weights: np.ndarray, place: int, *, is_difference: bool
) -> Finding:
    """The weighted sum over layers of what stands in one place of their columns."""
    some = [one for one, weight in zip(layers, weights, strict=True) if weight]
    networks = [one.study.dense for one in some]
    found = combine_leaves(
        [one.leaves for one in some],
        weights=list(weights[weights != 0]),
        networks=networks,
        layers=[one.study.layer for one in some],
        families=[one.study.family for one in some],
    )
    interval = found.tau_interval(place)
    return Finding(
        question="", metric="", families="", what="", less="",
        value=float(found.estimate[place]),
        low=interval.low,
        high=interval.high,
        at_most=found.at_most(place),
        p_value=found.p_value(place),
        equivalence_p_value=found.equivalence_p_value(
            LITTLE if is_difference else MATTERS, place
        ),
        networks=len(set(networks)),
        over=in_words([some[0].table], networks=len(set(networks))),
    )  # fmt: skip


def _best(metric: str, scope: str, places: Sequence[Place], networks: int) -> Finding:
    """The criterion of the highest agreement, and how many criteria could have it."""
    first = places[0]
    return Finding(
        question="best",
        metric=metric,
        families=scope,
        what=first.criterion,
        less="",
        value=first.agreement,
        low=first.low,
        high=first.high,
        at_most=first.at_most,
        p_value=first.adjusted_p_value,
        equivalence_p_value=math.nan,
        networks=networks,
        over=first.interval_over,
        could_be_best=sum(one.rank_low == 1 for one in places),
    )
