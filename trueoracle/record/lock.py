"""The lock of a study's folder: one process writes, any may read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from trueoracle.errors import BusyError, StoreError
from trueoracle.files import new_draft
from trueoracle.record.paths import LOCK

__all__ = ["check_locks", "is_locked", "is_shared", "locked"]

_LOCAL_ONLY = {
    "nfs": r"nolock|local_lock=(all|flock)",
    "nfs4": r"nolock|local_lock=(all|flock)",
    "lustre": r"localflock|noflock",
    "cifs": r"nobrl|nolock",
    "smb3": r"nobrl|nolock",
}
"""Options of network file systems whose locks other machines do not see, by type."""

_NEVER_LOCKS = re.compile(r"fuse\.(sshfs|s3fs|rclone|gcsfuse|goofys|mount-s3)")
"""File systems whose locks other machines never see."""

_SHARED = re.compile(r"nfs4?|cifs|smb3|9p|afs|ceph|lustre|beegfs\w*|gpfs|virtiofs|fuse\..+")
"""File systems that several machines can have mounted."""


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
    except StoreError:  # it is not for this process to write here, but it may be for others
        return _is_held(folder)


def _is_held(folder: Path) -> bool:
    """Whether somebody holds the lock of a folder that this process can only read."""
    try:
        import fcntl
    except ImportError:  # not on POSIX
        return False
    try:  # somebody else's folder: a link is not followed, and a pipe is not waited for
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(file)
    return False


def check_locks(folder: Path) -> None:
    """Raise :class:`StoreError` where locks in a folder, or where it is to be, keep nobody out.

    Some network file systems refuse to lock, grant every lock, or lock for one machine only: two
    processes could then write one record. The first two are tried, the third is known by the mount.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    why = _local_only(there) or _untrue_lock(there)
    if why:
        raise StoreError(
            f"{there} is on a file system without locks ({why}), so that two processes could write "
            "one record: name a folder on a local disk, or on a file system that locks, by --runs"
        )


def _untrue_lock(folder: Path) -> str:
    """What is wrong with a lock that is tried in a folder; empty where nothing is."""
    try:
        import fcntl
    except ImportError:  # not on POSIX
        return ""
    try:
        path = new_draft(folder / LOCK)
    except OSError as error:
        raise StoreError(f"cannot write in {folder}: {error.strerror or error}") from error
    try:
        with path.open("rb") as first, path.open("rb") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return "it grants one lock twice"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            path.unlink()
    return ""


def _local_only(folder: Path) -> str:
    """The type and option of a mount whose locks other machines do not see; else empty."""
    kind, options = _mount_of(folder)
    if _NEVER_LOCKS.fullmatch(kind):
        return kind
    known = _LOCAL_ONLY.get(kind)
    found = [o for o in options.split(",") if known and re.fullmatch(known, o)]
    return f"{kind}, mounted with {found[0]}" if found else ""


def is_shared(folder: Path) -> bool:
    """Whether a folder is on a file system that other machines may use at the same time."""
    return _SHARED.fullmatch(_mount_of(folder)[0]) is not None


def _mount_of(folder: Path) -> tuple[str, str]:
    """Type and options of the file system of a folder; empty where they are unknown."""
    place = folder.resolve()
    above = [mount for mount in mounts() if place.is_relative_to(mount[0])]
    if not above:
        return "", ""
    _, kind, options = max(reversed(above), key=lambda mount: len(mount[0]))  # the latest
    return kind, options


def mounts() -> list[tuple[str, str, str]]:
    """Where file systems are mounted, their types and options; nothing where that is unknown."""
    found = []
    with suppress(OSError):  # not on Linux
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            own, _, other = line.partition(" - ")
            place, options = own.split(" ")[4:6]
            kind, _, more = other.split(" ", 2)
            found.append((re.sub(r"\\(\d{3})", _octal, place), kind, f"{options},{more}"))
    return found


def _octal(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))
