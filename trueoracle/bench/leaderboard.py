"""Criteria side by side on the shipped table: one place each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.bootstrap import bootstrap, levels_in_words
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import higher_is_better
from trueoracle.analysis.reliability import noise_ceiling
from trueoracle.analysis.table import CandidateTable
from trueoracle.bench.table import Bench, Setting

__all__ = ["Place", "leaderboard"]


@dataclass(frozen=True)
class Place:
    """How one criterion does on a set of settings.

    ``agreement`` is the mean of tau over the settings, signs turned so that +1 is perfect, each
    weighing by its candidates; ``low`` and ``high`` are its 95 % interval over ``interval_over``.
    ``share_of_ceiling`` is its share of the mean noise ceiling. ``regret`` is the mean of what the
    best candidate has over the one of the lowest score, ``random_regret`` the same of a random
    choice, both in the outcome's units. ``rank`` is the place among ``of`` criteria by agreement
    (None: no finite score).
    """

    criterion: str
    rank: int | None
    of: int
    agreement: float
    low: float
    high: float
    interval_over: str
    ceiling: float
    share_of_ceiling: float
    regret: float
    random_regret: float
    settings: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def leaderboard(
    bench: Bench, metric: str, settings: Sequence[Setting] | None = None
) -> list[Place]:
    """All criteria of ``bench.scores``, the best first; those without a finite score last.

    Of all ``settings``, or some.
    """
    chosen = bench.settings if settings is None else list(settings)
    names = list(bench.scores)
    higher = higher_is_better(metric)
    outcomes = bench.outcomes(metric)
    tables: list[CandidateTable] = []
    places: dict[int, list[np.ndarray]] = {}
    for network in dict.fromkeys(one.network for one in chosen):
        own = [one for one in chosen if one.network == network]
        rows = np.concatenate([one.rows for one in own])
        # Where each setting's rows lie in the network's own table.
        ends = np.cumsum([len(one.rows) for one in own])
        spans = np.split(np.arange(len(rows)), ends[:-1])
        scores = {name: bench.scores[name][rows] for name in names}
        tables.append(CandidateTable(outcomes[rows], scores, higher))
        places[id(tables[-1])] = spans

    def agreements(table: CandidateTable, _: np.ndarray, outcome: np.ndarray) -> Sequence[float]:
        spans = places[id(table)]
        weights = np.array([len(span) for span in spans], dtype=np.float64)
        return [
            _mean(
                [table.sign(name) * _tau(table.scores[name][s], outcome[s]) for s in spans], weights
            )
            for name in names
        ]

    resampled = bootstrap(tables, agreements)
    ceiling, random_regret = _expected(tables, places)
    made = []
    for place, name in enumerate(names):
        interval = resampled.interval(place, bounds=(-1, 1))
        agreement = float(resampled.estimate[place])
        made.append(
            Place(
                criterion=name,
                rank=None,
                of=len(names),
                agreement=agreement,
                low=interval.low,
                high=interval.high,
                interval_over=levels_in_words(tables),
                ceiling=ceiling,
                share_of_ceiling=agreement / ceiling if ceiling > 0 else math.nan,
                regret=_regret(tables, places, name),
                random_regret=random_regret,
                settings=len(chosen),
            )
        )
    return _ranked(made)


def _ranked(places: Sequence[Place]) -> list[Place]:
    ordered = sorted(
        places, key=lambda one: -one.agreement if math.isfinite(one.agreement) else math.inf
    )
    return [
        Place(**{**asdict(one), "rank": rank if math.isfinite(one.agreement) else None})
        for rank, one in enumerate(ordered, start=1)
    ]


def _mean(values: Sequence[float], weights: np.ndarray) -> float:
    """The weighted mean of those that are finite: a setting of equal scores has no tau."""
    found = np.isfinite(values)
    return (
        float(np.average(np.array(values)[found], weights=weights[found]))
        if found.any()
        else math.nan
    )


def _tau(scores: np.ndarray, outcome: np.ndarray) -> float:
    finite = np.isfinite(scores) & np.isfinite(outcome)
    return kendall(scores[finite], outcome[finite]).value


def _expected(
    tables: Sequence[CandidateTable], places: dict[int, list[np.ndarray]]
) -> tuple[float, float]:
    """The mean noise ceiling, and the mean regret of a random choice."""
    ceilings, regrets, weights = [], [], []
    for table in tables:
        better = table.outcome if table.higher_is_better else -table.outcome
        for span in places[id(table)]:
            ceilings.append(noise_ceiling(table.outcomes[span], resamples=0).ceiling)
            regrets.append(float(np.nanmax(better[span]) - np.nanmean(better[span])))
            weights.append(len(span))
    return _mean(ceilings, np.array(weights, dtype=np.float64)), float(np.mean(regrets))


def _regret(
    tables: Sequence[CandidateTable], places: dict[int, list[np.ndarray]], name: str
) -> float:
    regrets = []
    for table in tables:
        better = table.outcome if table.higher_is_better else -table.outcome
        for span in places[id(table)]:
            scores = table.scores[name][span]
            known = np.isfinite(scores) & np.isfinite(better[span])
            if known.any():
                chosen = span[known][np.argmin(scores[known])]
                regrets.append(float(np.nanmax(better[span]) - better[chosen]))
    return float(np.mean(regrets)) if regrets else math.nan
