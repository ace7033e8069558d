"""Published values beside what is recorded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import check_rule
from trueoracle.errors import InputError
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import SHORT, Results
from trueoracle.reproduce.published import Published
from trueoracle.spec.scale import SMALL, changes_from_file, scale_in_words, scale_of
from trueoracle.spec.spec import StudySpec, load_spec, split_arm

__all__ = [
    "STAND_IN",
    "Ours",
    "Scale",
    "arm_reference",
    "check_direction",
    "has_published_values",
    "ours_of",
    "recorded_ours",
]

Scale = Literal["full", "small"]

STAND_IN = "mnist-5k"
"""At small scale, the data set in place of one that is not at hand."""

_CRITERION, _METRIC = "oracle", "test_accuracy"
"""What the published scatters relate."""


@dataclass(frozen=True)
class Ours:
    """What one recorded study says where the paper published a scatter.

    ``scale_in_words`` is what a small one has in place of the full one's, ``changed`` the fields
    (dotted, with their values) that are not those of the shipped study. ``retrained`` of
    ``to_retrain`` networks are recorded, those of the short retraining included where it takes one.
    """

    study: str
    folder: str
    scale: Scale
    scale_in_words: str
    changed: Mapping[str, Any]
    surgery: str
    outcome: str
    data: str
    retrained: int
    to_retrain: int
    n: int
    kendall_tau: float
    kendall_p_value: float
    anomaly_ratio: float

    @property
    def finished(self) -> bool:
        """Whether all networks are retrained."""
        return self.retrained >= self.to_retrain

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def arm_reference(study: str, scale: Scale | None, surgery: str = "exact") -> str:
    """A study's name with the arms that make a scale and surgery of it, small before others.

    Without a ``scale`` it is that of the name. Raises :class:`InputError` where they contradict
    each other.
    """
    base, _ = split_arm(study)
    named = _arms(study)
    if SMALL in named and scale == "full":
        raise InputError(f"{study!r} is at small scale, so that it takes no --scale full")
    wanted: list[str] = [SMALL] if SMALL in named or scale == SMALL else []
    wanted += [arm for arm in named if arm != SMALL]
    if surgery != "exact" and surgery not in wanted:
        wanted.append(surgery)
    return "@".join([base, *wanted])


def has_published_values(study: str) -> bool:
    """Whether a study is what was published, or that at small scale or with the other wiring.

    Its other arms, such as a short retraining, are experiments of their own.
    """
    return set(_arms(study)) <= {SMALL, "as-released"}


def _arms(study: str) -> list[str]:
    return [arm for arm in split_arm(study)[1].split("@") if arm]


_TOLD_BY_THE_ARM = ("epochs", "milestones", "schedule")


def check_direction(reference: str, overrides: Mapping[str, Any]) -> None:
    """Check that a study's arm ``short`` is a shorter retraining, whatever the overrides.

    They are laid on both, so that none may set the epochs or the schedule. Raises
    :class:`InputError` in one line.
    """
    full, short = reference, f"{reference}@short"
    for field in _TOLD_BY_THE_ARM:
        for one in (full, short):
            changed, plain = load_spec(one, overrides).retraining, load_spec(one).retraining
            if getattr(changed, field) != getattr(plain, field):
                raise InputError(
                    f"--set retraining.{field}: {full} is compared with its short retraining, and "
                    "it would set that of both; run the two by themselves instead"
                )
    long, fewer = (load_spec(one, overrides).retraining.epochs for one in (full, short))
    if fewer >= long:
        raise InputError(f"{short} retrains for {fewer} epochs, no fewer than {full} with {long}")


def ours_of(
    setting: Published, results: Results, short: Results | None = None, rule: str = "last"
) -> Ours | None:
    """What recorded results say of a published setting; None where nothing can be said yet."""
    recorded = [results] if short is None else [results, short]
    if any(one.outcomes.empty for one in recorded) or (setting.needs_short and short is None):
        return None
    if setting.needs_short and short is not None:
        relation = results.with_short(short).relation(SHORT, _METRIC, rule)
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
        changed=changes_from_file(results.spec),
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
    """What is recorded below ``runs`` of a published setting, full scale if finished, else small.

    Where neither is finished, it is the full one as far as it has come. Only runs of exactly the
    shipped settings count (at small scale, with the stand-in for the data set as well); ``scale``
    takes no other. Raises :class:`StoreError` for a damaged record.
    """
    check_rule(rule)
    first = None
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
            if ours is not None and ours.finished:
                return ours
            first = first or ours
    return first


def _recorded(spec: StudySpec, runs: Path) -> Results | None:
    folder = runs / spec.folder_name
    return Results(folder) if (folder / DATABASE).is_file() else None
