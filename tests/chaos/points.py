"""Named points of a run, where something happens to it; all by patches in its own process."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trueoracle.record import connection
from trueoracle.training import checkpoint, loop

__all__ = ["EVENTS", "Point", "counting", "keeping_often", "raised", "signalled"]

EVENTS = ("commit", "file", "step", "batch")
"""A commit of the record, a file that replaces another, a step of training, a batch of examples."""


def signalled(number: signal.Signals) -> Callable[[], None]:
    """Send a signal to this very process."""

    def act() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)  # it comes at once; the time is for a handler that must run first

    return act


def raised(make: Callable[[], BaseException]) -> Callable[[], None]:
    """Raise an error."""

    def act() -> None:
        raise make()

    return act


@dataclass(frozen=True)
class Point:
    """What happens ``before`` or after the event of this number, counted from 1.

    ``often`` says that it also happens at every later one.
    """

    event: str
    number: int
    act: Callable[[], None]
    before: bool = True
    often: bool = False

    def install(self) -> None:
        """Let it happen in this process."""
        seen = 0

        def met(before: bool) -> None:
            nonlocal seen
            seen += before
            at = seen == self.number or (self.often and seen > self.number)
            if at and before == self.before:
                self.act()

        _watch(lambda event, before: met(before) if event == self.event else None)


def counting(path: Path) -> Callable[[], None]:
    """Count the events of a process, into a file with one line per event."""

    def install() -> None:
        counts: Counter[str] = Counter()

        def met(event: str, before: bool) -> None:
            counts[event] += before
            path.write_text("".join(f"{name} {count}\n" for name, count in counts.items()))

        _watch(met)

    return install


def keeping_often() -> None:
    """Let a training be kept after every step, instead of every half minute."""
    checkpoint.EVERY_SECONDS = 0.0
    checkpoint.SHARE = 1e9


def _watch(met: Callable[[str, bool], None]) -> None:
    """Call ``met`` with the name of every event, before it and after it."""

    def around(event: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def done(*args: Any, **kwargs: Any) -> Any:
            met(event, True)
            result = do(*args, **kwargs)
            met(event, False)
            return result

        return done

    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            do = super().execute
            made: sqlite3.Cursor = (around("commit", do) if args[0] == "COMMIT" else do)(*args)
            return made

    connect = sqlite3.connect

    def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(*args, **{"factory": Connection} | kwargs)
        return made

    batches = loop.batches

    def counted(*args: Any, **kwargs: Any) -> Any:
        for batch in batches(*args, **kwargs):
            met("batch", True)
            yield batch
            met("batch", False)

    setattr(connection, "sqlite3", _Patched(connected))  # noqa: B010
    Path.replace = around("file", Path.replace)  # type: ignore[method-assign]
    torch.optim.SGD.step = around("step", torch.optim.SGD.step)  # type: ignore[method-assign]
    loop.batches = counted


class _Patched:
    """The module ``sqlite3`` with another ``connect``."""

    def __init__(self, connect: Callable[..., sqlite3.Connection]) -> None:
        self.connect = connect

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)
