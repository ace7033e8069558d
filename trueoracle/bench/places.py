"""The places of criteria on the shipped bench, in all of it and in its parts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trueoracle.analysis.assessment import assess, judged_together
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import default_outcomes, find_outcome
from trueoracle.bench.leaderboard import Known, Place, additive_agreement, leaderboard
from trueoracle.bench.table import METRICS, Bench, BenchStudy
from trueoracle.errors import InputError, unknown

__all__ = ["COLUMNS", "Places", "all_statistics", "choose_studies", "hold", "label_of"]

COLUMNS = tuple(reversed(default_outcomes(METRICS)))
"""The columns that criteria are compared with, the loss first."""


@dataclass(frozen=True, eq=False)
class Places:
    """The places of all criteria in some studies of the bench, by the outcome's column.

    - ``whole``: the places in all of ``studies``; ``parts``: those in the studies of each family,
      or of each layer where there is one family;
    - ``additive``: the agreement of a sum over filters, NaN where no study holds enough candidates.
    """

    studies: list[BenchStudy]
    whole: dict[str, list[Place]]
    parts: dict[str, dict[str, list[Place]]]
    additive: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return {
            "places": {m: [p.as_dict() for p in places] for m, places in self.whole.items()},
            "parts": {
                metric: {part: [p.as_dict() for p in places] for part, places in by_part.items()}
                for metric, by_part in self.parts.items()
            },
            "additive": finite_or_none(self.additive),
        }


def hold(bench: Bench, studies: Sequence[BenchStudy]) -> Places:
    """The places of all criteria that the bench has scores of, the best first."""
    known: Known = {}
    chosen, parts = list(studies), _parts(studies)
    return Places(
        chosen,
        {metric: leaderboard(bench, metric, chosen, known) for metric in COLUMNS},
        {
            metric: {part: leaderboard(bench, metric, own, known) for part, own in parts.items()}
            for metric in COLUMNS
        },
        {metric: additive_agreement(bench, metric, chosen) for metric in COLUMNS},
    )


def choose_studies(
    shipped: Bench,
    family: str | None = None,
    layer: str | None = None,
    ratio: float | None = None,
    network: int | None = None,
) -> list[BenchStudy]:
    """The studies of a family, layer, pruning ratio and dense network (its seed); None means all.

    Raises :class:`InputError` where the bench holds none.
    """
    wanted = {"family": family, "layer": layer, "ratio": ratio, "network": network}
    chosen = shipped.studies
    for what, given in wanted.items():
        known = {getattr(one, what) for one in shipped.studies}
        if given is not None and given not in known:
            name = "dense network" if what == "network" else what
            raise unknown(f"{name} of the bench", str(given), sorted(map(str, known)))
        chosen = [one for one in chosen if given is None or getattr(one, what) == given]
    if not chosen:
        said = ", ".join(f"{what} {given}" for what, given in wanted.items() if given is not None)
        raise InputError(f"the bench holds no study of {said} together")
    return chosen


def label_of(column: str) -> str:
    """An outcome in words, by its column."""
    return find_outcome(METRICS, column).label


def all_statistics(
    whole: Bench, studies: Sequence[BenchStudy], name: str | None
) -> list[dict[str, Any]]:
    """All statistics of one criterion, or of all criteria, in every study."""
    places, tables = [], []
    for study in studies:
        for metric in COLUMNS:
            one = whole.table(study, metric)
            if name is not None:
                one = replace(one, scores={name: one.scores[name]})
            places.append((study, metric))
            tables.append(one)
    found = judged_together([assess(one) for one in tables])
    return [
        {
            "family": study.family,
            "network": study.network,
            "layer": study.layer,
            "ratio": study.ratio,
            "criterion": assessment.criterion,
            "metric": metric,
            **assessment.as_dict(),
        }
        for (study, metric), assessments in zip(places, found, strict=True)
        for assessment in assessments
    ]


def _parts(studies: Sequence[BenchStudy]) -> dict[str, list[BenchStudy]]:
    """The studies of each family; of one family those of each layer."""
    by = "family" if len({one.family for one in studies}) > 1 else "layer"
    parts: dict[str, list[BenchStudy]] = {}
    for one in studies:
        parts.setdefault(getattr(one, by), []).append(one)
    return parts
