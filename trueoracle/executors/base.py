"""What an executor is: a place where chunks of work run. The driver submits, and alone records.

An executor has the interface of :class:`concurrent.futures.Executor`; any other that has it can
take its place (a process pool, Dask's ``client.get_executor()``, loky's, MPI's).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
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
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from trueoracle.errors import InputError, TrueOracleError, causes, first_line

__all__ = [
    "AT_ONCE",
    "ChunkExecutor",
    "InThisProcess",
    "Parcel",
    "Pickled",
    "PickledFile",
    "Raised",
    "as_executor",
    "attempted",
    "broken",
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


@dataclass(frozen=True)
class Raised:
    """What a function raised where it ran, as its result: no executor has that error of its own.

    Sent to another process, it keeps the errors that its error was raised from, and the words of
    those that cannot be sent: such an error would break a pool of processes down.
    """

    error: Exception

    def __getstate__(self) -> dict[str, Any]:
        return {"chain": [_sendable(one) for one in causes(self.error)]}

    def __setstate__(self, fields: dict[str, Any]) -> None:
        chain = fields["chain"]
        for error, cause in pairwise(chain):
            error.__cause__ = cause
        self.__dict__["error"] = chain[0]


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # of a user's own class, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    return error


def attempted(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R | Raised:
    """What a function returns, or raised."""
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        return Raised(error)


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
        self, shared: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[Any, ...]:
        """The arguments that go with every chunk.

        ``shared`` is what is built once for all chunks. Where ``is_plain``, a chunk alone says how
        to build it. ``on_epoch`` can be called in this process only.
        """
        return () if is_plain else (Pickled(pickled(shared)),)

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
        self, shared: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[Any, ...]:
        return shared, on_epoch

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
) -> Generator[tuple[T, Future[R]]]:
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
                    raise broken(error) from error
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                raised = None if future.cancelled() else future.exception()
                if isinstance(raised, BrokenExecutor):
                    raise broken(raised) from raised
                yield under_way.pop(future), future
    finally:
        for future in under_way:
            future.cancel()


def broken(error: BaseException) -> TrueOracleError:
    """What to raise where an executor itself broke down."""
    return TrueOracleError(
        f"the executor broke down: {first_line(error)} (what came is recorded; the same command "
        "goes on)"
    )
