"""The errors that a user can correct, each with the exit code of the command."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

__all__ = [
    "RETRY",
    "BusyError",
    "FailedError",
    "InputError",
    "NotApplicableError",
    "StoreError",
    "TrainingError",
    "TrueOracleError",
    "WorkerError",
    "brief",
    "causes",
    "first_line",
    "is_out_of_memory",
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


class WorkerError(InputError):
    """A study cannot be built where its networks are to be retrained: code, data, a package lack.

    It is no fault of any network, and would be the same for all of them.
    """


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


RETRY = "the same command with --retry-failed (retry_failed=True) tries them again"


class FailedError(TrueOracleError):
    """Some networks of a study could not be retrained; all others are recorded."""

    exit_code = 6


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that it was raised from, the latest first."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


_OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
"""Words of PyTorch's errors on the CPU, on CUDA, of C++, and of CUDA's libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small."""
    return any(
        isinstance(one, MemoryError)
        or (isinstance(one, RuntimeError) and any(w in str(one) for w in _OUT_OF_MEMORY))
        for one in causes(error)
    )


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


def unknown(
    kind: str, name: str, known: Iterable[str], near: Sequence[str] | None = None
) -> InputError:
    """The error for a name that is not among ``known``; its message suggests the nearest names.

    Which are the nearest is found by their letters, unless ``near`` gives them.
    """
    names = sorted(known)
    if near is None:
        near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(names) if len(names) <= 12 else ", ".join(names[:12]) + ", …"
    return InputError(f"unknown {kind} {name!r}: {hint}available: {shown}")
