"""Which errors of a retraining are its own, and which are the machine's."""

from __future__ import annotations

import errno

from torch import AcceleratorError

from trueoracle.errors import (
    BusyError,
    StoreError,
    WorkerError,
    causes,
    first_line,
    is_out_of_memory,
)
from trueoracle.run.progress import one_line

__all__ = ["error_in_words", "is_the_machines"]

_LONGEST = 500
_OF_THE_MACHINE = {
    errno.ENOSPC,  # the disk is full
    errno.EDQUOT,  # so is the user's share of it
    errno.EROFS,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,  # too many open files
    errno.ENFILE,
}


def is_the_machines(error: BaseException) -> bool:
    """Whether an error says that this machine cannot go on, whatever network is retrained next.

    Such are signals, a full disk, a record that cannot be written, a device that is lost, code that
    cannot be imported, a worker where the study cannot be built, and too little memory. Any other
    error belongs to the networks that were being retrained.
    """
    if not isinstance(error, Exception) or is_out_of_memory(error):
        return True
    return any(
        isinstance(one, StoreError | BusyError | WorkerError | ImportError | AcceleratorError)
        or (isinstance(one, OSError) and one.errno in _OF_THE_MACHINE)
        for one in causes(error)
    )


def error_in_words(error: BaseException) -> str:
    """An error as it is recorded: its type and the first line of its text."""
    reason, kind = first_line(error), type(error).__name__
    return one_line(reason if reason == kind else f"{kind}: {reason}")[:_LONGEST]
