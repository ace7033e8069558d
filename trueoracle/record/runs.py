"""Finds runs: by name, by folder, and those that belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trueoracle.errors import InputError, StoreError, unknown
from trueoracle.record.networks import is_recorded, read_networks, runs_of
from trueoracle.record.paths import DATABASE, NETWORKS
from trueoracle.record.pooled import PooledResults, open_results
from trueoracle.record.results import Results
from trueoracle.spec.file import is_reference, override
from trueoracle.spec.grid import load_spec

__all__ = [
    "find_arms",
    "find_run",
    "find_short",
    "last_run",
    "recorded_runs",
    "recorded_studies",
]


def find_short(results: Results, others: Iterable[Results]) -> Results | None:
    """The short retraining of a study among others: the same pruning, retrained for fewer epochs.

    It is an arm of the study whose role is ``short``. Where there are several, it is the one whose
    recipe and candidates are most like the study's.
    """
    fitting = [other for other in others if _is_short(results, other)]
    return max(fitting, key=lambda other: _likeness(results, other), default=None)


def _is_short(results: Results, other: Results) -> bool:
    ours, theirs = results.spec, other.spec
    base, _, arm = theirs.name.rpartition("@")
    return (
        base == ours.name
        and theirs.role(arm) == "short"
        and (other.dense or {}).get("sha256") == (results.dense or {}).get("sha256")
        and theirs.data == ours.data
        and theirs.pruning.kind == ours.pruning.kind
        and theirs.pruning.surgery == ours.pruning.surgery
        and theirs.retraining.epochs < ours.retraining.epochs
        and not results.outcomes.empty
        and not other.outcomes.empty
        and bool(results.candidates["candidate"].isin(other.candidates["candidate"]).any())
    )


def _likeness(results: Results, short: Results) -> tuple[int, int]:
    """How many fields of the recipe, and then how many candidates, two retrainings share."""
    ours, theirs = (dict(one.spec.retraining) for one in (results, short))
    shared = results.candidates["candidate"].isin(short.candidates["candidate"])
    return sum(ours[field] == theirs[field] for field in ours), int(shared.sum())


def recorded_runs(runs: Path) -> list[Path]:
    """The folders below ``runs`` that hold a record, the last changed one first."""
    if not runs.is_dir():
        return []
    found = [path.parent for path in runs.glob(f"*/{DATABASE}")]
    return sorted(found, key=_changed, reverse=True)


def recorded_studies(runs: Path) -> list[Path]:
    """The same, but the runs of a study over several dense networks count as one: its folder."""
    whole = {path.parent: _runs_of(path.parent) for path in runs.glob(f"*/{NETWORKS}")}
    # A study that cannot be read is listed, too.
    whole = {folder: parts for folder, parts in whole.items() if not parts or is_recorded(folder)}
    parts = {part for several in whole.values() for part in several}
    found = [*whole, *(run for run in recorded_runs(runs) if run not in parts)]
    return sorted(found, key=_changed, reverse=True)


def _runs_of(folder: Path) -> list[Path]:
    """The folders of a study's dense networks; none where the study cannot be read."""
    try:
        return runs_of(folder)
    except StoreError:
        return []


def _changed(folder: Path) -> float:
    # A reader makes an empty write-ahead log, which does not count as a change.
    files = [run / name for run in _runs_of(folder) for name in (DATABASE, f"{DATABASE}-wal")]
    times = (path.stat().st_mtime for path in files if path.is_file() and path.stat().st_size)
    return max(times, default=0.0)


def last_run(runs: Path) -> Path:
    """The folder of the last changed study; raises :class:`InputError` where none is recorded."""
    return _some_runs(runs)[0]


def _some_runs(runs: Path) -> list[Path]:
    """The recorded studies, followed by the networks of those that have several."""
    studies = recorded_studies(runs)
    if not studies:
        raise InputError(f"no study is recorded in {runs}: 'trueoracle run STUDY' records one")
    return [*studies, *(run for run in recorded_runs(runs) if run not in studies)]


def find_run(reference: str, runs: Path, overrides: dict[str, Any] | None = None) -> Path:
    """The folder of a recorded study, over several dense networks or one.

    ``reference`` is one of

    - a run's folder, or its name below ``runs``;
    - a shipped name, a ``.toml`` or a grid's point: the run with exactly its settings is meant;
    - another recorded name: its last changed run is meant.

    Of the folder of a study over several dense networks, ``{"dense.seeds": [SEED]}`` means the run
    of one. Raises :class:`InputError` where there is none, and for other ``overrides`` of a folder.
    """
    for folder in (Path(reference), runs / reference):
        if (folder / DATABASE).is_file() or (folder / NETWORKS).is_file():
            return _run_in(folder, overrides) if overrides else folder
    spec = load_spec(reference, overrides) if is_reference(reference) else None
    recorded = _some_runs(runs)
    if spec is not None and (folder := runs / spec.folder_name) in recorded:
        return folder
    name = reference if spec is None else spec.name
    named = [run for run in recorded if _name(run) == name]
    if not named:
        raise unknown("recorded study", name, {_name(run) for run in recorded})
    if spec is not None or overrides:
        others = " or ".join(map(str, named[:3]))
        raise InputError(f"{name!r} is not recorded with these settings; there is {others}")
    return named[0]


def _run_in(folder: Path, overrides: Mapping[str, Any]) -> Path:
    """The run of one dense network of the study in a folder; that is all that can be chosen."""
    studies = read_networks(folder).networks if (folder / NETWORKS).is_file() else ()
    changes = override({}, overrides)
    for spec in studies:
        run = folder.parent / spec.folder_name
        if changes == {"dense": {"seeds": [spec.dense.seed]}} and (run / DATABASE).is_file():
            return run
    choice = "which takes no --set"
    if studies:
        seeds = ", ".join(str(spec.dense.seed) for spec in studies)
        choice = f"of which --set 'dense.seeds=[SEED]' chooses one recorded network (of {seeds})"
    raise InputError(
        f"--set {', '.join(overrides)}: {folder} is a recorded study with settings of its own, "
        f"{choice}; name the study itself to find another run"
    )


def find_arms(results: Results) -> list[Results]:
    """The recorded arms of a study or, for an arm, the study and its other arms; one run per name.

    Of each name the last changed run is taken; of the study's short retraining, the one that fits
    the study best. The arms of a study over several dense networks are over several, too.
    """
    base = results.spec.name.partition("@")[0]
    arms: dict[str, list[Results]] = {}
    runs = results.folder.parent
    is_whole = isinstance(results, PooledResults)
    recorded = recorded_studies(runs) if is_whole else recorded_runs(runs)
    for run in recorded:
        name = _name(run)
        if name.partition("@")[0] != base or name == results.spec.name:
            continue
        # All runs of the study's own arms are kept: any may be the short retraining that fits.
        if name in arms and name.rpartition("@")[0] != results.spec.name:
            continue
        try:
            other = open_results(run)
        except StoreError:  # a damaged neighbour is reported when it is read itself
            continue
        if other.spec.dense_digest == results.spec.dense_digest and not other.outcomes.empty:
            arms.setdefault(name, []).append(other)
    return [find_short(results, found) or found[0] for found in arms.values()]


def _name(folder: Path) -> str:
    return folder.name.rpartition("-")[0]
