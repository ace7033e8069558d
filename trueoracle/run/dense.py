"""The dense network of a study: recorded, taken over, given, or trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from trueoracle.analysis.numbers import many
from trueoracle.analysis.outcomes import (
    baseline_in_words,
    chance_in_words,
    default_outcomes,
    find_outcome,
)
from trueoracle.engines.choose import seconds_alone
from trueoracle.errors import InputError, StoreError, TrainingError
from trueoracle.files import sha256_of
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import (
    load_weights,
    read_metadata,
    save_weights,
    weights_sha256,
)
from trueoracle.record.paths import DENSE, SEARCHES, UNDER_WAY
from trueoracle.record.store import Store
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import about
from trueoracle.run.sitting import Sitting
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.loop import EpochRecord, measure, train

__all__ = ["check_dense_file", "make_dense", "read_dense", "warn_of_chance"]


def make_dense(at: Sitting) -> nn.Module:
    """The dense network: recorded, taken over from a similar study, given, or trained now."""
    prepared, folder, store, progress = at.prepared, at.folder, at.store, at.progress
    spec, path, recorded = prepared.spec, folder / DENSE, store.dense()
    given = weights_sha256(prepared.network) if spec.network.arrives_trained else None
    if recorded is not None and given not in (None, recorded["sha256"]):
        raise InputError(
            f"{spec.network.weights or spec.network.name} has changed since this study began: give "
            "the study another name to start anew with it"
        )
    if recorded is not None and path.is_file():
        network = read_dense(prepared, folder, recorded)
        if recorded["file_sha256"] is None:  # an older record, whose weights have now been checked
            store.record_dense_file(sha256_of(path))
        if prepared.data.blocks and not store.has_dense_blocks():  # an older record, too
            measured = measure(network, prepared.data, 0, 0.0, by_block=True)
            store.record_dense_blocks(measured.blocks)
        return network
    wanted = recorded["sha256"] if recorded else store.network()
    if wanted is not None:
        progress.message(
            f"{path if recorded else 'the record of the dense network'} is missing: the network is "
            "made again, and taken if it is the one that was recorded"
        )
    checkpoint = Checkpoint(folder / UNDER_WAY, f"{spec.dense_digest}-{prepared.architecture}")
    network, origin, epochs, seconds = _made(at, checkpoint, wanted)
    found = weights_sha256(network)
    if wanted is not None and found != wanted and (rests := _resting(at)):
        raise StoreError(
            f"the dense network made again ({found[:12]}) is another one than that ({wanted[:12]}) "
            f"whose {rests} {folder} records: put a backup of {DENSE} in its place, or move "
            f"{folder} away to start anew"
        )
    is_same = wanted is not None and found == wanted
    if is_same and (kept := _records(store.frame("dense_epochs"))):  # another sitting's training
        epochs = kept
    final = measure(network, prepared.data, 0, 0.0, by_block=True)
    if final.diverged:
        raise TrainingError(
            f"the dense network's train loss is {final.train_loss}: there is nothing to prune "
            "(lower dense.learning_rate, or set dense.gradient_clip)"
        )
    metadata = {
        "dense_digest": spec.dense_digest,
        "architecture": prepared.architecture,
        "epochs": epochs,
    }
    file = save_weights(network, path, metadata)
    if recorded is not None and is_same:  # what is recorded of it stays
        store.record_dense_file(file)
    else:
        store.record_dense(
            found,
            prepared.architecture,
            origin,
            seconds,
            final.as_row(),
            epochs,
            file_sha256=file,
            blocks=final.blocks,
            is_same=is_same,
        )
    checkpoint.remove()
    return network


def _resting(at: Sitting) -> str:
    """What is recorded that rests on the dense network, in words; empty where nothing is."""
    counts = at.store.counts()
    searches = len(list(at.folder.glob(f"{SEARCHES}/*/*.json")))
    if not (counts["scores"] or counts["retrainings"] or searches):
        return ""
    said = [many(counts["scores"], "score"), many(counts["retrainings"], "outcome")]
    said += [many(searches, "search", "searches")] if searches else []
    return f"{', '.join(said[:-1])} and {said[-1]}"


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
    """The dense network of a run's folder; raises :class:`StoreError` if the file has another."""
    check_dense_file(folder, recorded)
    network = copied(prepared.network)
    try:
        load_weights(network, folder / DENSE)
    except InputError as error:  # the file is the record's, not one that the user named
        raise StoreError(f"the record's own weights are damaged: {error}") from error
    if weights_sha256(network) != recorded["sha256"]:
        raise StoreError(f"{folder / DENSE} has changed since the study recorded it: put it back")
    return network


def _made(
    at: Sitting, checkpoint: Checkpoint, wanted: str | None
) -> tuple[nn.Module, str, list[dict[str, Any]], float]:
    """A dense network, where it comes from, its epochs, and the seconds that training took.

    ``wanted`` is the SHA-256 of the network where that is known: a file that holds this network is
    taken even if nothing is recorded of it.
    """
    prepared, folder, progress = at.prepared, at.folder, at.progress
    network = copied(prepared.network)
    if prepared.spec.network.arrives_trained:
        return network, "given", [], 0.0
    if wanted is not None and _holds(network, folder / DENSE, wanted):
        return network, "trained", _epochs_in(folder / DENSE), 0.0
    if (sibling := _like(at, wanted)) is not None:
        taken, epochs = sibling
        load_weights(network, taken / DENSE)
        progress.message(f"dense network: taken over from {taken.name}")
        return network, "adopted", epochs, 0.0
    if checkpoint.is_damaged:
        progress.message(f"{UNDER_WAY} is damaged: the dense network is trained from the start")
    started = time.perf_counter()
    epochs = _train(network, at, checkpoint)
    return network, "trained", epochs, time.perf_counter() - started


def _holds(network: nn.Module, path: Path, sha256: str) -> bool:
    """Load the file at ``path`` if it has these weights; returns whether it has."""
    tried = copied(network)
    with suppress(InputError, OSError):
        load_weights(tried, path)
        if weights_sha256(tried) == sha256:
            load_weights(network, path)
            return True
    return False


def _epochs_in(path: Path) -> list[dict[str, Any]]:
    """The epochs of the training that a dense network's file keeps; none where it has none."""
    epochs = read_metadata(path).get("epochs")
    return epochs if isinstance(epochs, list) else []


def _train(network: nn.Module, at: Sitting, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    prepared, progress = at.prepared, at.progress
    recipe = prepared.spec.dense
    computing = seconds_alone(network, prepared.data, recipe)
    expected = about(max(computing, at.reading_seconds(recipe)))
    progress.message(f"training the dense network ({expected})")
    progress.stage("dense network", recipe.epochs, 0, "epochs")

    def show(record: EpochRecord) -> None:
        progress.advance(note=f"train loss {record.train_loss:.4f}")

    records = train(
        network, prepared.data, recipe, seed=recipe.seed, on_epoch=show, checkpoint=checkpoint
    )
    return [record.as_row() for record in records]


def _like(at: Sitting, sha256: str | None) -> tuple[Path, list[dict[str, Any]]] | None:
    """The folder and epochs of another study's dense network made by the same fields and code.

    It has the SHA-256 that is given, where one is.
    """
    prepared = at.prepared
    wanted = (prepared.spec.dense_digest, prepared.architecture)
    own = {what: code for what, code in prepared.code.items() if what.startswith("task")}
    if not all(own.values()):  # nobody knows whether another task's code is the same
        return None
    for other in at.siblings():
        try:
            metadata = read_metadata(other / DENSE)
            if (metadata.get("dense_digest"), metadata.get("architecture")) != wanted:
                continue
            with Store(other, read_only=True) as record:
                dense, epochs = record.dense(), record.frame("dense_epochs")
                code = record.noted("code") or {}
            if any(code.get(what) != ours for what, ours in own.items()):
                continue
            if dense is not None and sha256 in (None, dense["sha256"]):
                read_dense(prepared, other, dense)
                return other, _records(epochs)
        except (StoreError, InputError):  # another study's damage is not this one's
            continue
    return None


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def warn_of_chance(at: Sitting) -> None:
    """Note the chance level, which a report needs; warn of a network that learnt nothing."""
    data, task = at.prepared.data, at.prepared.data.task
    outcome = find_outcome(tuple(task.metrics), default_outcomes(task.metrics)[0])
    value = (at.store.dense() or {}).get(outcome.column)
    if (chance := task.chance()) is not None:
        at.store.note(at.number, "chance", chance)
    for warning in (
        chance_in_words(outcome, value, chance),
        baseline_in_words(outcome, value, data.facts),
    ):
        if warning:
            at.progress.message(f"warning: {warning}")
