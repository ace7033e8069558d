"""Watches a network's operations as they run, and ends a run that takes too long."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from trueoracle.errors import InputError, shown

__all__ = ["LIMIT", "Watch", "limited"]

LIMIT = "TRUEORACLE_FORWARD_SECONDS"
"""The environment variable with the number of seconds after which a run on one batch is ended."""

_DEFAULT_LIMIT = 600.0


class Watch(TorchDispatchMode):
    """Within its block, every ATen operation of this thread goes through :meth:`call`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes a second

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.call(func, args, kwargs or {})

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Carry out one operation and return its result."""
        return func(*args, **kwargs)


@contextmanager
def limited() -> Iterator[None]:
    """A block that raises :class:`TimeoutError` once it has run for the allowed number of seconds.

    The clock is read before every ATen operation. In the main thread an alarm (SIGALRM) one second
    later also ends Python code that runs no operation, unless the program has a handler for that
    signal. In another thread, and on Windows, such code goes on until it is interrupted. No thread
    is started.
    """
    seconds = _seconds()
    try:
        # The alarm comes a second later, so that it never rings while the clock ends the run.
        with _Deadline(time.monotonic() + seconds), _alarm(seconds + 1):
            yield
    except _TimeUp:
        raise TimeoutError(
            f"no answer within {seconds:g} seconds ({LIMIT} sets another limit)"
        ) from None


class _TimeUp(BaseException):
    """Time is up; no :class:`Exception`, so that a network's own handlers do not catch it."""


class _Deadline(Watch):
    """Raises at the first operation after a point in time."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if time.monotonic() > self._end:
            raise _TimeUp
        return func(*args, **kwargs)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Within the block, the main thread is interrupted once the time is up."""
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and hasattr(signal, "SIGALRM")) or (
        signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL
    ):
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise _TimeUp

    signal.signal(signal.SIGALRM, ring)
    try:
        # It rings repeatedly, since Python drops what is raised in a destructor or a callback.
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # the alarm may ring here, for the last time
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _seconds() -> float:
    text = os.environ.get(LIMIT)
    if text is None:
        return _DEFAULT_LIMIT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InputError(f"{LIMIT} takes a number of seconds above 0, got {shown(text)}")
    return seconds
