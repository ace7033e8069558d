"""What a signal does to a command: Ctrl-C (SIGINT), and a scheduler's or a container's SIGTERM.

Imports nothing heavy, so that a signal is answered from the first moment on.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

__all__ = ["Interrupted", "check", "exit_code", "ignore", "listen", "words"]

_AGAIN_SECONDS = 1.0
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_received: list[int] = []
"""The signals so far. The first one says how the command ends, whatever else comes of it."""


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
    """128 and the number of the signal that ended the command: 130 or 143; None: none did."""
    return 128 + _received[0] if _received else None


def words() -> str:
    """One line for whoever sent the signal."""
    verb = _WORDS[signal.Signals(_received[0])]
    return f"{verb}: what was committed is kept; the same command goes on"


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if number in _WORDS:
        _received.append(number)
    if hasattr(signal, "setitimer"):
        # Some code swallows whatever is raised in it, such as the callbacks of Python's own
        # imports. So the signal is repeated until the command has ended.
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    raise Interrupted


def _say_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """As Python does; but not of objects that a signal left half made."""
    if not _received:
        sys.__unraisablehook__(unraisable)
