"""The stages of a study, in order; each skips what is recorded, so that running is resuming."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from trueoracle.analysis.numbers import many, quantity
from trueoracle.analysis.outcomes import chance_in_words, find_outcome
from trueoracle.criteria.base import Criterion
from trueoracle.engines.choose import (
    Plan,
    check_engine,
    plan,
    seconds_alone,
    train_population,
)
from trueoracle.engines.memory import readable_bytes
from trueoracle.errors import InputError, NotApplicableError, StoreError, TrainingError
from trueoracle.files import remove_drafts, sha256_of
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import (
    load_weights,
    read_metadata,
    save_weights,
    weights_sha256,
)
from trueoracle.pruning.cost import cost
from trueoracle.pruning.listing import write_listing
from trueoracle.record.paths import CANDIDATES, DATABASE, DENSE, UNDER_WAY
from trueoracle.record.store import Retrained, Store, locked
from trueoracle.run.footprint import held_bytes
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import Progress, about
from trueoracle.spec.spec import CANDIDATE_FILES, StudySpec
from trueoracle.tasks.metric import CLASSIFICATION
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.loop import EpochRecord, measure, train
from trueoracle.training.recipe import Recipe
from trueoracle.version import __version__

__all__ = ["CANDIDATES", "DENSE", "check_dense_file", "read_dense", "run"]

SCORE_CHUNK = 32
"""Candidates scored before the first commit, where the criterion allows it; later chunks grow."""
CHUNK_SECONDS = 4.0
"""A chunk that took less is followed by a larger one: what a kill loses is about twice this."""


def run(
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    *,
    retrain: bool = True,
    criteria: Collection[str] | None = None,
    engine: str = "auto",
    memory: int | None = None,
) -> None:
    """Carry a study out in ``folder``, from wherever it stands to its end.

    Without ``retrain``, it ends when every candidate is scored, by the ``criteria`` named if some
    are; another run goes on from there.
    ``engine`` and ``memory`` (bytes) are those of :func:`trueoracle.engines.choose.plan`.
    Raises :class:`BusyError` where another process is at it, :class:`StoreError` where the record
    cannot be written. Whatever ends the run, the next one goes on after the last commit.
    """
    if retrain:
        example = prepared.candidates.prune(prepared.network, 0)
        check_engine(engine, example, prepared.data, prepared.spec.retraining)
    with locked(folder, patience=1.0), Store(folder) as store:
        remove_drafts(folder)
        store.check()
        store.record_task("classification", CLASSIFICATION)
        sitting = _begin(prepared, store)
        for note in prepared.notes:
            progress.message(note)
        if retrain or criteria is None:  # a search says its own
            _tell_cost(prepared, store, progress)
        plan = _plan(prepared, store, progress, engine, memory) if retrain else None
        dense = _dense_stage(prepared, folder, store, progress)
        _tell_chance(prepared, sitting, store, progress)
        _list_stage(prepared, folder, store, progress)
        _note_skipped(sitting, dict(prepared.skipped), store, progress)
        adopted = _adopt(prepared, folder, store, progress)
        if adopted:
            store.note(sitting, "adopted", adopted)
        _score_stage(prepared, dense, sitting, store, progress, criteria)
        if plan is not None and _left(prepared, store):  # a like study may have had them all
            seconds = plan.seconds_a_network
            if seconds:  # what is trained as one is read once
                reading = _reading_seconds(prepared, prepared.spec.retraining) / plan.group
                seconds = max(seconds, reading)
            expected = f" ({about(seconds * _left(prepared, store))})" if seconds else ""
            progress.message(f"retraining{expected}: {plan}")
            store.note(sitting, "engine", plan.engine)
            _retrain_stage(prepared, dense, plan, store, progress)
        store.end(sitting, _now())


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
    listed = store.candidate_ids()
    if listed and listed != list(prepared.candidates.ids):
        given = prepared.spec.pruning.candidates
        what = given if str(given).endswith(CANDIDATE_FILES) else "what pruning.layers names"
        raise InputError(
            f"{what} has changed since this study began: give the study another name to start "
            "anew with it"
        )
    facts = {
        "trueoracle": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device_name(prepared.device),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "pid": os.getpid(),
    }
    return store.begin(_now(), prepared.spec.model_dump(mode="json"), facts)


def _tell_cost(prepared: Prepared, store: Store, progress: Progress) -> None:
    """Say what the retraining that is left costs, before anything long begins."""
    left = _left(prepared, store)
    if not left:
        return
    data = prepared.data
    images, epochs = len(data.train), prepared.spec.retraining.epochs
    # Masked weights are multiplied all the same, so this is no candidate's recorded cost.
    macs = cost(prepared.candidates.prune(prepared.network, 0), data.train.image_shape).macs
    training = f"{3 * macs * images * epochs * left:.1e}".replace("e+", "e")
    what = "the study" if left == prepared.retrainings else "what is left"
    progress.message(
        f"{what}: {left:,} networks of {quantity(macs)} MACs, {many(epochs, 'epoch')} of "
        f"{images:,} images each: {training} MACs of training (3 × forward)"
    )
    held = held_bytes(prepared.spec, prepared.network, data)
    progress.message(
        f"memory: at least {readable_bytes(held)}, of images and a network in training"
    )


def _what_changed(prepared: Prepared, before: str) -> str:
    """In words, where the architecture of a record is not the one prepared."""
    if prepared.architecture.partition("-images-")[0] == before.partition("-images-")[0]:
        return f"what is in the folder of data set {prepared.spec.data.name!r}"
    return f"the code of network {prepared.spec.network.name!r}"


def _dense_stage(prepared: Prepared, folder: Path, store: Store, progress: Progress) -> nn.Module:
    """The dense network: recorded, taken over from a like study, given, or trained now."""
    spec, path, recorded = prepared.spec, folder / DENSE, store.dense()
    given = weights_sha256(prepared.network) if spec.network.arrives_trained else None
    if recorded is not None and given not in (None, recorded["sha256"]):
        raise InputError(
            f"{spec.network.weights} has changed since this study began: give the study "
            "another name to start anew with it"
        )
    if recorded is not None and path.is_file():
        network = read_dense(prepared, folder, recorded)
        if recorded["file_sha256"] is None:  # an older record: now its weights have been looked at
            store.record_dense_file(sha256_of(path))
        return network
    wanted = recorded["sha256"] if recorded else store.network()
    if wanted is not None:
        progress.message(
            f"{path if recorded else 'the record of the dense network'} is missing: the network is "
            "made again, and taken if it is the one that was recorded"
        )
    checkpoint = Checkpoint(folder / UNDER_WAY, f"{spec.dense_digest}-{prepared.architecture}")
    network, origin, epochs, seconds = _made_dense(prepared, folder, checkpoint, wanted, progress)
    found = weights_sha256(network)
    counts = store.counts()
    if wanted is not None and found != wanted and (counts["scores"] or counts["retrainings"]):
        raise StoreError(
            f"the dense network made again ({found[:12]}) is another one than that ({wanted[:12]}) "
            f"whose {many(counts['scores'], 'score')} and {many(counts['retrainings'], 'outcome')} "
            f"{folder} records: put a backup of {DENSE} in its place, or move {folder} away to "
            "start anew"
        )
    final = asdict(measure(network, prepared.data, 0, 0.0))
    if not math.isfinite(final["train_loss"]):
        raise TrainingError(
            f"the dense network's train loss is {final['train_loss']}: there is nothing to prune "
            "(lower dense.learning_rate, or set dense.gradient_clip)"
        )
    metadata = {
        "dense_digest": spec.dense_digest,
        "architecture": prepared.architecture,
        "epochs": epochs,
    }
    file = save_weights(network, path, metadata)
    if recorded is not None and found == wanted:  # what is recorded of it stays
        store.record_dense_file(file)
    else:
        store.record_dense(
            found, prepared.architecture, origin, seconds, final, epochs, file_sha256=file
        )
    checkpoint.remove()
    return network


def check_dense_file(folder: Path, recorded: Mapping[str, Any]) -> None:
    """Raise :class:`StoreError` where the dense network's file is not the one ``recorded``."""
    path = folder / DENSE
    try:
        if recorded.get("file_sha256") in (None, sha256_of(path)):
            return
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    raise StoreError(
        f"{path} is damaged: it is not what the study recorded; put a backup in its place, or "
        f"'trueoracle verify --repair {folder}' sets it aside, so that running makes it again"
    )


def read_dense(prepared: Prepared, folder: Path, recorded: Mapping[str, Any]) -> nn.Module:
    """The dense network of a run's folder; raises :class:`StoreError` for any other one."""
    check_dense_file(folder, recorded)
    network = copied(prepared.network)
    try:
        load_weights(network, folder / DENSE)
    except InputError as error:  # the user named no file here: it is the record's
        raise StoreError(f"the record's own weights are damaged: {error}") from error
    if weights_sha256(network) != recorded["sha256"]:
        raise StoreError(f"{folder / DENSE} has changed since the study recorded it: put it back")
    return network


def _made_dense(
    prepared: Prepared,
    folder: Path,
    checkpoint: Checkpoint,
    wanted: str | None,
    progress: Progress,
) -> tuple[nn.Module, str, list[dict[str, Any]], float]:
    """A dense network, where it comes from, its epochs, and the seconds that training took.

    ``wanted`` is the SHA-256 of the one that is known to be meant: a file of it that is there,
    though nothing is recorded of it, is taken.
    """
    network = copied(prepared.network)
    if prepared.spec.network.arrives_trained:
        return network, "given", [], 0.0
    if wanted is not None and _holds(network, folder / DENSE, wanted):
        return network, "trained", [], 0.0
    if (sibling := _like_dense(prepared, folder)) is not None:
        taken, epochs = sibling
        load_weights(network, taken / DENSE)
        progress.message(f"dense network: taken over from {taken.name}")
        return network, "adopted", epochs, 0.0
    if checkpoint.is_damaged:
        progress.message(f"{UNDER_WAY} is damaged: the dense network is trained from the start")
    started = time.perf_counter()
    epochs = _train_dense(network, prepared, checkpoint, progress)
    return network, "trained", epochs, time.perf_counter() - started


def _holds(network: nn.Module, path: Path, sha256: str) -> bool:
    """Load a file, if there is one with these weights."""
    tried = copied(network)
    with suppress(InputError, OSError):
        load_weights(tried, path)
        if weights_sha256(tried) == sha256:
            load_weights(network, path)
            return True
    return False


def _tell_chance(prepared: Prepared, sitting: int, store: Store, progress: Progress) -> None:
    """Note the chance level, which a report needs too; warn of a network that learnt nothing."""
    chance = 1 / prepared.data.classes
    store.note(sitting, "chance", chance)
    outcome = find_outcome(CLASSIFICATION, "test_accuracy")
    warning = chance_in_words(outcome, (store.dense() or {}).get(outcome.column), chance)
    if warning:
        progress.message(f"warning: {warning}")


def _train_dense(
    network: nn.Module, prepared: Prepared, checkpoint: Checkpoint, progress: Progress
) -> list[dict[str, Any]]:
    recipe = prepared.spec.dense
    computing = seconds_alone(network, prepared.data, recipe)
    expected = about(max(computing, _reading_seconds(prepared, recipe)))
    progress.message(f"training the dense network ({expected})")
    progress.stage("dense network", recipe.epochs, 0, "epochs")

    def show(record: EpochRecord) -> None:
        progress.advance(note=f"train loss {record.train_loss:.4f}")

    records = train(
        network, prepared.data, recipe, seed=recipe.seed, on_epoch=show, checkpoint=checkpoint
    )
    return [asdict(record) for record in records]


def _reading_seconds(prepared: Prepared, recipe: Recipe) -> float:
    """Of all images that one training reads from files, while it computes."""
    data = prepared.data
    images = len(data.train) + sum(len(split) for _, split in data.named())
    return recipe.epochs * images * prepared.reading_seconds


def _siblings(folder: Path) -> Iterator[Path]:
    """The folders of other studies beside this one that hold a record and a dense network."""
    for other in sorted(folder.parent.iterdir()):
        readable = os.access(other / DATABASE, os.R_OK) and os.access(other / DENSE, os.R_OK)
        if other != folder and readable:
            yield other


def _like_dense(prepared: Prepared, folder: Path) -> tuple[Path, list[dict[str, Any]]] | None:
    """The folder and epochs of a dense network that depends on the very same fields and code."""
    wanted = (prepared.spec.dense_digest, prepared.architecture)
    for other in _siblings(folder):
        try:
            metadata = read_metadata(other / DENSE)
            if (metadata.get("dense_digest"), metadata.get("architecture")) != wanted:
                continue
            with Store(other, read_only=True) as record:
                dense, epochs = record.dense(), record.frame("dense_epochs")
            if dense is not None:
                read_dense(prepared, other, dense)
                return other, [{str(k): v for k, v in row.items()} for row in _records(epochs)]
        except (StoreError, InputError):  # another study's damage is not this one's
            continue
    return None


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def _list_stage(prepared: Prepared, folder: Path, store: Store, progress: Progress) -> None:
    """Record candidates, costs and criteria; drop the scores of a criterion whose code changed."""
    candidates = prepared.candidates
    if store.counts()["candidates"] != len(candidates):
        store.record_candidates(
            (name, candidates.pruned(index)) for index, name in enumerate(candidates.ids)
        )
    write_listing(candidates.listing(), folder / CANDIDATES)
    if not store.has_costs():
        shape = prepared.data.train.image_shape
        dense = cost(prepared.network, shape)
        costs = candidates.costs(prepared.network, shape)
        store.record_costs(
            (dense.parameters, dense.macs),
            [
                (name, one.parameters, one.macs)
                for name, one in zip(candidates.ids, costs, strict=True)
            ],
        )
    for name, criterion in _applying(prepared):
        if not store.record_criterion(
            name, criterion.source, criterion.fingerprint, criterion.label_of(candidates)
        ):
            progress.message(f"criterion {name}: its code may have changed, so it is scored anew")


def _adopt(prepared: Prepared, folder: Path, store: Store, progress: Progress) -> dict[str, int]:
    """Copy what a like study (an arm, fewer seeds) recorded; returns the rows by its folder."""
    spec, ours = prepared.spec, store.dense()
    taken: dict[str, int] = {}
    for other in _siblings(folder):
        try:
            with Store(other, read_only=True) as record:
                fields, dense = record.spec(), record.dense()
            theirs = StudySpec.model_validate(fields)
        except (StoreError, ValueError):  # damaged, or of another version
            continue
        same = ("sha256", "architecture")
        if not dense or not ours or any(dense[name] != ours[name] for name in same):
            continue
        if not other.name.endswith(theirs.digest):  # recorded under another DIGEST_FORMAT
            continue
        # Only separable criteria: another one's scores belong to the list they were scored in.
        criteria = {
            name: criterion.fingerprint
            for name, criterion in _applying(prepared)
            if criterion.separable
            and criterion.fingerprint
            and theirs.score_digest == spec.score_digest
            and (not criterion.uses_recipe or theirs.outcome_digest == spec.outcome_digest)
        }
        seeds = spec.retraining.seeds if theirs.outcome_digest == spec.outcome_digest else ()
        try:
            with Store(other, read_only=True) as record:
                offered = store.offered(record, criteria=criteria, seeds=seeds)
        except StoreError as error:
            progress.message(f"nothing is taken over from {other.name}: {error}")
            continue
        if rows := store.adopt(offered):
            taken[other.name] = rows
            progress.message(f"{rows:,} results taken over from {other.name}")
    return taken


def _applying(prepared: Prepared) -> list[tuple[str, Criterion]]:
    """The criteria that apply, by the names that the study gives them."""
    named = zip(prepared.spec.criteria, prepared.criteria, strict=True)
    return [(name, criterion) for name, criterion in named if name not in prepared.skipped]


def _note_skipped(
    sitting: int, skipped: Mapping[str, str], store: Store, progress: Progress
) -> None:
    """Record the criteria that do not apply, with their reasons, and say so of new ones."""
    before = store.noted("skipped") or {}
    for name, reason in skipped.items():
        if before.get(name) != reason:
            progress.message(f"skipped: {reason}")
    if skipped != before:
        store.note(sitting, "skipped", dict(skipped))


def _score_stage(
    prepared: Prepared,
    dense: nn.Module,
    sitting: int,
    store: Store,
    progress: Progress,
    wanted: Collection[str] | None,
) -> None:
    candidates, data = prepared.candidates, prepared.data
    skipped = dict(prepared.skipped)
    for name, criterion in _applying(prepared):
        if wanted is not None and name not in wanted:
            continue
        scored = store.scored(name)
        todo = [i for i, identity in enumerate(candidates.ids) if identity not in scored]
        if not todo:
            continue
        progress.stage(
            f"score by {name}", len(candidates), len(candidates) - len(todo), "candidates"
        )
        # Scores of a criterion that is not separable belong to the list they were scored in.
        size, rest = SCORE_CHUNK, todo
        if criterion.at_once:
            size = len(todo)
        if not criterion.separable:
            size, rest = len(candidates), list(range(len(candidates)))
        while rest:
            chunk, rest = rest[:size], rest[size:]
            started = time.perf_counter()
            # A copy: whatever a user's criterion does to it, the dense network stays as it is.
            network = copied(dense).eval()
            try:
                values = criterion(
                    network, candidates.take(chunk), data, prepared.spec.retraining
                ).tolist()
            except InputError as reason:
                # A few images did not tell, or one that comes with the package fails on all.
                if not (isinstance(reason, NotApplicableError) or criterion.is_shipped):
                    raise
                skipped[name] = str(reason)
                _note_skipped(sitting, skipped, store, progress)
                break
            names = [candidates.ids[i] for i in chunk]
            store.record_scores(name, zip(names, values, strict=True))
            progress.advance(sum(one not in scored for one in names))
            size = _next_size(size, time.perf_counter() - started)
    asked = [name for name in prepared.spec.criteria if wanted is None or name in wanted]
    if asked and all(name in skipped for name in asked):  # else all would be retrained for nothing
        reasons = "; ".join(skipped[name] for name in asked)
        none = "no criterion of the study applies: " if wanted is None else ""
        raise NotApplicableError(f"{none}{reasons}")


def _next_size(size: int, seconds: float) -> int:
    """The next chunk's size: so that it takes about as long as it should.

    All are multiples of the first, so that the blocks within them hold the same candidates however
    often a study is resumed, and its scores are the same to the bit.
    """
    for growth in (8, 4, 2):
        if seconds * growth < 2 * CHUNK_SECONDS:
            return size * growth
    too_long = seconds > 4 * CHUNK_SECONDS and size > SCORE_CHUNK
    return size // 2 if too_long else size


def _left(prepared: Prepared, store: Store) -> int:
    """How many networks are still to be retrained."""
    return prepared.retrainings - store.counts()["retrainings"]


def _plan(
    prepared: Prepared, store: Store, progress: Progress, engine: str, memory: int | None
) -> Plan | None:
    """How to retrain what is left; None where nothing is. A resumed study keeps its engine."""
    left = _left(prepared, store)
    if not left:
        return None
    pruned = prepared.candidates.prune(prepared.network, 0)

    def choose(name: str) -> Plan:
        recipe = prepared.spec.retraining
        return plan(pruned, prepared.data, recipe, members=left, engine=name, memory=memory)

    before = store.noted("engine")
    if engine == "auto" and before:
        try:
            return replace(choose(before), reason="as in the sitting before")
        except InputError as error:  # on another machine, say
            progress.message(f"retraining cannot go on as it began: {error}")
    return choose(engine)


def _retrain_stage(
    prepared: Prepared, dense: nn.Module, plan: Plan, store: Store, progress: Progress
) -> None:
    """Retrain every candidate with every seed; a chunk is a population, committed when done."""
    candidates, recipe = prepared.candidates, prepared.spec.retraining
    done = store.retrained()
    left = {
        seed: [i for i, name in enumerate(candidates.ids) if (seed, name) not in done]
        for seed in recipe.seeds
    }
    count = sum(map(len, left.values()))
    progress.stage("retrain", prepared.retrainings, prepared.retrainings - count, "networks")
    for chunk in _chunks(left, plan):
        names = [candidates.ids[index] for _, index in chunk]
        shown = 0.0

        def show(networks: int) -> None:
            nonlocal shown  # recording them is the last step
            shown += networks / (recipe.epochs + 1)
            progress.advance(networks / (recipe.epochs + 1))

        started = time.perf_counter()
        records = train_population(
            [candidates.prune(dense, index) for _, index in chunk],
            [
                (seed, "" if recipe.common_random_numbers else name)
                for (seed, _), name in zip(chunk, names, strict=True)
            ],
            prepared.data,
            recipe,
            engine=plan.engine,
            on_epoch=show,
        )
        seconds = (time.perf_counter() - started) / len(chunk)
        finished = [
            Retrained(
                candidate=name,
                seed=seed,
                diverged=own[-1].diverged,
                seconds=seconds,
                epochs=[asdict(record) for record in own],
            )
            for (seed, _), name, own in zip(chunk, names, records, strict=True)
        ]
        store.record_retrained(finished)
        diverged = sum(one.diverged for one in finished)
        progress.advance(len(chunk) - shown, note=f"{diverged} diverged" if diverged else "")


def _chunks(left: Mapping[int, Sequence[int]], plan: Plan) -> Iterator[list[tuple[int, int]]]:
    """What is left, as (seed, candidate), in pieces of ``plan.groups`` groups of one seed each."""
    groups = [
        [(seed, index) for index in indices[i : i + plan.group]]
        for seed, indices in left.items()
        for i in range(0, len(indices), plan.group)
    ]
    for i in range(0, len(groups), plan.groups):
        yield [member for group in groups[i : i + plan.groups] for member in group]


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
