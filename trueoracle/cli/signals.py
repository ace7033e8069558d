"""What a signal does to a command: Ctrl-C (SIGINT), and a scheduler's or a container's SIGTERM.

Imports nothing heavy, so that a signal is answered from the first moment on.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

__all__ = ["Interrupted", "check", "exit_code", "ignore", "listen", "words"]

_AGAIN_SECONDS = 1.0
_IMPORT_AGAIN_SECONDS = 0.05
_IMPORT_SECONDS = 10.0
_IMPORT = "<frozen importlib._bootstrap>"
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_received: list[tuple[int, float]] = []
"""The signals so far, each with its time. The first one says how the command ends, whatever else
comes of it."""


class Interrupted(BaseException):
    """What a signal raises.

    It is no KeyboardInterrupt, which libraries catch and answer in words of their own.
    """


def listen() -> None:
    """From now on, SIGINT and SIGTERM raise :class:`Interrupted` (unless they are ignored)."""
    for number in _WORDS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _interrupt)
    sys.unraisablehook = _say_unraisable


def ignore() -> None:
    """The command has ended: no further signal changes how."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _WORDS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise :class:`Interrupted` where a signal has come.

    A library may have caught it and raised something else, as pandas' reader does.
    """
    if _received:
        raise Interrupted


def exit_code() -> int | None:
    """128 plus the number of the signal that ended the command; None where none did."""
    return 128 + _received[0][0] if _received else None


def words() -> str:
    """One line for whoever sent the signal."""
    verb = _WORDS[signal.Signals(_received[0][0])]
    return f"{verb}: what was committed is kept; the same command goes on"


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number in _WORDS:
        _received.append((number, time.monotonic()))
    # What is raised while a library is imported may pass through its C++ code, which aborts. So
    # the import may end first, unless it takes long or a second signal comes.
    wait = (
        hasattr(signal, "setitimer")
        and len(_received) == 1
        and time.monotonic() - _received[0][1] < _IMPORT_SECONDS
        and _imports(frame)
    )
    if hasattr(signal, "setitimer"):
        # Some code swallows whatever is raised in it, such as a destructor. So the signal is
        # repeated until the command has ended.
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _IMPORT_AGAIN_SECONDS if wait else _AGAIN_SECONDS)
    if not wait:
        raise Interrupted


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is under way."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _say_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """As Python does, except of objects that a signal left half made."""
    if not _received:
        sys.__unraisablehook__(unraisable)
