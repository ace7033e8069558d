"""Published values beside what is recorded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import rule_in_words
from trueoracle.study.published import Published
from trueoracle.study.results import Results
from trueoracle.study.scale import SMALL, scale_in_words, scale_of
from trueoracle.study.spec import StudySpec, load_spec, split_arm
from trueoracle.study.store import DATABASE

__all__ = ["STAND_IN", "Ours", "Scale", "arm_reference", "ours_of", "recorded_ours"]

Scale = Literal["full", "small"]

STAND_IN = "mnist-5k"
"""At small scale, the data set in place of one that is not at hand."""

_CRITERION, _METRIC = "oracle", "test_accuracy"
"""What the published scatters relate."""


@dataclass(frozen=True)
class Ours:
    """What one recorded study says where the paper published a scatter.

    ``scale_in_words`` is what a small one has in place of the full one's. ``retrained`` of
    ``to_retrain`` networks are recorded, those of the short retraining included where it takes one.
    """

    study: str
    folder: str
    scale: Scale
    scale_in_words: str
    surgery: str
    outcome: str
    data: str
    retrained: int
    to_retrain: int
    n: int
    kendall_tau: float
    kendall_p_value: float
    anomaly_ratio: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def arm_reference(study: str, scale: Scale, surgery: str = "exact") -> str:
    """A study's name with the arms that make a scale and surgery of it, small before others."""
    base, arms = split_arm(study)
    wanted: list[str] = [SMALL] if scale == SMALL else []
    wanted += [arm for arm in arms.split("@") if arm and arm != SMALL]
    if surgery != "exact" and surgery not in wanted:
        wanted.append(surgery)
    return "@".join([base, *wanted])


def ours_of(
    setting: Published, results: Results, short: Results | None = None, rule: str = "last"
) -> Ours | None:
    """What recorded results say of a published setting; None where nothing can be said yet."""
    recorded = [results] if short is None else [results, short]
    if any(one.outcomes.empty for one in recorded) or (setting.needs_short and short is None):
        return None
    if setting.needs_short and short is not None:
        relation = results.relation_after(short, _METRIC, rule)
    elif _CRITERION in results.criteria:
        relation = results.relation(_CRITERION, _METRIC, rule)
    else:
        return None
    statuses = [one.status() for one in recorded]
    return Ours(
        study=results.spec.name,
        folder=str(results.folder),
        scale=scale_of(results.spec.name),
        scale_in_words=scale_in_words(results.spec),
        surgery=results.spec.pruning.surgery,
        outcome=rule,
        data=results.spec.data.name,
        retrained=sum(status["retrained"] for status in statuses),
        to_retrain=sum(status["to_retrain"] for status in statuses),
        n=relation.n,
        kendall_tau=relation.kendall.value,
        kendall_p_value=relation.kendall.p_value,
        anomaly_ratio=relation.anomaly_ratio,
    )


def recorded_ours(
    setting: Published,
    runs: Path,
    *,
    scale: Scale | None = None,
    surgery: str = "exact",
    rule: str = "last",
) -> Ours | None:
    """What is recorded below ``runs`` of a published setting, at full scale if there, else small.

    Only runs of exactly the shipped settings count (at small scale, with the stand-in for the data
    set as well); ``scale`` takes no other. Raises :class:`StoreError` for a damaged record.
    """
    rule_in_words(rule)
    scales: tuple[Scale, ...] = ("full", "small") if scale is None else (scale,)
    for one in scales:
        reference = arm_reference(setting.study, one, surgery)
        stand_ins: list[Mapping[str, Any]] = [{}]
        if one == SMALL:
            stand_ins.append({"data.name": STAND_IN})
        for changes in stand_ins:
            full = _recorded(load_spec(reference, changes), runs)
            short = None
            if full is not None and setting.needs_short:
                short = _recorded(load_spec(f"{reference}@short", changes), runs)
            ours = None if full is None else ours_of(setting, full, short, rule)
            if ours is not None:
                return ours
    return None


def _recorded(spec: StudySpec, runs: Path) -> Results | None:
    folder = runs / spec.folder_name
    return Results(folder) if (folder / DATABASE).is_file() else None
