"""Published values beside recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import check_rule
from trueoracle.errors import InputError
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import SHORT, Results
from trueoracle.spec.file import Published, arm_for, parse_reference
from trueoracle.spec.grid import load_spec
from trueoracle.spec.scale import changes_from_file, scale_in_words, scale_of
from trueoracle.spec.spec import StudySpec

__all__ = [
    "STAND_IN",
    "Ours",
    "Scale",
    "arm_reference",
    "check_direction",
    "ours_of",
    "recorded_ours",
    "short_reference",
]

Scale = Literal["full", "small"]

STAND_IN = "mnist-5k"
"""The data set that replaces, at small scale, one that is not at hand."""

_CRITERION = "oracle"
"""What the published scatters relate to the headline metric on the test split: the accuracy."""


@dataclass(frozen=True)
class Ours:
    """The results of one recorded study, to be put beside those of a published scatter.

    ``scale`` is ``full``, ``small`` or, where fields of the file were changed, ``changed``;
    ``scale_in_words`` says how a small-scale study differs from the full-scale one. ``changed`` are
    the dotted fields whose values are not those of the shipped study. ``retrained`` of
    ``to_retrain`` networks are recorded, including those of the short retraining where the setting
    takes one.
    """

    study: str
    folder: str
    scale: str
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
    """A study's reference with the arms for a scale and a surgery; small is laid before others.

    Without a ``scale``, the reference's own scale is kept. Raises :class:`InputError` where the
    reference and the scale contradict each other.
    """
    named = parse_reference(study)
    small, released = arm_for(named, "small"), arm_for(named, "as-released")
    if small in named.arms and scale == "full":
        raise InputError(f"{study!r} is at small scale, so that it takes no --scale full")
    wanted = [small] if small in named.arms or scale == "small" else []
    wanted += [arm for arm in named.arms if arm != small]
    if surgery != "exact" and released not in wanted:
        wanted.append(released)
    return str(replace(named, arms=tuple(wanted)))


def short_reference(study: str) -> str:
    """The reference of a study's short retraining."""
    return f"{study}@{arm_for(parse_reference(study), 'short')}"


_SET_BY_THE_ARM = ("epochs", "milestones", "schedule")


def check_direction(full: str, short: str, overrides: Mapping[str, Any]) -> None:
    """Check that ``short`` retrains for fewer epochs than ``full``, whatever the overrides.

    The overrides change both studies, so none may set the epochs or the schedule. Raises
    :class:`InputError` in one line.
    """
    for field in _SET_BY_THE_ARM:
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
    """Recorded results for a published setting; None where they are not sufficient yet."""
    recorded = [results] if short is None else [results, short]
    if any(one.outcomes.empty for one in recorded) or (setting.needs_short and short is None):
        return None
    if setting.needs_short and short is not None:
        relation = results.with_short(short).relation(SHORT, rule=rule)
    elif _CRITERION in results.criteria:
        relation = results.relation(_CRITERION, rule=rule)
    else:
        return None
    statuses = [one.status() for one in recorded]
    return Ours(
        study=results.spec.name,
        folder=str(results.folder),
        scale=scale_of(results.spec),
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
    """The results below ``runs`` for a published setting: at full scale if finished, else small.

    If neither is finished, the full-scale results are given as far as they have come. ``scale``
    restricts the search to one scale. Only runs with exactly the shipped settings count; at small
    scale, the replacement of the data set is also accepted. Raises :class:`StoreError` for a
    damaged record.
    """
    check_rule(rule)
    first = None
    scales: tuple[Scale, ...] = ("full", "small") if scale is None else (scale,)
    for one in scales:
        reference = arm_reference(setting.study, one, surgery)
        stand_ins: list[Mapping[str, Any]] = [{}]
        if one == "small":
            stand_ins.append({"data.name": STAND_IN})
        for changes in stand_ins:
            full = _recorded(load_spec(reference, changes), runs)
            short = None
            if full is not None and setting.needs_short:
                short = _recorded(load_spec(short_reference(reference), changes), runs)
            ours = None if full is None else ours_of(setting, full, short, rule)
            if ours is not None and ours.finished:
                return ours
            first = first or ours
    return first


def _recorded(spec: StudySpec, runs: Path) -> Results | None:
    folder = runs / spec.folder_name
    return Results(folder) if (folder / DATABASE).is_file() else None
