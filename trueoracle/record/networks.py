"""The runs of a study over several dense networks: one per network, beside the study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueoracle.errors import StoreError, first_line
from trueoracle.files import checked_json, read_checked_json, write_text
from trueoracle.record.paths import DATABASE, NETWORKS
from trueoracle.spec.scale import badge_of
from trueoracle.spec.spec import StudySpec
from trueoracle.trust import note_code

__all__ = ["is_recorded", "read_networks", "runs_of", "status_of_networks", "write_networks"]

_FORMAT = 1


def write_networks(folder: Path, spec: StudySpec) -> None:
    """Note in ``folder`` that the networks of ``spec`` are a study; raises :class:`StoreError`."""
    fields = spec.model_dump(mode="json")
    del fields["dense"]["seed"]  # dense.seeds has it
    text = checked_json({"format": _FORMAT, "study": fields}, indent=2)
    write_text(folder / NETWORKS, text + "\n")


def read_networks(folder: Path) -> StudySpec:
    """The study of a folder; raises :class:`StoreError` where there is none, or an unknown one."""
    path = folder / NETWORKS
    try:
        read = read_checked_json(path.read_text(encoding="utf-8"))
        if read["format"] != _FORMAT:
            raise StoreError(f"{path} was written by another version of trueoracle")
        spec = StudySpec.model_validate(read["study"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"cannot read {path}: {first_line(error)}") from error
    note_code(folder, read["study"])
    return spec


def runs_of(folder: Path) -> list[Path]:
    """The folders of a study's dense networks, recorded or not; a run of one is its own folder."""
    if not (folder / NETWORKS).is_file():
        return [folder]
    return [folder.parent / one.folder_name for one in read_networks(folder).networks]


def is_recorded(folder: Path) -> bool:
    """Whether anything is recorded of any of a study's dense networks.

    Raises :class:`StoreError` where it cannot be told which networks these are.
    """
    return any((run / DATABASE).is_file() for run in runs_of(folder))


def status_of_networks(
    folder: Path, spec: StudySpec, each: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How far a study is, from the status of each dense network that is recorded, one or more.

    The fields are those of :func:`trueoracle.record.status.status_of`, summed over networks, and
    ``networks`` has the status of each network. ``candidates`` counts those of one network. A
    network that is not begun is taken to have as much to do as the first.
    """
    count = len(spec.networks)
    states = {one["state"] for one in each}
    state = "interrupted"
    if "running" in states:
        state = "running"
    elif len(each) == count and len(states) == 1:
        (state,) = states
    elif len(each) == count and states == {"finished", "failed"}:
        state = "failed"
    waiting = count - len(each)

    def total(name: str, left: int = 0) -> int:
        return sum(int(one[name]) for one in each) + left * int(each[0][name])

    return {
        "study": spec.name,
        "digest": spec.digest,
        "badge": badge_of(spec),
        "folder": str(folder),
        "state": state,
        "candidates": max(one["candidates"] for one in each),
        "scored": total("scored"),
        "to_score": total("to_score", waiting),
        "skipped": {name: why for one in each for name, why in one["skipped"].items()},
        "retrained": total("retrained"),
        "to_retrain": total("to_retrain", waiting),
        "diverged": total("diverged"),
        "failed": total("failed"),
        "started": min(one["started"] for one in each),
        "last_started": max(one["last_started"] for one in each),
        "ended": max(one["ended"] for one in each) if state == "finished" else None,
        "dense_seeds": [one.dense.seed for one in spec.networks],
        "networks": [dict(one) for one in each],
    }
