"""One sitting at a study: its folder locked, its record open, its progress shown."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from trueoracle.criteria.base import Criterion
from trueoracle.errors import InputError
from trueoracle.files import remove_drafts, write_text
from trueoracle.record.lock import check_locks, locked
from trueoracle.record.paths import AROUND, DATABASE, DENSE
from trueoracle.record.store import Store
from trueoracle.run.material import hub_commit
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import Progress
from trueoracle.spec.spec import CANDIDATE_FILES
from trueoracle.training.recipe import Recipe
from trueoracle.training.team import find_team
from trueoracle.version import __version__

__all__ = ["Sitting", "check_candidates", "sitting"]


@dataclass(frozen=True, eq=False)
class Sitting:
    """What every stage works with; ``number`` is the number of the sitting in the record.

    ``retry_failed`` says that networks whose retraining failed before are retrained, too.
    """

    prepared: Prepared
    folder: Path
    store: Store
    progress: Progress
    number: int
    retry_failed: bool = False

    @property
    def left(self) -> int:
        """The number of networks that are still to be retrained."""
        counts = self.store.counts()
        tried = counts["retrainings"] + (0 if self.retry_failed else counts["failed"])
        return self.prepared.retrainings - tried

    def done(self) -> set[tuple[int, str]]:
        """The networks, as (seed, candidate id), that are not to be retrained in this sitting."""
        failed = set() if self.retry_failed else self.store.failed().keys()
        return self.store.retrained() | failed

    @property
    def applying(self) -> list[tuple[str, Criterion]]:
        """The criteria that apply, by the names that the study gives them."""
        prepared = self.prepared
        named = zip(prepared.spec.criteria, prepared.criteria, strict=True)
        return [(name, criterion) for name, criterion in named if name not in prepared.skipped]

    def note_skipped(self, skipped: Mapping[str, str]) -> None:
        """Record the criteria that do not apply, with their reasons, and report new ones."""
        before = self.store.noted("skipped") or {}
        for name, reason in skipped.items():
            if before.get(name) != reason:
                self.progress.message(f"skipped: {reason}")
        if skipped != before:
            self.store.note(self.number, "skipped", dict(skipped))

    def siblings(self) -> Iterator[Path]:
        """The folders of other studies beside this one that have a record and a dense network."""
        for other in sorted(self.folder.parent.iterdir()):
            readable = os.access(other / DATABASE, os.R_OK) and os.access(other / DENSE, os.R_OK)
            if other != self.folder and readable:
                yield other

    def reading_seconds(self, recipe: Recipe) -> float:
        """The seconds in which one training reads all its images from files while it computes."""
        data = self.prepared.data
        examples = len(data.train) + sum(len(split) for _, split in data.named())
        return recipe.epochs * examples * self.prepared.reading_seconds


@contextmanager
def sitting(
    prepared: Prepared, folder: Path, progress: Progress, *, retry_failed: bool = False
) -> Iterator[Sitting]:
    """Begin work on a study in ``folder``: lock the folder, open its record, check both.

    Raises :class:`BusyError` where another process works on the study, :class:`StoreError` where
    the record cannot be written, and :class:`InputError` for the record of another network or of
    other candidates. Whatever ends a sitting, the next one goes on after the last commit. Of
    processes that were launched together, only the first has a sitting.
    """
    if (team := find_team()) is not None and not team.is_main:
        raise InputError(
            "of what is launched on several devices, only 'trueoracle run' uses them: start this "
            "alone"
        )
    check_locks(folder)
    with locked(folder, patience=1.0), Store(folder) as store:
        remove_drafts(folder)
        store.check()
        task = prepared.data.task
        store.record_task(task.label, tuple(task.metrics))
        for name, text in prepared.data.files.items():
            write_text(folder / name, text)
        number = _begin(prepared, store)
        begun = Sitting(prepared, folder, store, progress, number, retry_failed)
        sizes = {name: own.bincount().tolist() for name, own in prepared.data.blocks.items()}
        store.record_blocks(sizes)
        for note in prepared.notes:
            progress.message(note)
        yield begun
        store.end(begun.number, _now())


def _begin(prepared: Prepared, store: Store) -> int:
    """Record the spec, versions and machine of this sitting.

    Refuses the record of another network, and of other candidates.
    """
    recorded = store.dense()
    if recorded is not None and recorded["architecture"] != prepared.architecture:
        raise InputError(
            f"{_what_changed(prepared, recorded['architecture'])} has changed since this study "
            "began: give the study another name to start anew with it"
        )
    for what, before in (store.noted("code") or {}).items():
        now = prepared.code.get(what)
        is_known = bool(before) and now != ""
        if now == before and (is_known or recorded is None):
            continue
        label = what.removesuffix(".object")
        changed = "has changed" if is_known else "cannot be read, and may have changed"
        raise InputError(
            f"the code of {label} {_named(prepared, what)!r} {changed} since this study "
            "began: give the study another name to start anew with it"
        )
    if prepared.spec.pruning.around is None:  # else candidates depend on the dense network
        check_candidates(prepared, store)
    facts = {
        "trueoracle": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device_name(prepared.device),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "pid": os.getpid(),
    }
    if (commit := hub_commit(prepared.spec)) is not None:
        facts["network_commit"] = commit
    number = store.begin(_now(), prepared.spec.model_dump(mode="json"), facts)
    if prepared.code:
        store.note(number, "code", dict(prepared.code))
    if prepared.data.facts:
        store.note(number, "data", dict(prepared.data.facts))
    return number


def check_candidates(prepared: Prepared, store: Store) -> None:
    """Refuse the record of other candidates, by :class:`InputError`."""
    listed = store.candidate_ids()
    if listed and listed != list(prepared.candidates.ids):
        pruning = prepared.spec.pruning
        what = "what pruning.layers names"
        if pruning.around is not None:
            what = f"{AROUND}, or what criterion {pruning.around!r} says,"
        elif str(pruning.candidates).endswith(CANDIDATE_FILES):
            what = str(pruning.candidates)
        raise InputError(
            f"{what} has changed since this study began: give the study another name to start "
            "anew with it"
        )


def _named(prepared: Prepared, what: str) -> str | None:
    spec = prepared.spec
    if what == "pruning.candidates":
        return spec.pruning.around
    return spec.task if what.startswith("task") else spec.retraining.procedure


def _what_changed(prepared: Prepared, before: str) -> str:
    """In words, how the architecture of a record differs from the one prepared."""
    if prepared.architecture.partition("-images-")[0] == before.partition("-images-")[0]:
        if prepared.spec.data.is_language:
            return f"the text or tokenizer of data set {prepared.spec.data.name!r}"
        return f"what is in the folder of data set {prepared.spec.data.name!r}"
    return f"the code of network {prepared.spec.network.name!r}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that the package runs from; None where it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None
