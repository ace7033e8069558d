"""How long a study takes on so many workers: a simulation of its chunks, from measured times."""

from __future__ import annotations

import heapq
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trueoracle.engines.choose import Plan
from trueoracle.engines.memory import parse_bytes
from trueoracle.errors import InputError, StoreError
from trueoracle.executors.base import AT_ONCE, ChunkExecutor
from trueoracle.executors.ray import RayExecutor
from trueoracle.executors.slurm import SlurmExecutor
from trueoracle.record.layout import CHUNK_THREADS
from trueoracle.record.results import Results
from trueoracle.record.store import Retrained, Store
from trueoracle.run.chunks import threads
from trueoracle.run.drive import chunk_size, chunks
from trueoracle.run.prepare import Prepared
from trueoracle.run.retrain import plan_networks
from trueoracle.training.loop import epoch_record

__all__ = ["Foreseen", "Measured", "Work", "in_chunks", "measure", "plans", "simulate", "synthetic"]

_EXECUTORS: dict[str, type[ChunkExecutor]] = {"ray": RayExecutor, "slurm": SlurmExecutor}

_TRIED = 3
"""Chunks that are recorded to see how long recording takes."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One study's networks, and how long they take on one worker.

    ``each`` are seconds per network, one or many; ``recording`` are the driver's seconds per
    network; ``source`` says where the times of the networks come from.
    """

    networks: int
    candidates: int
    plan: Plan
    each: tuple[float, ...]
    recording: float
    source: str

    @property
    def average(self) -> float:
        return sum(self.each) / len(self.each)


@dataclass(frozen=True)
class Work:
    """The chunks of one study: seconds on a worker, and the driver's seconds to record each."""

    networks: int
    seconds: tuple[float, ...]
    recording: tuple[float, ...]


@dataclass(frozen=True)
class Foreseen:
    """What a simulation gives.

    - ``chunk_seconds``: how long a chunk takes, in the mean; ``wall_seconds``: how long it all
      takes;
    - ``idle_share``: the share of the workers' time in which they compute nothing;
    - ``driver_share``: the share of the wall time in which the driver records.
    """

    workers: int
    networks: int
    chunks: int
    chunk_seconds: float
    wall_seconds: float
    idle_share: float
    driver_share: float


def plans(
    studies: Sequence[tuple[Prepared, Path]],
    workers: Sequence[int],
    *,
    threads: int,
    networks: int | None,
    executor: str,
    engine: str,
    memory: str | None,
) -> dict[str, Any]:
    """What :meth:`trueoracle.Grid.plan` returns, for studies and their folders."""
    budget = None if memory is None else parse_bytes(memory)
    measured = [
        measure(one, folder, threads, networks=networks, engine=engine, memory=budget)
        for one, folder in studies
    ]
    rows = []
    for count in workers:
        assumed = ChunkExecutor()
        assumed.workers, assumed.threads = count, threads
        assumed.seconds = _EXECUTORS[executor].seconds
        found = simulate([in_chunks(one, assumed) for one in measured], count, AT_ONCE)
        rows.append(asdict(found))
    return {
        "plans": rows,
        "threads": threads,
        "engines": sorted({one.plan.engine for one in measured}),
        "sources": sorted({one.source for one in measured}),
        "seconds_a_network": [one.average for one in measured],
        "recording_seconds_a_network": [one.recording for one in measured],
    }


def measure(
    prepared: Prepared,
    folder: Path,
    on_threads: int,
    *,
    networks: int | None = None,
    engine: str = "auto",
    memory: int | None = None,
) -> Measured:
    """How long a study's networks take on a worker of so many threads.

    Where ``folder`` records retrainings on as many threads, their times are taken; otherwise a few
    steps are tried now, as a run does before it says how long it takes. ``networks``, where given,
    are to be retrained instead of all of the study's. Raises :class:`InputError` where no engine
    can train the networks, and where nothing tells their time.
    """
    count = networks or prepared.retrainings
    with threads(on_threads):
        plan = plan_networks(prepared, engine, memory, count)
    each, source = _recorded(folder, on_threads, plan.engine), "recorded retrainings"
    if not each:
        if plan.seconds_a_network is None:
            raise InputError(
                f"{plan.reason} is not tried beforehand: run the study for a while, and the times "
                "that it records are taken"
            )
        each, source = (plan.seconds_a_network,), "a trial of a few steps"
    tried = plan.group * plan.groups
    recording = _recording(prepared, tried) / tried
    return Measured(count, len(prepared.candidates), plan, each, recording, source)


def in_chunks(measured: Measured, executor: ChunkExecutor) -> Work:
    """The study's chunks as ``executor`` would get them; their times are drawn from those known."""
    plan = replace(measured.plan, seconds_a_network=measured.average)
    size = chunk_size(plan, executor, measured.networks)
    left = {
        seed: range(min(measured.candidates, measured.networks - start))
        for seed, start in enumerate(range(0, measured.networks, measured.candidates))
    }
    sizes = [len(one) for one in chunks(left, plan.group, size)]
    drawn = random.Random(0)
    seconds = tuple(sum(drawn.choices(measured.each, k=size)) for size in sizes)
    return Work(measured.networks, seconds, tuple(measured.recording * size for size in sizes))


def simulate(work: Sequence[Work], workers: int, at_once: int) -> Foreseen:
    """Carry out studies one after the other on workers that a driver feeds.

    The driver submits chunks while fewer than ``at_once`` are submitted and not recorded, and
    records the results one at a time as they come; the first free worker takes the next chunk. A
    study begins when the one before it has ended.
    """
    clock = 0.0
    for one in work:
        free = [clock] * workers
        running: list[tuple[float, float]] = []
        left = zip(one.seconds, one.recording, strict=True)
        for _ in one.seconds:
            while len(running) < at_once and (chunk := next(left, None)) is not None:
                end = max(heapq.heappop(free), clock) + chunk[0]
                heapq.heappush(free, end)
                heapq.heappush(running, (end, chunk[1]))
            end, recording = heapq.heappop(running)
            clock = max(clock, end) + recording
    count = sum(len(one.seconds) for one in work)
    busy = sum(sum(one.seconds) for one in work)
    return Foreseen(
        workers=workers,
        networks=sum(one.networks for one in work),
        chunks=count,
        chunk_seconds=busy / count,
        wall_seconds=clock,
        idle_share=1 - busy / (workers * clock),
        driver_share=sum(sum(one.recording) for one in work) / clock,
    )


def _recorded(folder: Path, on_threads: int, engine: str) -> tuple[float, ...]:
    """Seconds of each network that was retrained so; empty where any was retrained otherwise."""
    try:
        results = Results(folder)
    except StoreError:
        return ()
    for sitting in results.provenance:
        used = sitting.get(CHUNK_THREADS, sitting["threads"])
        if "engine" in sitting and (used, sitting["engine"]) != (on_threads, engine):
            return ()
    return tuple(float(one) for one in results.retrainings["seconds"].dropna() if one > 0)


def synthetic(
    prepared: Prepared, members: Sequence[tuple[int, str]], drawn: random.Random
) -> list[Retrained]:
    """Made-up results for a chunk, of the size that real ones have."""
    data, recipe = prepared.data, prepared.spec.retraining
    names = [metric.name for metric in data.task.metrics]

    def row(epoch: int) -> dict[str, Any]:
        measured = {split: {name: drawn.random() for name in names} for split, _ in data.named()}
        return epoch_record(epoch, 0.1, measured, data.task).as_row()

    blocks = {
        f"{split}_{name}": [drawn.random() for _ in range(int(own.max()) + 1)]
        for split, own in data.blocks.items()
        for name in names
    }
    return [
        Retrained(name, seed, False, 1.0, [row(epoch) for epoch in range(recipe.epochs)], blocks)
        for seed, name in members
    ]


def _recording(prepared: Prepared, members: int) -> float:
    """Seconds in which the driver records a chunk of so many networks, tried on made-up results."""
    ids, drawn, task = prepared.candidates.ids, random.Random(0), prepared.data.task
    numbers = range(_TRIED * members)
    named = [(number // len(ids), ids[number % len(ids)]) for number in numbers]
    made = [synthetic(prepared, named[i::_TRIED], drawn) for i in range(_TRIED)]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        store.record_task(task.label, tuple(task.metrics))
        blocks = prepared.data.blocks
        store.record_blocks({name: own.bincount().tolist() for name, own in blocks.items()})
        started = time.perf_counter()
        for one in made:
            store.record_retrained(one)
        return (time.perf_counter() - started) / _TRIED
