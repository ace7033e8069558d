"""The rows of a record, chunk by chunk, checked against what was written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from trueoracle.record.layout import CHECKSUMS, Columns, Seal, Table

__all__ = [
    "CHUNKED",
    "foreign_journal",
    "joined",
    "journal_fault",
    "kinds_fault",
    "read_rows",
    "read_seals",
    "schema_fault",
    "sealed",
    "unsealed",
]

CHUNKED = 3
"""The first format that keeps checksums."""

Rows = dict[int | None, list[tuple[Any, ...]]]
"""Rows by chunk, as SQLite returns them; the last value of each row is its chunk."""


def kinds_fault(db: sqlite3.Connection) -> str:
    """What a database has besides tables and indices, since a view or a trigger is code, and a
    virtual table too; empty where there is nothing.
    """
    for kind, name, root in db.execute("SELECT type, name, rootpage FROM sqlite_master"):
        if kind not in ("table", "index") or not root:
            kind = f"virtual {kind}" if kind == "table" else kind
            return f"it holds the {kind} {name!r}, which no record has"
    return ""


def schema_fault(db: sqlite3.Connection, version: int, tables: Iterable[Table]) -> str:
    """How the tables differ from those of a record of this format; empty where they do not."""
    known = [table for table in (*tables, CHECKSUMS) if table.first <= version]
    if fault := kinds_fault(db):
        return fault
    made = db.execute("SELECT type, name FROM sqlite_master").fetchall()
    for table in known:
        expected = [column.name for column in table.since(version)]
        expected += ["chunk"] if version >= CHUNKED and table is not CHECKSUMS else []
        found = [row[1] for row in db.execute(f"PRAGMA table_info({table.name})")]
        if sorted(found) != sorted(expected):
            return f"table {table.name} has the columns {', '.join(map(str, found)) or 'none'}"
    if version < CHUNKED and ("table", CHECKSUMS.name) in made:
        return f"it says that it has format {version}, which has no checksums, and holds some"
    return ""


def read_seals(db: sqlite3.Connection) -> dict[str, dict[int, Seal]]:
    """The checksums of each table by chunk; raises :class:`ValueError` for a row that has none."""
    query = f"SELECT {', '.join(CHECKSUMS.names)} FROM checksums ORDER BY chunk, of"
    columns = CHECKSUMS.read(db.execute(query).fetchall(), CHECKSUMS.columns)
    seals: dict[str, dict[int, Seal]] = {}
    for row in zip(*columns.values(), strict=True):
        seal = Seal(*row)
        seals.setdefault(seal.table, {})[seal.chunk] = seal
    return seals


def read_rows(
    db: sqlite3.Connection,
    table: Table,
    version: int,
    on_error: Callable[[sqlite3.Error], None] | None = None,
) -> Rows:
    """All rows of a table by chunk, each chunk sorted by the table's key; None stands for no chunk.

    ``on_error`` is called with the error that ended reading early; without it, that error is
    raised. A table that the format does not have has no rows.
    """
    if table.first > version:
        return {}
    columns = ", ".join(column.name for column in table.since(version))
    chunk = "chunk" if version >= CHUNKED else "NULL"
    order = f" ORDER BY {', '.join(table.key)}" if table.key else ""
    rows: Rows = {}
    try:
        for row in db.execute(f"SELECT {columns}, {chunk} FROM {table.name}{order}"):
            key = row[-1]
            rows.setdefault(key if isinstance(key, int) else None, []).append(row)
    except sqlite3.Error as error:
        if on_error is None:
            raise
        on_error(error)
    return rows


def unsealed(
    table: Table, rows: Sequence[Sequence[Any]], version: int, seal: Seal | None
) -> Columns:
    """The rows of one chunk; raises :class:`ValueError` where they are not what was written.

    In a format without checksums, rows are only checked for impossible values.
    """
    columns = table.read([row[:-1] for row in rows], table.since(version))
    if version < CHUNKED:
        return columns
    if seal is None:
        raise ValueError(f"{_many(rows)} of it have no checksum")
    if Seal.of(table, version, seal.chunk, seal.network, seal.later, columns) != seal:
        raise ValueError(f"{_many(rows)} of it do not have the checksum of what was written")
    return columns


def sealed(
    table: Table, version: int, rows: Rows, seals: Mapping[int, Seal]
) -> Iterator[tuple[int | None, Columns | ValueError]]:
    """Each chunk of a table with its rows, or with the error that says what is wrong with them.

    ``seals`` are those of this table.
    """
    chunks: Iterable[int | None] = rows
    if version >= CHUNKED:
        chunks = dict.fromkeys([*rows, *seals])
    for chunk in chunks:
        seal = None if chunk is None else seals.get(chunk)
        try:
            yield chunk, unsealed(table, rows.get(chunk, []), version, seal)
        except ValueError as fault:
            yield chunk, fault


def joined(table: Table, parts: Sequence[Columns]) -> Columns:
    """Several chunks as one."""
    made: Columns = {}
    for column in table.columns:
        values = [part[column.name] for part in parts]
        if column.kind == "number":
            made[column.name] = np.concatenate([np.zeros(0), *values])
        else:
            made[column.name] = list(chain.from_iterable(values))
    return made


def _many(rows: Sequence[object]) -> str:
    return f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"


# The write-ahead log

_HEADER, _FRAME = 32, 24
_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")
"""The end of a rollback journal that names a file, which SQLite removes when it is done with it."""
_MAGIC = (0x377F0682, 0x377F0683)


def foreign_journal(database: Path) -> str:
    """What is wrong with a rollback journal that is somebody else's; empty where nothing is."""
    journal = database.with_name(f"{database.name}-journal")
    if journal.is_file() and journal.read_bytes().endswith(_NAMES_ANOTHER):
        return f"{journal.name} names another file, which would be removed"
    return ""


def journal_fault(database: Path) -> str:
    """What is wrong with the write-ahead log that a killed process left; empty where nothing is.

    SQLite reads a log as far as its checksums hold and silently ignores the rest, since a process
    may be killed while it writes, for example between the header of a frame and its page. In a log
    that is written for the first time such a frame is cut off; in a log that was begun anew, the
    frame lies over an older page, and older frames follow it. Any other wrong frame was committed.
    No process may write to the log during the check.
    """
    if fault := foreign_journal(database):
        return fault
    path = database.with_name(f"{database.name}-wal")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ""
    if not content:
        return ""
    magic, size = (int.from_bytes(content[i : i + 4], "big") for i in (0, 8))
    order = ">u4" if magic == _MAGIC[1] else "<u4"
    head = _sums(content[:24], order, (0, 0))
    if magic not in _MAGIC or not size or _pair(content[24:32]) != head:
        return f"the header of {path.name} is not what was written"
    salts, sums = content[16:24], head
    starts = range(_HEADER, len(content) - _FRAME - size + 1, _FRAME + size)
    frames = [content[start : start + _FRAME + size] for start in starts]
    # Behind the frames of a log that was begun anew, frames of the one before remain, whose salts
    # differ.
    own = list(takewhile(lambda f: f[8:12] == salts[:4] or f[12:16] == salts[4:], frames))
    for number, frame in enumerate(own, start=1):
        sums = _sums(frame[_FRAME:], order, _sums(frame[:8], order, sums))
        if frame[8:16] != salts or _pair(frame[16:24]) != sums:
            is_torn = number == len(own) < len(frames)
            return "" if is_torn else f"frame {number} of {path.name} is not what was written"
    return ""


def _pair(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[:4], "big"), int.from_bytes(content[4:], "big")


def _sums(content: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    """SQLite's checksum of a log, continued from ``start``."""
    first, second = start
    words = np.frombuffer(content, order).tolist()
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second
