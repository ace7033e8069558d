"""What an executor is: a place where chunks of work run. The driver submits, and alone records.

An executor has the interface of :class:`concurrent.futures.Executor`; any other that has it can
take its place (a process pool, Dask's ``client.get_executor()``, loky's, MPI's).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from trueoracle.errors import InputError, TrueOracleError, first_line

__all__ = [
    "AT_ONCE",
    "ChunkExecutor",
    "InThisProcess",
    "Parcel",
    "Pickled",
    "PickledFile",
    "as_executor",
    "completed",
    "opened",
    "pickled",
]

AT_ONCE = 1024
"""The most chunks that are submitted and not yet recorded: twice what 512 workers compute."""

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Pickled:
    """Something sent to another process, as pickled bytes."""

    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class PickledFile:
    """Something sent to another process in a file that both can read."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()


Parcel = Pickled | PickledFile


@lru_cache(maxsize=1)
def opened(parcel: Parcel) -> Any:
    """What a parcel holds, kept for the next chunk; only this package's own parcels are opened."""
    return pickle.loads(parcel.read())  # noqa: S301


def pickled(value: object) -> bytes:
    """A value as bytes; :class:`InputError` where it cannot be sent to another process."""
    try:
        return pickle.dumps(value)
    except Exception as error:  # a network or task of the user's may hold anything
        raise InputError(
            f"the study cannot be sent to another process: {first_line(error)} (define its classes "
            "and functions in a module)"
        ) from error


class ChunkExecutor(Executor):
    """An executor, and what the driver adapts to it.

    - ``threads``: CPU threads that compute a chunk; None for as many as this process uses;
    - ``gpus``: GPUs that a chunk has; None where that is not known;
    - ``at_once``: the most chunks that are submitted and not yet recorded;
    - ``workers``: how many chunks it computes side by side; None where that is not known;
    - ``seconds``: how long a chunk should take, at least and at most;
    - ``is_elsewhere``: whether chunks run in other processes.
    """

    threads: int | None = None
    gpus: float | None = None
    at_once: int = AT_ONCE
    workers: int | None = None
    seconds: tuple[float, float] = (10.0, 60.0)
    is_elsewhere: bool = True

    def carried(
        self, place: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[object, ...]:
        """The arguments that go with every chunk.

        ``place`` is all that is built once for the chunks. Where ``is_plain``, a chunk alone says
        how to build it. ``on_epoch`` can be called in this process only.
        """
        return () if is_plain else (Pickled(pickled(place)),)

    def __str__(self) -> str:
        return type(self).__name__

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown(wait=True, cancel_futures=True)


class InThisProcess(ChunkExecutor):
    """Runs a chunk at once, in the process that submits it."""

    at_once = 1
    is_elsewhere = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call the function; an exception other than an interruption belongs to the future."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def carried(
        self, place: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[object, ...]:
        return place, on_epoch

    def __str__(self) -> str:
        return "this process"


class _Given(ChunkExecutor):
    """An executor of another library, which the caller opens and shuts down."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.workers = getattr(executor, "_max_workers", None)  # of pools of processes

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return self._executor.submit(fn, *args, **kwargs)

    def __str__(self) -> str:
        return type(self._executor).__name__


def as_executor(given: Executor | None) -> ChunkExecutor:
    """The executor for chunks; None is this process.

    Raises :class:`InputError` for what is no executor, and for threads.
    """
    if given is None:
        return InThisProcess()
    if isinstance(given, ThreadPoolExecutor):
        raise InputError(
            "executor is a pool of threads, and trainings draw from random numbers that threads "
            "share: take processes (ProcessPoolExecutor)"
        )
    if isinstance(given, ChunkExecutor):
        return given
    if not isinstance(given, Executor):
        raise InputError(
            f"executor is of type {type(given).__name__}, expected one of concurrent.futures"
        )
    return _Given(given)


def completed(
    submit: Callable[[T], Future[R]], take: Callable[[], T | None], at_once: int
) -> Iterator[tuple[T, Future[R]]]:
    """Submit every chunk, and give each with its future once it is done, in any order.

    ``take`` returns the next chunk, or None where there is none for now: a chunk that failed may
    have to be taken again. No more than ``at_once`` chunks are submitted and not yet given, so that
    no more results wait here. Where the iterator is closed early, what is still submitted is
    cancelled. Raises :class:`TrueOracleError` where the executor itself breaks down.
    """
    under_way: dict[Future[R], T] = {}
    try:
        while True:
            while len(under_way) < at_once and (chunk := take()) is not None:
                try:
                    under_way[submit(chunk)] = chunk
                except (BrokenExecutor, RuntimeError) as error:
                    raise _broken(error) from error
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                if not future.cancelled() and isinstance(
                    error := future.exception(), BrokenExecutor
                ):
                    raise _broken(error) from error
                yield under_way.pop(future), future
    finally:
        for future in under_way:
            future.cancel()


def _broken(error: BaseException) -> TrueOracleError:
    return TrueOracleError(
        f"the executor broke down: {first_line(error)} (what came is recorded; the same command "
        "goes on)"
    )
