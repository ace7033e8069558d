"""Criteria side by side on the shipped bench: one place each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trueoracle.analysis.additive import additive
from trueoracle.analysis.bootstrap import bootstrap, levels_in_words
from trueoracle.analysis.correlation import kendall_of_finite
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import find_outcome
from trueoracle.analysis.reliability import noise_ceiling
from trueoracle.analysis.table import CandidateTable
from trueoracle.analysis.ties import lowest
from trueoracle.bench.table import METRICS, Bench, BenchStudy

__all__ = ["Place", "Taus", "additive_agreement", "leaderboard"]


@dataclass(frozen=True)
class Place:
    """How one criterion does on a set of studies, which weigh by their candidates.

    - ``agreement``: the mean of tau over the studies, its sign turned so that +1 is perfect (a
      study whose scores are all equal counts as 0), with its 95 % interval ``low`` to ``high`` over
      ``interval_over``: what other seeds would give, not other filters or examples;
    - ``ceiling``: the mean agreement that retraining noise leaves, and ``share_of_ceiling`` the
      share of it that the criterion reaches;
    - ``regret``: the mean difference between the best candidate and the one of the lowest score
      (the mean of those that share it); ``random_regret``: that of a random choice, both in the
      outcome's units;
    - ``rank``: the place by agreement among the ``of`` criteria that score every candidate;
    - ``coverage``: the share of candidates with a finite score. Without all of them there is no
      rank, and no other number either.
    """

    criterion: str
    rank: int | None
    of: int
    coverage: float
    agreement: float
    low: float
    high: float
    interval_over: str
    ceiling: float
    share_of_ceiling: float
    regret: float
    random_regret: float
    studies: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


Taus = dict[tuple[str, str, str, bytes], float]
"""By metric, study, criterion and outcomes: what places of overlapping studies share."""


def leaderboard(
    bench: Bench,
    metric: str,
    studies: Sequence[BenchStudy] | None = None,
    known: Taus | None = None,
) -> list[Place]:
    """All criteria of ``bench.scores``, the best first; those that do not score everything last.

    ``metric`` is the column of the outcome. Of all ``studies``, or some. ``known`` is filled with
    what is computed, for other places of the same bench.
    """
    taus: Taus = {} if known is None else known
    chosen = bench.studies if studies is None else list(studies)
    rows = np.concatenate([one.rows for one in chosen])
    sizes = [len(one.rows) for one in chosen]
    # Where each study's rows lie among those taken.
    spans = np.split(np.arange(len(rows)), np.cumsum(sizes)[:-1])
    weights = np.array(sizes, dtype=np.float64)
    table = CandidateTable(
        bench.outcomes(metric)[rows],
        {name: column[rows] for name, column in bench.scores.items()},
        find_outcome(METRICS, metric).higher_is_better,
    )
    coverage = {name: float(np.isfinite(x).mean()) for name, x in table.scores.items()}
    names = [name for name, share in coverage.items() if share == 1]

    def agreements(one: CandidateTable, _: np.ndarray, outcome: np.ndarray) -> Sequence[float]:
        found = []
        for study, span in zip(chosen, spans, strict=True):
            own = outcome[span]
            keys = [(metric, study.name, name, own.tobytes()) for name in names]
            for name, key in zip(names, keys, strict=True):
                if key not in taus:
                    taus[key] = _agreement(one, name, span, own)
            found.append([taus[key] for key in keys])
        return [float(tau) for tau in np.average(found, axis=0, weights=weights)]

    resampled = bootstrap([table], agreements)
    ceilings = [noise_ceiling(table.outcomes[span]).ceiling for span in spans]
    ceiling = float(np.average(ceilings, weights=weights))
    better = table.better(table.outcome)
    random_regret = np.average([better[s].max() - better[s].mean() for s in spans], weights=weights)
    nothing = Place(
        criterion="",
        rank=None,
        of=len(names),
        coverage=0.0,
        agreement=math.nan,
        low=math.nan,
        high=math.nan,
        interval_over=levels_in_words([table], len({one.network for one in chosen})),
        ceiling=ceiling,
        share_of_ceiling=math.nan,
        regret=math.nan,
        random_regret=float(random_regret),
        studies=len(chosen),
    )
    ranked = []
    for place, name in enumerate(names):
        interval = resampled.interval(place, bounds=(-1, 1))
        agreement = float(resampled.estimate[place])
        regret = [_regret(table.scores[name][span], better[span]) for span in spans]
        ranked.append(
            replace(
                nothing,
                criterion=name,
                coverage=1.0,
                agreement=agreement,
                low=interval.low,
                high=interval.high,
                share_of_ceiling=agreement / ceiling if ceiling > 0 else math.nan,
                regret=float(np.average(regret, weights=weights)),
            )
        )
    ranked.sort(key=lambda one: -one.agreement)
    partial = [
        replace(nothing, criterion=name, coverage=share)
        for name, share in coverage.items()
        if share < 1
    ]
    return [replace(one, rank=rank) for rank, one in enumerate(ranked, start=1)] + partial


def additive_agreement(
    bench: Bench, metric: str, studies: Sequence[BenchStudy] | None = None
) -> float:
    """The agreement that a sum over filters reaches, fitted to other candidates of the study.

    The mean over studies that hold enough candidates, each weighing by its candidates; NaN where
    none does. See :func:`trueoracle.analysis.additive.additive`.
    """
    chosen = bench.studies if studies is None else studies
    found = [(len(one.rows), additive(bench.table(one, metric))) for one in chosen]
    known = [(size, made.agreement) for size, made in found if made is not None]
    if not known:
        return math.nan
    sizes, values = zip(*known, strict=True)
    return float(np.average(values, weights=sizes))


def _agreement(table: CandidateTable, name: str, span: np.ndarray, outcome: np.ndarray) -> float:
    tau = kendall_of_finite(table.scores[name][span], outcome)
    return table.sign(name) * tau if math.isfinite(tau) else 0.0


def _regret(scores: np.ndarray, better: np.ndarray) -> float:
    return float((better.max() - better[lowest(scores)]).mean())
