"""Lists the published settings with our results beside them, and runs one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from trueoracle.analysis.outcomes import check_rule
from trueoracle.errors import InputError, unknown
from trueoracle.report.summary import summarise
from trueoracle.reproduce import comparison
from trueoracle.reproduce.comparison import Ours, Scale
from trueoracle.run.progress import Progress, as_progress
from trueoracle.spec.file import Published, is_reference, shipped_studies, without_arms
from trueoracle.spec.grid import load_spec, load_variant
from trueoracle.spec.published import all_settings, has_published_values, published
from trueoracle.spec.scale import scale_of
from trueoracle.spec.spec import StudySpec

__all__ = ["list_settings", "reproduce"]


def list_settings(
    runs: Path,
    *,
    scale: Scale | None = None,
    surgery: str = "exact",
    rule: str = "last",
    device: str | None = None,
    progress: bool | Progress = True,
) -> list[dict[str, Any]]:
    """Every published setting, with what is recorded of it below ``runs``.

    One object per setting, with the fields that ``docs/tables.md`` lists. ``rule`` says which
    epochs count. With a ``device``, the time that each takes there is estimated. Raises
    :class:`InputError` for an unknown rule or device.
    """
    check_rule(rule)
    found = [_setting(one, runs, scale, surgery, rule) for one in all_settings()]
    if device is not None:
        _add_times(found, device, as_progress(progress))
    return [row for row, _ in found]


def reproduce(
    name: str,
    runs: Path,
    *,
    scale: Scale | None = None,
    surgery: str = "exact",
    rule: str = "last",
    overrides: Mapping[str, Any] | None = None,
    progress: bool | Progress = True,
    device: str = "auto",
    engine: str = "auto",
    memory: str | None = None,
    executor: Executor | None = None,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Run the study of a published setting, or a study, and compare it with what was published.

    ``name`` is a setting, or a reference to a study. Where both are to be compared, the study's
    short retraining is run as well. At small scale, ``mnist-5k`` stands in for a data set that is
    not at hand. The result has the fields that ``docs/tables.md`` lists. The other arguments are
    those of :func:`list_settings` and :meth:`trueoracle.Study.run`. Raises :class:`InputError`
    before any long work.
    """
    from trueoracle.data.datasets import at_hand  # these import torch, which a list does not need
    from trueoracle.study import Study

    check_rule(rule)
    study, wanted = _find(name)
    full = comparison.arm_reference(study, scale, surgery)
    changes, shown = dict(overrides or {}), as_progress(progress)
    spec = load_spec(full, changes)
    if len(spec.networks) > 1:
        raise InputError(
            f"{spec.name} has {len(spec.networks)} dense networks, and what is published is of "
            f"one: dense.seeds = [{spec.dense.seed}]"
        )
    references = [full]
    if any(one.needs_short for one in wanted):
        short = comparison.short_reference(full)
        comparison.check_direction(full, short, changes)
        references.append(short)
    replaced = None
    stands_in = spec.scale == "small" and not spec.data.is_language and spec.data.path is None
    if stands_in and not at_hand(spec.data.name):
        replaced = spec.data.name
        changes["data.name"] = comparison.STAND_IN
        shown.message(f"data set {replaced} is not at hand: {comparison.STAND_IN} stands in for it")
    found = []
    for place, reference in enumerate(references, start=1):
        made = Study(load_spec(reference, changes), runs=runs)
        if len(references) > 1:
            shown.message(f"{place} of {len(references)}: {made.spec.name}")
        found.append(
            made.run(
                progress=shown,
                device=device,
                engine=engine,
                memory=memory,
                executor=executor,
                retry_failed=retry_failed,
            )
        )
    results, short_results = found[0], found[1] if len(found) > 1 else None
    if not wanted and has_published_values(load_spec(study)):
        wanted = [one for one in published(without_arms(study)) if not one.needs_short]
    ours = [
        comparison.ours_of(one, results, short_results if one.needs_short else None, rule)
        for one in wanted
    ]
    return {
        "study": study,
        "scale": scale_of(spec),
        "replaced_data": replaced,
        "comparisons": [_entry(*pair) for pair in zip(wanted, ours, strict=True)],
        "failed": sum(one.counts["failed"] for one in found),
        "summary": summarise(results, rule, short_results),
    }


def _find(name: str) -> tuple[str, list[Published]]:
    """The study that a name means, and the published settings that belong to the name."""
    settings = {one.setting: one for one in all_settings()}
    if name in settings:
        return settings[name].study, [settings[name]] if settings[name].has_values else []
    if not is_reference(name):
        raise unknown("published setting or study", name, {*settings, *shipped_studies()})
    variant = load_variant(name)
    # The settings of a user's own file cannot be named, so that all of its values are meant.
    own = has_published_values(variant.spec)
    return name, list(variant.published) if own else []


def _setting(
    one: Published, runs: Path, scale: Scale | None, surgery: str, rule: str
) -> tuple[dict[str, Any], list[StudySpec]]:
    """A published setting with our results, and the studies that it takes."""
    ours = comparison.recorded_ours(one, runs, scale=scale, surgery=surgery, rule=rule)
    shown = scale or ("small" if ours and ours.scale == "small" else "full")
    reference = comparison.arm_reference(one.study, shown, surgery)
    data = {"data.name": ours.data} if ours else {}  # which may replace the setting's
    specs = [load_spec(reference, data)]
    if one.needs_short:
        specs.append(load_spec(comparison.short_reference(reference), data))
    networks = sum(_networks(spec, one) for spec in specs)
    row = {**_entry(one, ours), "scale": shown, "networks": networks}
    return row | {"seconds": None, "engine": None}, specs


def _entry(one: Published, ours: Ours | None) -> dict[str, Any]:
    fields = ("n", "kendall_tau", "p_value", "anomaly_ratio")
    return {
        "setting": one.setting,
        "study": one.study,
        "x": one.x,
        "y": one.y,
        "source": one.source,
        "published": {field: getattr(one, field) for field in fields},
        "ours": None if ours is None else ours.as_dict(),
    }


def _networks(spec: StudySpec, one: Published) -> int:
    """Networks to retrain; where a study lists every way to prune, as many as were published."""
    count = spec.pruning.candidates
    return (count if isinstance(count, int) else one.n or 0) * len(spec.retraining.seeds)


def _add_times(
    found: Sequence[tuple[dict[str, Any], list[StudySpec]]], device: str, progress: Progress
) -> None:
    from trueoracle.run.estimate import Estimator  # imports torch, which a list does not need

    estimator = Estimator(device)
    progress.stage("time a few networks", len(found), 0, "settings")
    for row, specs in found:
        try:
            estimates = [one for spec in specs if (one := estimator.estimate(spec)) is not None]
        except InputError as error:  # a network or data set that this installation lacks
            progress.message(f"{row['setting']}: no estimate: {error}")
            estimates = []
        if len(estimates) == len(specs):
            row["seconds"] = sum(one.seconds for one in estimates)
            row["engine"] = estimates[0].engine
        progress.advance()
