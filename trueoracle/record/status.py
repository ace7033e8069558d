"""How far a study has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueoracle.errors import StoreError
from trueoracle.record.lock import is_locked
from trueoracle.record.networks import read_networks, status_of_networks
from trueoracle.record.paths import DATABASE, NETWORKS, SEARCHES
from trueoracle.record.searches import is_searched
from trueoracle.record.store import Store
from trueoracle.spec.scale import badge_of
from trueoracle.spec.spec import StudySpec
from trueoracle.trust import note_code

__all__ = ["read_status", "recorded_spec", "skipped_in", "status_of"]


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a recorded study, without reading its tables; raises :class:`StoreError`."""
    if (folder / NETWORKS).is_file():
        spec = read_networks(folder)
        runs = [folder.parent / one.folder_name for one in spec.networks]
        each = [read_status(run) for run in runs if (run / DATABASE).is_file()]
        return status_of_networks(folder, spec, each)
    with Store(folder, read_only=True) as store:
        spec = recorded_spec(store, folder)
        provenance = store.provenance()
        return status_of(folder, spec, store.counts(skipped_in(provenance)), provenance)


def recorded_spec(store: Store, folder: Path) -> StudySpec:
    """The study of a record; raises :class:`StoreError` where there is none, or none known here."""
    fields = store.spec()
    if fields is None:
        raise StoreError(f"nothing is recorded in {folder}")
    try:
        spec = StudySpec.model_validate(fields)
    except ValueError as error:
        raise StoreError(f"{folder} was recorded by another version of trueoracle") from error
    note_code(folder, fields)
    return spec


def skipped_in(provenance: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The criteria that the latest sitting to note skipped ones noted, each with the reason.

    In a record of an earlier version none is skipped.
    """
    said: list[dict[str, str]] = [one["skipped"] for one in provenance if "skipped" in one]
    return said[-1] if said else {}


def status_of(
    folder: Path,
    spec: StudySpec,
    counts: Mapping[str, int],
    provenance: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """How far a study is, as plain values."""
    skipped = skipped_in(provenance)
    to_score = counts["candidates"] * (len(spec.criteria) - len(skipped))
    to_retrain = counts["candidates"] * len(spec.retraining.seeds)
    tried = (
        counts["candidates"] > 0
        and counts["scores"] >= to_score
        and counts["retrainings"] + counts["failed"] >= to_retrain
    )
    scored = 0 < to_score <= counts["scores"] and counts["retrainings"] == 0
    ended = provenance[-1]["ended"] is not None
    searches = any(folder.glob(f"{SEARCHES}/*/*.json"))
    if is_locked(folder):
        state = "running"
    elif tried:
        state = "failed" if counts["failed"] else "finished"
    elif searches and ended and counts["retrainings"] == 0:
        state = "searched" if is_searched(folder) else "interrupted"
    else:
        state = "scored" if scored and ended else "interrupted"
    return {
        "study": spec.name,
        "digest": spec.digest,
        "badge": badge_of(spec),
        "folder": str(folder),
        "state": state,
        "candidates": counts["candidates"],
        "scored": counts["scores"],
        "to_score": to_score,
        "skipped": skipped,
        "retrained": counts["retrainings"],
        "to_retrain": to_retrain,
        "diverged": counts["diverged"],
        "failed": counts["failed"],
        "started": provenance[0]["started"],
        "last_started": provenance[-1]["started"],
        "ended": provenance[-1]["ended"],
    }
