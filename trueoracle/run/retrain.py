"""Retraining a study's candidates, chunk by chunk."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines.choose import Plan, check_engine, engine_for, plan
from trueoracle.engines.devices import DevicesEngine
from trueoracle.engines.loop import LoopEngine
from trueoracle.engines.retrain import retrain, retraining_data, stream_of
from trueoracle.errors import InputError, WorkerError, first_line, is_out_of_memory
from trueoracle.executors.base import (
    ChunkExecutor,
    InThisProcess,
    Parcel,
    completed,
    opened,
)
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import load_state, load_weights, state_tensors, weights_sha256
from trueoracle.pruning.candidates import CandidateList
from trueoracle.record.layout import MOST_AT_ONCE
from trueoracle.record.paths import DENSE, RETRAINING, retraining_under_way
from trueoracle.record.store import Failed, Retrained
from trueoracle.run.around import candidates_for
from trueoracle.run.faults import error_in_words, is_the_machines
from trueoracle.run.material import built
from trueoracle.run.prepare import Prepared, find_device, prepare
from trueoracle.run.progress import about
from trueoracle.run.sitting import Sitting
from trueoracle.spec.spec import StudySpec
from trueoracle.tasks.registry import GIVEN
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.team import Team, find_team

__all__ = [
    "Chunk",
    "Place",
    "Queue",
    "check_executor",
    "check_retraining",
    "chunk_size",
    "chunks",
    "follow",
    "plan_networks",
    "plan_retraining",
    "retrain_candidates",
    "retrain_chunk",
    "threads",
    "under_way",
]


CHUNKS_A_WORKER = 4
"""Chunks that a worker gets at least, unless they would be too short: so all end together."""

Member = tuple[int, int]
"""One network to retrain: the seed, and the candidate's number."""


@dataclass(frozen=True)
class Chunk:
    """Networks to retrain in one call, as plain data that can be sent to another machine.

    - ``dense`` is the file of the dense network's weights; ``identity``, where it is given, tells
      the study's retrainings from those of another dense network, recipe or code;
    - ``members`` are seeds and candidates' ids, of which ``together`` are trained in one call;
    - ``device`` is the one that computes them, where it is not that of the place; ``threads``,
      where given, are its CPU threads.
    """

    spec: StudySpec
    dense: Path
    members: tuple[tuple[int, str], ...]
    engine: str
    identity: str = ""
    together: int | None = None
    device: str | None = None
    threads: int | None = None

    @property
    def calls(self) -> list[tuple[tuple[int, str], ...]]:
        """The members of each call, in the order of the calls."""
        size = self.together or len(self.members)
        return [self.members[i : i + size] for i in range(0, len(self.members), size)]


@dataclass(frozen=True, eq=False)
class Place:
    """All that is built once for the chunks of a study: candidates, data and dense network.

    It can be pickled: a network by name is built anew where it arrives, and gets its weights there.
    """

    spec: StudySpec
    candidates: CandidateList
    data: Splits
    dense: nn.Module
    identity: str

    @classmethod
    def of(cls, prepared: Prepared, dense: nn.Module) -> Place:
        """The place of a prepared study whose dense network is given."""
        spec = prepared.spec
        parts = (
            spec.outcome_digest,
            weights_sha256(dense),
            prepared.architecture,
            dict(prepared.code),
            prepared.candidates.ids,
        )
        identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cls(spec, prepared.candidates, prepared.data, dense, identity)

    def on(self, device: torch.device) -> Place:
        """The place on a device."""
        if self.data.train.device == device:
            return self
        return replace(self, data=self.data.to(device), dense=copied(self.dense).to(device))

    def __getstate__(self) -> dict[str, Any]:
        own = self.on(torch.device("cpu"))
        fields = {name: getattr(own, name) for name in self.__dataclass_fields__}
        if not self.spec.network.fingerprint:
            fields["dense"] = state_tensors(own.dense)
        return fields

    def __setstate__(self, fields: dict[str, Any]) -> None:
        dense = fields["dense"]
        if not isinstance(dense, nn.Module):
            fields["dense"] = built(fields["spec"], fields["data"])
            load_state(fields["dense"], dense, "the dense network that was sent")
        self.__dict__.update(fields)


def retrain_chunk(
    chunk: Chunk,
    place: Place | Parcel | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> list[Retrained]:
    """Prune and retrain a chunk's networks; returns what is recorded of each.

    A chunk that was interrupted goes on from the file of :func:`under_way`, if its folder is here.
    Without a ``place``, one is built from the chunk alone. Raises :class:`WorkerError` where that
    is impossible, such as where network, data or task were given in Python, and where something
    else than on the driver's machine was built.
    """
    at: Place
    try:
        if place is None:
            at = _built(chunk.spec.model_dump_json(), chunk.dense, chunk.device or "auto")
        else:
            at = place if isinstance(place, Place) else opened(place)
        if chunk.device is not None:
            at = at.on(find_device(chunk.device))
    except Exception as error:  # what it is built from is the user's, and here it may lack
        raise WorkerError(
            f"{chunk.spec.name} cannot be built where it is retrained: {first_line(error)}"
        ) from error
    if chunk.identity not in ("", at.identity):
        raise WorkerError(
            f"{chunk.spec.name} is another study here than where it was started: code, data or "
            "versions differ"
        )
    found = []
    with threads(chunk.threads):
        for members in chunk.calls:
            found += _retrained(chunk, members, at, on_epoch)
    return found


def _retrained(
    chunk: Chunk,
    members: Sequence[tuple[int, str]],
    at: Place,
    on_epoch: Callable[[int], None] | None,
) -> list[Retrained]:
    """Prune and retrain those members of a chunk that are trained in one call."""
    candidates, recipe = at.candidates, chunk.spec.retraining
    number = {name: index for index, name in enumerate(candidates.ids)}
    team = find_team()
    how = f"{chunk.engine}-sharded" if team is not None and team.is_sharded else chunk.engine
    kept = Checkpoint(_under_way(chunk, members), f"{at.identity}-{how}-{members}")
    started = time.perf_counter()
    records, _ = retrain(
        [candidates.prune(at.dense, number[name]) for _, name in members],
        [stream_of(recipe, seed, name) for seed, name in members],
        retraining_data(at.data, recipe, at.dense),
        recipe,
        engine=chunk.engine,
        on_epoch=on_epoch,
        checkpoint=kept if chunk.dense.parent.is_dir() else None,
    )
    seconds = (time.perf_counter() - started) / len(members)
    return [
        Retrained(
            candidate=name,
            seed=seed,
            diverged=own[-1].diverged,
            seconds=seconds,
            epochs=[record.as_row() for record in own],
            blocks={} if own[-1].diverged else own[-1].blocks,
        )
        for (seed, name), own in zip(members, records, strict=True)
    ]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within the block, PyTorch and the kernels compute on so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def follow(prepared: Prepared, team: Team) -> None:
    """Train together with the first process of a launch until that has finished the study."""
    place = None
    while (chunk := team.hear()) is not None:
        if place is None:
            network = copied(prepared.network)
            load_weights(network, chunk.dense)
            prepared = candidates_for(prepared, network, chunk.dense.parent)
            place = Place.of(prepared, network)
        retrain_chunk(chunk, place)


def under_way(chunk: Chunk) -> list[Path]:
    """The files that keep the networks of a chunk while they are trained, if that takes long."""
    return [_under_way(chunk, members) for members in chunk.calls]


def _under_way(chunk: Chunk, members: Sequence[tuple[int, str]]) -> Path:
    return chunk.dense.parent / retraining_under_way(*members[0])


@lru_cache(maxsize=1)
def _built(fields: str, dense: Path, device: str) -> Place:
    """A place from plain data (a study as JSON), kept for the next chunk of the same study."""
    spec = StudySpec.model_validate_json(fields)
    if not _is_plain(spec):
        raise InputError(f"{spec.name} was given in Python, and is retrained where it was given")
    prepared = prepare(spec, device=device)
    network = copied(prepared.network)
    load_weights(network, dense)
    return Place.of(candidates_for(prepared, network, dense.parent), network)


def _is_plain(spec: StudySpec) -> bool:
    """Whether a study is all in its fields, and nothing was given in Python."""
    return not (spec.network.fingerprint or spec.data.fingerprint or spec.task.startswith(GIVEN))


def launched(engine: str) -> str:
    """The engine for processes that were launched together; refuses any other engine for them."""
    if find_team() is None:
        return engine
    if engine not in ("auto", DevicesEngine.name):
        raise InputError(
            f"engine {engine!r} uses one device, and this process was launched with others: leave "
            "--engine out, or start it alone"
        )
    return DevicesEngine.name


def check_retraining(prepared: Prepared, engine: str) -> None:
    """Refuse an engine that cannot retrain the study's networks, by :class:`InputError`."""
    recipe = prepared.spec.retraining
    example = prepared.candidates.prune(prepared.network, 0)
    data = retraining_data(prepared.data, recipe, prepared.network)
    check_engine(engine_for(prepared.candidates, launched(engine)), example, data, recipe)


def check_executor(prepared: Prepared, executor: ChunkExecutor) -> None:
    """Refuse an executor that cannot retrain the study's networks, by :class:`InputError`."""
    if not executor.is_elsewhere:
        return
    if find_team() is not None:
        raise InputError(
            "this process was launched with others, which retrain together: leave the executor out"
        )
    device, gpus = prepared.device.type, executor.gpus
    if gpus == 0 and device == "cuda":
        raise InputError(
            "networks are to be retrained on cuda, and the executor asks for no GPU: give --gpus "
            "(gpus=…), or take the device cpu"
        )
    if gpus and device != "cuda":
        raise InputError(
            f"the executor asks for {gpus:g} GPUs a chunk, and this process, which plans the "
            f"chunks, computes on {device}: start it where there is a GPU"
        )


def retrain_candidates(
    at: Sitting, dense: nn.Module, plan: Plan, executor: ChunkExecutor | None = None
) -> None:
    """Retrain every candidate with every seed; each chunk is committed once it is done.

    The ``executor`` runs the chunks, by default this process; only this process records. A chunk
    that fails is cut in two until the network that fails is alone, which is then recorded as
    failed.
    """
    prepared, store, progress = at.prepared, at.store, at.progress
    candidates, recipe = prepared.candidates, prepared.spec.retraining
    executor = executor or InThisProcess()
    seconds = plan.seconds_a_network
    if seconds:  # images are read once for all networks that are trained as one
        seconds = max(seconds, at.reading_seconds(recipe) / plan.group)
    expected = f" ({about(seconds * at.left)})" if seconds else ""
    where = ""
    if executor.is_elsewhere:
        expected, where = expected.replace(")", " on one worker)"), f" on {executor}"
    progress.message(f"retraining{where}{expected}: {plan}")
    store.note(at.number, "engine", plan.engine)
    done = at.done()
    left = {
        seed: [i for i, name in enumerate(candidates.ids) if (seed, name) not in done]
        for seed in recipe.seeds
    }
    count = sum(map(len, left.values()))
    progress.stage("retrain", prepared.retrainings, prepared.retrainings - count, "networks")
    place, team = Place.of(prepared, dense), find_team()
    shown = 0.0

    def show(networks: int) -> None:
        nonlocal shown  # the last step is left for recording the networks
        step = networks / (recipe.epochs + 1)
        shown += step
        progress.advance(step)

    carried = executor.carried(place, show, is_plain=_is_plain(prepared.spec))

    def submit(chunk: Chunk) -> Future[list[Retrained]]:
        if team is not None:
            team.tell(chunk)
        return executor.submit(retrain_chunk, chunk, *carried)

    together = plan.group * plan.groups
    size = chunk_size(plan, executor, count)
    work = [
        Chunk(
            prepared.spec,
            (at.folder / DENSE).absolute(),
            tuple((seed, candidates.ids[index]) for seed, index in members),
            plan.engine,
            place.identity,
            together,
            prepared.device.type if executor.is_elsewhere else None,
            executor.threads,
        )
        for members in chunks(left, plan.group, size)
    ]
    queue = Queue(at, work)
    with closing(completed(submit, queue.next, executor.at_once)) as finished:
        for chunk, future in finished:
            try:
                networks = future.result()
            except Exception as error:
                if team is not None:  # its other processes wait for this one
                    raise
                failed = queue.failed(chunk, error)
                progress.advance(failed - shown, note=f"{failed} failed" if failed else "")
            else:
                store.record_retrained(networks)
                for path in under_way(chunk):
                    path.unlink(missing_ok=True)
                diverged = sum(one.diverged for one in networks)
                note = f"{diverged} diverged" if diverged else ""
                progress.advance(len(networks) - shown, note=note)
            shown = 0.0
    # What is left is of another engine, or of networks that were adopted.
    for path in at.folder.glob(RETRAINING):
        path.unlink(missing_ok=True)


class Queue:
    """The chunks that are still to be retrained; one that fails comes back in halves."""

    def __init__(self, at: Sitting, chunks: Sequence[Chunk]) -> None:
        self._at, self._chunks = at, deque(chunks)
        self._most = max((len(chunk.calls[0]) for chunk in chunks), default=0)
        self._known: set[str] = set()

    def next(self) -> Chunk | None:
        """The next chunk, with no more networks in a call than memory holds; None without one."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        return replace(chunk, together=min(chunk.together or len(chunk.members), self._most))

    def failed(self, chunk: Chunk, error: Exception) -> int:
        """Take back a chunk that raised; returns how many networks are recorded as failed.

        Several networks are tried again in halves. Where those of one call were too many for the
        memory, all later calls have no more than a half. Raises the error where it is the
        machine's, unless fewer networks need less memory.
        """
        at, at_once = self._at, len(chunk.calls[0])
        is_short = at_once > 1 and is_out_of_memory(error)
        if is_the_machines(error) and not is_short:
            raise error
        if is_short:
            self._chunks.appendleft(chunk)
            if self._most > at_once // 2:
                self._most = at_once // 2
                at.store.note(at.number, MOST_AT_ONCE, self._most)
                at.progress.message(
                    f"out of memory with {at_once:,} networks at once: {self._most:,} at once from "
                    "now on"
                )
            return 0
        if (half := len(chunk.members) // 2) > 0:
            for members in (chunk.members[half:], chunk.members[:half]):
                self._chunks.appendleft(replace(chunk, members=members))
            return 0
        ((seed, name),) = chunk.members
        words = error_in_words(error)
        at.store.record_failed([Failed(name, seed, words)])
        if words not in self._known:
            self._known.add(words)
            at.progress.message(f"retraining candidate {name} with seed {seed} failed: {words}")
        return 1


def chunk_size(plan: Plan, executor: ChunkExecutor, left: int) -> int:
    """How many groups of networks a chunk has, where ``left`` networks are to be retrained.

    In this process it is one call's. Elsewhere it fills the time that a chunk should take there,
    and leaves several chunks to every worker, so that all end at about the same time.
    """
    if not executor.is_elsewhere or plan.seconds_a_network is None:
        return plan.groups
    least, most = executor.seconds
    share = left * plan.seconds_a_network / (CHUNKS_A_WORKER * (executor.workers or 1))
    wanted = min(max(least, share), most) / (plan.seconds_a_network * plan.group)
    together = min(plan.groups, executor.threads or torch.get_num_threads())
    return max(1, int(wanted / together)) * together


def chunks(left: Mapping[int, Sequence[int]], group: int, groups: int) -> Iterator[list[Member]]:
    """What is left to retrain, in chunks of so many groups of one seed each."""
    each = [
        [(seed, index) for index in indices[i : i + group]]
        for seed, indices in left.items()
        for i in range(0, len(indices), group)
    ]
    for i in range(0, len(each), groups):
        yield [member for members in each[i : i + groups] for member in members]


def plan_retraining(
    at: Sitting,
    engine: str = "auto",
    memory: int | None = None,
    executor: ChunkExecutor | None = None,
) -> Plan | None:
    """How to retrain what is left; None where nothing is left.

    With the engine ``auto``, a resumed study keeps its engine if that is possible. What is tried
    runs on as many threads as a chunk of the ``executor`` will.
    """
    left, before = at.left, at.store.noted("engine")
    if not left:
        return None
    with threads((executor or InThisProcess()).threads):
        if engine == "auto" and before and find_team() is None:
            try:
                again = plan_networks(at.prepared, before, memory, left)
            except InputError as error:  # as can happen on another machine
                at.progress.message(f"retraining cannot go on as it began: {error}")
            else:
                return replace(again, reason="as in the sitting before")
        return plan_networks(at.prepared, engine, memory, left)


def plan_networks(prepared: Prepared, engine: str, memory: int | None, members: int) -> Plan:
    """How to retrain so many networks of a study, from a trial of the engines."""
    recipe, network = prepared.spec.retraining, prepared.network
    if recipe.procedure is not None and find_team() is None:
        return Plan(LoopEngine.name, "a training procedure of one's own")
    return plan(
        prepared.candidates.prune(network, 0),
        retraining_data(prepared.data, recipe, network),
        recipe,
        members=members,
        engine=engine_for(prepared.candidates, launched(engine)),
        memory=memory,
    )
