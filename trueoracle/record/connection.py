"""Opens the SQLite file of a record, also where the reader can write nothing beside it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from trueoracle.errors import StoreError
from trueoracle.record.chunks import foreign_journal
from trueoracle.record.lock import is_shared

__all__ = ["connect", "keep_journal"]

_PATIENCE = 120.0
"""Seconds to wait for a process that commits or, on a network file system, reads."""


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open a record's file; it is made where it is absent, unless it is only read.

    To read what a process left, SQLite writes files beside it. Where it cannot, since the folder
    is read-only or somebody else's, a copy is read: what was committed, as ever. Raises
    :class:`StoreError` where it cannot be copied, and SQLite's own errors.
    """
    uri = path.resolve().as_uri()
    if not read_only:
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_PATIENCE)
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, timeout=_PATIENCE)
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        db.close()
        # The low byte is the kind of the error; the rest says more of it.
        kind = error.sqlite_errorcode & 0xFF
        if kind not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or not path.is_file():
            raise
        return _copied(path)
    return db


class _OfACopy(sqlite3.Connection):
    """A connection to a copy, which goes when it is closed."""

    aside: TemporaryDirectory[str]

    def close(self) -> None:
        super().close()
        self.aside.cleanup()


def _copied(path: Path) -> sqlite3.Connection:
    if fault := foreign_journal(path):
        raise sqlite3.DatabaseError(fault)
    aside = TemporaryDirectory(prefix="trueoracle-")
    draft = Path(aside.name) / path.name
    try:
        shutil.copyfile(path, draft)
        for ending in ("-wal", "-journal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{ending}", f"{draft}{ending}")
    except OSError as error:  # no room for it, or no file that can be read
        aside.cleanup()
        raise StoreError(f"cannot read {path}, nor copy it to {aside.name}: {error}") from error
    db = sqlite3.connect(draft, isolation_level=None, factory=_OfACopy)
    db.aside = aside
    return db


def keep_journal(db: sqlite3.Connection, folder: Path) -> None:
    """Let a record that is written outlive a power cut, and be read meanwhile.

    With a write-ahead log, readers never wait for the writer. They find their place in it by memory
    that both share, which machines do not: on a network file system, a rollback journal is kept,
    and a reader waits while a commit is written, and a commit while somebody reads.
    """
    mode = "DELETE" if is_shared(folder) else "WAL"
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.execute("PRAGMA synchronous = FULL")
