"""Criteria side by side on the shipped bench, each with its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trueoracle.analysis.additive import additive
from trueoracle.analysis.assessment import SIGNIFICANT
from trueoracle.analysis.comparison import adjusted_p_values
from trueoracle.analysis.correlation import kendalls, kendalls_of_each
from trueoracle.analysis.interactions import standardised_ranks
from trueoracle.analysis.jackknife import (
    LEAST_NETWORKS,
    Jackknife,
    Leaves,
    combine_leaves,
    in_words,
    leave_out,
)
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.reliability import noise_ceiling
from trueoracle.analysis.selection import held_out_regrets
from trueoracle.analysis.table import CandidateTable
from trueoracle.bench.table import Bench, BenchStudy

__all__ = ["Known", "Place", "additive_agreement", "by_layer", "leaderboard"]


@dataclass(frozen=True)
class Place:
    """How one criterion does on a set of studies, weighted by their numbers of candidates.

    - ``agreement``: the mean of tau over the studies, its sign turned so that +1 is perfect (a
      study whose scores are all equal counts as 0). It has a 95 % interval, ``low`` to ``high``,
      over ``interval_over``; the upper bound of its size with 95 % confidence, ``at_most``; and
      Holm's p-value, over all criteria, of its being zero, ``adjusted_p_value``;
    - ``rank_low`` to ``rank_high``: the places that the criterion could have, with 95 % confidence
      for all criteria at once. The first is 1 more than the number of criteria that are certainly
      better, the last is the number that are not certainly worse (by Holm, over all pairs);
    - ``ceiling``: the mean agreement that noise leaves to a perfect criterion;
    - ``regret``: the candidate that is best by one retraining and half of the examples is compared,
      in the other retrainings and examples, with the candidate of the lowest score; the mean over
      studies. ``random_regret``: that of a random choice, both in the outcome's units;
    - ``rank``: the place by agreement among the ``of`` criteria that score every candidate;
    - ``coverage``: the share of candidates with a finite score. Where some have none, there is no
      rank, and no other number either.
    """

    criterion: str
    rank: int | None
    rank_low: int | None
    rank_high: int | None
    of: int
    coverage: float
    agreement: float
    low: float
    high: float
    at_most: float
    adjusted_p_value: float
    interval_over: str
    ceiling: float
    regret: float
    random_regret: float
    studies: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


@dataclass(frozen=True, eq=False)
class OfStudy:
    """One study's agreements with every unit left out, its ceiling and its regrets."""

    leaves: Leaves
    ceiling: float
    regrets: np.ndarray
    random: float


Known = dict[tuple[str, str, tuple[str, ...], bool], OfStudy]
"""Results that several places can share, by metric, study, criteria and what is left out."""


def leaderboard(
    bench: Bench,
    metric: str,
    studies: Sequence[BenchStudy] | None = None,
    known: Known | None = None,
) -> list[Place]:
    """All criteria of ``bench.scores``, the best first; those that do not score everything last.

    ``metric`` is the column of the outcome. ``studies`` are by default all of the bench. ``known``
    is filled with what is computed, to be used for other places of the same bench.
    """
    shared: Known = {} if known is None else known
    chosen = bench.studies if studies is None else list(studies)
    rows = np.concatenate([one.rows for one in chosen])
    coverage = {n: float(np.isfinite(x[rows]).mean()) for n, x in bench.scores.items()}
    names = tuple(name for name, share in coverage.items() if share == 1)
    tables = [bench.table(study, metric) for study in chosen]
    weights = np.array([len(one) for one in tables], dtype=np.float64)
    networks = [one.dense for one in chosen]
    alone = len(set(networks)) < LEAST_NETWORKS  # else networks are left out, not what is in them
    whole = [
        _known(shared, metric, study, table, names, alone)
        for study, table in zip(chosen, tables, strict=True)
    ]
    found = combine_leaves(
        [one.leaves for one in whole],
        weights=list(weights / weights.sum()),
        networks=networks,
        layers=[one.layer for one in chosen],
        families=[one.family for one in chosen],
    )
    filters = sum({(*s.dense, s.layer): s.filters for s in chosen}.values())
    regrets = np.average([one.regrets for one in whole], weights=weights, axis=0)
    nothing = Place(
        criterion="", rank=None, rank_low=None, rank_high=None, of=len(names), coverage=0.0,
        agreement=math.nan, low=math.nan, high=math.nan, at_most=math.nan,
        adjusted_p_value=math.nan, interval_over=in_words(
            tables, networks=len(set(networks)), filters=filters
        ),
        ceiling=float(np.average([one.ceiling for one in whole], weights=weights)),
        regret=math.nan,
        random_regret=float(np.average([one.random for one in whole], weights=weights)),
        studies=len(chosen),
    )  # fmt: skip
    ranks = _ranks(found, len(names))
    adjusted = adjusted_p_values([found.p_value(place) for place in range(len(names))])
    ranked = []
    for place, name in enumerate(names):
        interval = found.tau_interval(place)
        ranked.append(
            replace(
                nothing,
                criterion=name,
                rank_low=ranks[place][0],
                rank_high=ranks[place][1],
                coverage=1.0,
                agreement=float(found.estimate[place]),
                low=interval.low,
                high=interval.high,
                at_most=found.at_most(place),
                adjusted_p_value=adjusted[place],
                regret=float(regrets[place]),
            )
        )
    ranked.sort(key=lambda one: -one.agreement)
    partial = [
        replace(nothing, criterion=name, coverage=share)
        for name, share in coverage.items()
        if share < 1
    ]
    return [replace(one, rank=rank) for rank, one in enumerate(ranked, start=1)] + partial


def _known(
    shared: Known,
    metric: str,
    study: BenchStudy,
    table: CandidateTable,
    names: tuple[str, ...],
    alone: bool,
) -> OfStudy:
    """One study's agreements and then their differences, with units left out, and its regrets.

    ``alone``: also seeds, filters and candidates are left out.
    """
    key = metric, study.name, names, alone
    if key not in shared:
        signs = np.array([table.sign(name) for name in names])
        pairs = np.triu_indices(len(names), 1)
        scores = np.stack([table.scores[name] for name in names])

        def with_differences(taus: np.ndarray) -> np.ndarray:
            agreements = signs * np.nan_to_num(taus)
            gains = agreements[..., pairs[0]] - agreements[..., pairs[1]]
            return np.concatenate([agreements, gains], axis=-1)

        def agreements(one: CandidateTable) -> np.ndarray:
            columns = np.stack([one.scores[name] for name in names])
            return with_differences(kendalls(columns, one.outcome))

        if alone:
            ranks = standardised_ranks(scores)
            columns = np.vstack([ranks, ranks[pairs[0]] - ranks[pairs[1]]])
            leaves = leave_out(table, agreements, columns=columns)
        else:
            found = with_differences(kendalls_of_each(scores, table.without_blocks))
            nothing = found[:0]
            leaves = Leaves(found[0], nothing, found[1:], (), nothing, None)
        chance = np.zeros((1, len(table)))
        *regrets, random = held_out_regrets(table, np.vstack([scores, chance]))
        shared[key] = OfStudy(
            leaves, noise_ceiling(table).ceiling, np.array(regrets), float(random)
        )
    return shared[key]


def _ranks(found: Jackknife, criteria: int) -> list[tuple[int, int]]:
    """The first and the last place that each criterion could have (Mohamad et al. 2019)."""
    one, other = np.triu_indices(criteria, 1)
    adjusted = adjusted_p_values([found.p_value(criteria + i) for i in range(len(one))])
    above, below = np.zeros(criteria, dtype=int), np.zeros(criteria, dtype=int)
    for i, j, p, gain in zip(one, other, adjusted, found.estimate[criteria:], strict=True):
        if p < SIGNIFICANT:
            better, worse = (i, j) if gain > 0 else (j, i)
            above[worse] += 1
            below[better] += 1
    return [(1 + int(a), criteria - int(b)) for a, b in zip(above, below, strict=True)]


def additive_agreement(
    bench: Bench, metric: str, studies: Sequence[BenchStudy] | None = None
) -> float:
    """The agreement that a sum over filters reaches, fitted to other candidates and examples.

    It is fitted to all ratios of a layer at once, and it is the mean over layers of dense networks,
    weighted by their numbers of candidates; NaN where none holds enough candidates. See
    :func:`trueoracle.analysis.additive.additive`.
    """
    chosen = bench.studies if studies is None else studies
    known = []
    for layer in by_layer(chosen):
        made = additive([bench.table(one, metric) for one in layer])
        if made is not None:
            known.append((sum(len(one.rows) for one in layer), made.agreement))
    if not known:
        return math.nan
    sizes, values = zip(*known, strict=True)
    return float(np.average(values, weights=sizes))


def by_layer(studies: Sequence[BenchStudy]) -> list[list[BenchStudy]]:
    """The studies of each layer of each dense network, which differ in their ratios."""
    together: dict[tuple[str, int, str], list[BenchStudy]] = {}
    for one in studies:
        together.setdefault((one.family, one.network, one.layer), []).append(one)
    return list(together.values())
