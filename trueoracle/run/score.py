"""What comes before retraining: the candidates and their scores."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from torch import nn

from trueoracle.analysis.outcomes import noise_in_words
from trueoracle.criteria.noise import loss_noise
from trueoracle.errors import InputError, NotApplicableError, first_line
from trueoracle.networks.copying import copied
from trueoracle.pruning.cost import cost
from trueoracle.pruning.listing import write_listing
from trueoracle.record.layout import LATENCY, NOISE
from trueoracle.record.paths import CANDIDATES
from trueoracle.run.around import candidates_for
from trueoracle.run.latency import latencies
from trueoracle.run.sitting import Sitting, check_candidates
from trueoracle.spec.spec import candidates_in_words
from trueoracle.tasks.base import as_input

__all__ = ["list_candidates", "score_candidates"]

ORACLE = "oracle"
"""The criterion whose score is the pruned loss on all measured examples."""

SCORE_CHUNK = 32
"""The candidates of the first commit, where the criterion allows chunks; later chunks grow."""
CHUNK_SECONDS = 4.0
"""A chunk of fewer seconds is followed by a larger one; a kill loses about twice this time."""


def list_candidates(at: Sitting, dense: nn.Module) -> Sitting:
    """Record candidates, costs and criteria; drop the scores of a criterion whose code changed.

    Returns the sitting with the candidates of this dense network.
    """
    at = replace(at, prepared=candidates_for(at.prepared, dense, at.folder))
    prepared, store = at.prepared, at.store
    check_candidates(prepared, store)
    candidates = prepared.candidates
    if prepared.spec.pruning.candidates != "all":
        said = candidates_in_words(prepared.spec.pruning, len(candidates))
        at.progress.message(f"candidates: {said}")
    if store.counts()["candidates"] != len(candidates):
        store.record_candidates(
            (name, candidates.pruned(index)) for index, name in enumerate(candidates.ids)
        )
    write_listing(candidates.listing(), at.folder / CANDIDATES)
    if not store.has_costs():
        example = as_input(prepared.network, prepared.data.example(1))
        whole = cost(prepared.network, example)
        costs = candidates.costs(prepared.network, example)
        store.record_costs(
            (whole.parameters, whole.macs),
            [
                (name, one.parameters, one.macs)
                for name, one in zip(candidates.ids, costs, strict=True)
            ],
        )
    _note_latency(at, dense)
    for name, criterion in at.applying:
        if not store.record_criterion(
            name, criterion.source, criterion.fingerprint, criterion.label_of(candidates)
        ):
            at.progress.message(
                f"criterion {name}: its code may have changed, so it is scored anew"
            )
    at.note_skipped(_skipped(at))
    return at


def _skipped(at: Sitting) -> dict[str, str]:
    """The criteria that do not apply, with those of earlier sittings until they are tried again."""
    return {**(at.store.noted("skipped") or {}), **at.prepared.skipped}


def _note_latency(at: Sitting, dense: nn.Module) -> None:
    """Record how long the dense network and the candidate of median MACs take on this machine."""
    prepared, store = at.prepared, at.store
    if store.noted(LATENCY):
        return
    macs = store.frame("candidates").set_index("id")["macs"].reindex(prepared.candidates.ids)
    middle = int(np.argsort(macs.to_numpy(dtype=np.float64), kind="stable")[len(macs) // 2])
    try:
        network = copied(dense).eval()
        pruned = prepared.candidates.prune(network, middle).eval()
        size = prepared.spec.retraining.batch_size
        found = latencies(network, pruned, prepared.data, size, prepared.device)
    except Exception as error:  # a user's network runs, which can raise anything
        at.progress.message(f"latency is not measured: {first_line(error)}")
        return
    store.note(at.number, LATENCY, found)


def score_candidates(at: Sitting, dense: nn.Module, wanted: Collection[str] | None = None) -> None:
    """Score every candidate by every criterion or those ``wanted``, committing chunk by chunk."""
    prepared, store, progress = at.prepared, at.store, at.progress
    candidates, data = prepared.candidates, prepared.data
    skipped = _skipped(at)
    for name, criterion in at.applying:
        if wanted is not None and name not in wanted:
            continue
        scored = store.scored(name)
        todo = [i for i, identity in enumerate(candidates.ids) if identity not in scored]
        if todo:
            progress.stage(
                f"score by {name}", len(candidates), len(candidates) - len(todo), "candidates"
            )
        # Scores of a criterion that is not separable belong to the whole list of candidates.
        size, rest = SCORE_CHUNK, todo
        if criterion.at_once:
            size = len(todo)
        if todo and not criterion.separable:
            size, rest = len(candidates), list(range(len(candidates)))
        while rest:
            chunk, rest = rest[:size], rest[size:]
            started = time.perf_counter()
            # A user's criterion gets a copy, so that it cannot change the dense network.
            network = copied(dense).eval()
            try:
                values = criterion(
                    network, candidates.take(chunk), data, prepared.spec.retraining
                ).tolist()
            except InputError as reason:
                # Skip: the criterion does not apply to this data, or a shipped one failed.
                if not (isinstance(reason, NotApplicableError) or criterion.is_shipped):
                    raise
                skipped[name] = str(reason)
                at.note_skipped(skipped)
                break
            names = [candidates.ids[i] for i in chunk]
            store.record_scores(name, zip(names, values, strict=True))
            progress.advance(sum(one not in scored for one in names))
            size = _next_size(size, time.perf_counter() - started)
        else:
            # All is scored: where an earlier sitting could not (an extra was not installed), it
            # applies now.
            if skipped.pop(name, None) is not None:
                at.note_skipped(skipped)
    _note_noise(at, dense)
    asked = [name for name in prepared.spec.criteria if wanted is None or name in wanted]
    if asked and all(name in skipped for name in asked):  # going on would retrain all for nothing
        reasons = "; ".join(skipped[name] for name in asked)
        none = "no criterion of the study applies: " if wanted is None else ""
        raise NotApplicableError(f"{none}{reasons}")


def _note_noise(at: Sitting, dense: nn.Module) -> None:
    """Record how far pruned losses differ by their examples alone; warn where they differ no more.

    This is done once the pruned loss of every candidate is recorded.
    """
    candidates, store = at.prepared.candidates, at.store
    frame = store.frame("scores")
    scores = frame[frame["criterion"] == ORACLE].set_index("candidate")["score"]
    if len(scores) < len(candidates) or store.noted(NOISE):
        return
    losses = scores.reindex(candidates.ids).to_numpy(dtype=np.float64)
    try:
        found = loss_noise(copied(dense).eval(), candidates, losses, at.prepared.data)
    except Exception as error:  # a user's task runs, which can raise anything
        at.progress.message(f"how noisy pruned losses are is not known: {first_line(error)}")
        return
    if found is None or not math.isfinite(found["noise"]):
        return
    store.note(at.number, NOISE, found)
    if said := noise_in_words(found, at.prepared.data.task.metrics[0].unit):
        at.progress.message(f"warning: {said}")


def _next_size(size: int, seconds: float) -> int:
    """The next chunk's size, chosen so that the chunk takes about as long as it should.

    All sizes are multiples of the first. The blocks within chunks then hold the same candidates
    however often a study is resumed, and the study's scores are the same to the bit.
    """
    for growth in (8, 4, 2):
        if seconds * growth < 2 * CHUNK_SECONDS:
            return size * growth
    too_long = seconds > 4 * CHUNK_SECONDS and size > SCORE_CHUNK
    return size // 2 if too_long else size
