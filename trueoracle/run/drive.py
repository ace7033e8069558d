"""The driver: cuts work into chunks, has an executor compute them, and decides what failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from trueoracle.engines.choose import Plan
from trueoracle.errors import InputError, WorkerError, first_line, is_out_of_memory
from trueoracle.executors.base import (
    ChunkExecutor,
    Parcel,
    Raised,
    attempted,
    broken,
    completed,
)
from trueoracle.run.chunks import Chunk, Shared, build, is_plain
from trueoracle.run.faults import is_the_machines
from trueoracle.run.prepare import Prepared
from trueoracle.training.team import find_team

__all__ = ["Queue", "Work", "check_executor", "chunk_size", "chunks", "cut", "drive"]

CHUNKS_A_WORKER = 4
"""Chunks that a worker gets at least, unless they would be too short: so all end together."""

Numbered = tuple[int, int]
"""One network to retrain: the seed, and the candidate's number."""

R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[R_co]):
    """A function that computes a chunk, in this process or in another."""

    def __call__(
        self,
        chunk: Chunk,
        shared: Shared | Parcel | None = None,
        on_epoch: Callable[[int], None] | None = None,
    ) -> R_co: ...


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


def chunks(left: Mapping[int, Sequence[int]], group: int, groups: int) -> Iterator[list[Numbered]]:
    """What is left to retrain, in chunks of so many groups of one seed each."""
    each = [
        [(seed, index) for index in indices[i : i + group]]
        for seed, indices in left.items()
        for i in range(0, len(indices), group)
    ]
    for i in range(0, len(each), groups):
        yield [member for members in each[i : i + groups] for member in members]


def cut(
    shared: Shared,
    dense: Path,
    left: Mapping[int, Sequence[int]],
    plan: Plan,
    executor: ChunkExecutor,
) -> list[Chunk]:
    """The chunks of what is left to retrain: by seed, the candidates' numbers.

    ``dense`` is the file of the dense network; a chunk takes as long as suits the ``executor``.
    """
    ids, device = shared.candidates.ids, shared.data.train.device.type
    return [
        Chunk(
            shared.spec,
            dense.absolute(),
            tuple((seed, ids[index]) for seed, index in members),
            plan.engine,
            shared.identity,
            plan.group * plan.groups,
            device if executor.is_elsewhere else None,
            executor.threads,
        )
        for members in chunks(
            left, plan.group, chunk_size(plan, executor, sum(map(len, left.values())))
        )
    ]


class Queue:
    """The chunks that are still to be computed; one that fails comes back with fewer networks.

    - ``say`` is called with a line of text where memory is too small for as many networks at once
      as planned, and ``on_smaller`` with how many are trained at once from then on;
    - ``on_failed`` is called with a chunk of one network that fails, and its error; without it,
      such an error is raised.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        say: Callable[[str], None],
        *,
        on_smaller: Callable[[int], None] | None = None,
        on_failed: Callable[[Chunk, Exception], None] | None = None,
    ) -> None:
        self._chunks, self._say = deque(chunks), say
        self._on_smaller, self._on_failed = on_smaller, on_failed
        self._most = max((len(chunk.calls[0]) for chunk in chunks), default=0)

    def next(self) -> Chunk | None:
        """The next chunk, with no more networks in a call than memory holds; None without one."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        return replace(chunk, together=min(chunk.together or len(chunk.members), self._most))

    def failed(self, chunk: Chunk, error: Exception) -> None:
        """Take back a chunk that raised.

        Several networks are tried again in halves. Where those of one call were too many for the
        memory, all later calls have no more than a half. Raises the error where it is the
        machine's, unless fewer networks need less memory.
        """
        at_once = len(chunk.calls[0])
        is_short = at_once > 1 and is_out_of_memory(error)
        if is_short:
            self._chunks.appendleft(chunk)
            if self._most > at_once // 2:
                self._most = at_once // 2
                self._say(
                    f"out of memory with {at_once:,} networks at once: {self._most:,} at once from "
                    "now on"
                )
                if self._on_smaller is not None:
                    self._on_smaller(self._most)
            return
        if is_the_machines(error) or self._on_failed is None:
            raise error
        if (half := len(chunk.members) // 2) > 0:
            self._chunks.extendleft([chunk.part(slice(half, None)), chunk.part(slice(half))])
        else:
            self._on_failed(chunk, error)


def drive(
    work: Work[R_co],
    queue: Queue,
    shared: Shared,
    executor: ChunkExecutor,
    progress: Callable[[float], None],
) -> Generator[tuple[Chunk, R_co, float]]:
    """Have an executor compute all chunks; give each with its result, in any order.

    ``progress`` is called with the epochs of networks that were trained in this process; each
    result comes with how many of its chunk's epochs that were. A chunk that raises goes back to the
    queue. Raises :class:`WorkerError` where no worker can even begin, and what ends the queue.
    """
    team, shown, can_work = find_team(), 0.0, False

    def show(epochs: float) -> None:
        nonlocal shown
        shown += epochs
        progress(epochs)

    carried = executor.carried(shared, show, is_plain=is_plain(shared.spec))

    def submit(chunk: Chunk) -> Future[R_co | Raised]:
        if team is not None:
            team.tell(chunk)
        return executor.submit(attempted, work, chunk, *carried)

    with closing(completed(submit, queue.next, executor.at_once)) as finished:
        for chunk, future in finished:
            try:
                outcome = future.result()
            except Exception as error:  # the executor's own, such as of a worker that died
                if not (can_work or is_the_machines(error)):
                    _check_worker(executor, chunk, carried, error)
                outcome = Raised(error)
            can_work = True
            if not isinstance(outcome, Raised):
                yield chunk, outcome, shown
            elif team is not None:  # its other processes wait for this one
                raise outcome.error
            else:
                progress(-shown)
                queue.failed(chunk, outcome.error)
            shown = 0.0


def _check_worker(
    executor: ChunkExecutor, chunk: Chunk, carried: tuple[Any, ...], error: Exception
) -> None:
    """Have a worker build what chunks share, where none has answered yet and a chunk was lost.

    A network is at fault only where others could be retrained. Raises :class:`WorkerError` where
    workers cannot even begin, such as where none can import what it needs.
    """
    future = executor.submit(attempted, build, replace(chunk, begun=()), *carried[:1])
    try:
        outcome = future.result()
    except BrokenExecutor as broke:
        raise broken(broke) from broke
    except Exception as again:
        raise WorkerError(f"{executor} can begin no chunk: {first_line(again)}") from error
    if isinstance(outcome, Raised):
        raise outcome.error
