"""The lock of a study's folder: one process writes, any may read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trueoracle.errors import BusyError, StoreError
from trueoracle.record.paths import LOCK

__all__ = ["is_locked", "locked"]


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a study's folder for writing; raises :class:`BusyError` where another process does.

    ``patience`` is how many seconds to keep trying, since a reader holds the lock for a moment.

    The operating system releases the lock when the process ends, however it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LOCK).is_symlink():  # locking may empty the file that it leads to
            raise OSError("its lock is a link to another file")
        lock = FileLock(folder / LOCK, timeout=patience)
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"another process is working on {folder.name}: wait for it, or see 'trueoracle status'"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot write in {folder}: {error}") from error
    try:
        yield
    except OSError as error:
        if (folder / LOCK).exists():
            raise
        raise StoreError(
            f"{folder} was moved or removed while it was worked on: what was committed is kept "
            "where it is now"
        ) from error
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether some process is working on the study right now."""
    try:
        with locked(folder):
            return False
    except BusyError:
        return True
    except StoreError:  # no process can be writing to a folder that cannot be written
        return False
