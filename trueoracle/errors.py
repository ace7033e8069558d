"""The errors that a user can correct, each with the exit code of the command."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BusyError",
    "InputError",
    "NotApplicableError",
    "StoreError",
    "TrainingError",
    "TrueOracleError",
    "brief",
    "first_line",
    "shown",
    "unknown",
]


class TrueOracleError(Exception):
    """Base of all expected errors; the message is one line that says what to do."""

    exit_code = 1

    def __init__(self, *given: object) -> None:
        # A name in it may be of any length.
        super().__init__(*(brief(one) if isinstance(one, str) else one for one in given))


class InputError(TrueOracleError, ValueError):
    """A study, name, file or value that cannot be used; raised before long work starts."""

    exit_code = 2


class NotApplicableError(InputError):
    """A criterion that cannot be computed for a network, its data or its pruning raises this.

    The message is the reason, in a few words: "the network has no batch norm". A study goes on
    without that criterion. ``of_images`` says that the reason lies in the images given, so that the
    criterion may be computable on others.
    """

    def __init__(self, message: str, *, of_images: bool = False) -> None:
        super().__init__(message)
        self.of_images = of_images


class BusyError(TrueOracleError):
    """Another process is working on the same study."""

    exit_code = 3


class StoreError(TrueOracleError):
    """The recorded study cannot be read or written (full disk, damaged file)."""

    exit_code = 4


class TrainingError(TrueOracleError):
    """The dense network's training diverged, so that there is nothing to prune."""

    exit_code = 5


def brief(line: str, longest: int = 2000) -> str:
    """A line without its middle where that makes it too long: the whole of a name says no more."""
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} … {line[-half:]}"


def first_line(error: BaseException, longest: int = 500) -> str:
    """The first line of an error's text, shortened, or its type where it has none."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= longest else f"{line[:longest]}…"


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2  # a harmful file may hold values without end, in a few bytes
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 1000


def shown(value: object, longest: int = 200) -> str:
    """A value from any source, shortened so that it fits into the one line of an error."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= longest else f"{text[:longest]}…"


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among ``known``; its message suggests the nearest names."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(names) if len(names) <= 12 else ", ".join(names[:12]) + ", …"
    return InputError(f"unknown {kind} {name!r}: {hint}available: {shown}")
