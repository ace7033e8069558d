"""The SQLite file of one study's record, in which every commit leaves a checksum of what it wrote.

``store.py`` says what the rows mean. Every error of the database becomes a :class:`StoreError` that
names the file and says what to do; what was committed stays. A checksum is compared whenever its
rows are read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Self

from trueoracle.errors import InputError, StoreError
from trueoracle.record.chunks import (
    CHUNKED,
    joined,
    journal_fault,
    read_rows,
    read_seals,
    schema_fault,
    sealed,
)
from trueoracle.record.connection import connect, keep_journal
from trueoracle.record.layout import (
    BLOCKS,
    CHECKSUMS,
    COSTS,
    MEASURED,
    METRICS,
    Columns,
    Seal,
    Table,
    Task,
    tables,
    task_of,
)
from trueoracle.record.lock import is_locked
from trueoracle.record.older import NAMED, OLDER_TASK
from trueoracle.record.paths import DATABASE
from trueoracle.tasks.metric import Metric, check_metrics, columns_of

__all__ = ["SCHEMA_VERSION", "Database", "metrics_by_columns"]

SCHEMA_VERSION = 6

_BEFORE_METRICS = [name for name, table in tables(()).items() if table.first < NAMED]
# Format 1 had no costs, format 2 no checksums, format 3 no metrics and no labels of scores,
# format 4 no blocks of examples, and format 5 no failures. An older record is read without these,
# and is completed when it is written to.
_UPDATES = {
    1: tuple(
        f"ALTER TABLE {table} ADD COLUMN {name} INTEGER"
        for table in ("dense", "candidates")
        for name in COSTS
    ),
    2: (
        *(f"ALTER TABLE {table} ADD COLUMN chunk INTEGER" for table in _BEFORE_METRICS),
        "ALTER TABLE dense ADD COLUMN file_sha256 TEXT",
        CHECKSUMS.sql,
    ),
    3: ("ALTER TABLE criteria ADD COLUMN label TEXT", METRICS.sql),
    4: (
        "ALTER TABLE dense ADD COLUMN blocks BLOB",
        "ALTER TABLE retrainings ADD COLUMN blocks BLOB",
        BLOCKS.sql,
    ),
    5: (tables(())["failures"].sql,),
}

JUDGED = ("scores", "retrainings", "outcomes", "failures")
"""The tables whose rows belong to the dense network that was recorded when they were written."""


def metrics_by_columns(db: sqlite3.Connection) -> tuple[Metric, ...]:
    """The metrics of a record that does not name any, as far as its columns show them."""
    found = [row[1] for row in db.execute("PRAGMA table_info(outcomes)")]
    names = [name.removeprefix("train_") for name in found if name.startswith("train_")]
    return tuple(Metric(name, name) for name in names)


class Database:
    """Reads and writes ``study.sqlite``; use as a context manager."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the record in ``folder``, making it where it is absent (unless ``read_only``).

        Raises :class:`StoreError` for a missing, damaged or newer file.

        ``task`` is what the record says of the study's task; None until :meth:`record_task`.
        """
        self.task: Task | None = None
        self._tables = tables(())
        self.path = folder / DATABASE
        self._seals: dict[str, dict[int, Seal]] = {}
        # A commit may not take longer the more there were before: neither of these is made anew.
        self._seals_before: dict[tuple[str, int], Seal | None] = {}
        self._last_chunk: int | None = None
        if read_only and not self.path.is_file():
            raise StoreError(f"nothing is recorded in {folder}")
        with self._errors():
            # No log is read while another process writes to it. A process that opens the record to
            # write holds the lock itself.
            if (not read_only or not is_locked(folder)) and (fault := journal_fault(self.path)):
                raise sqlite3.DatabaseError(fault)
            self._db = connect(self.path, read_only=read_only)
        try:
            with self._errors():
                if read_only:  # all is read as of one moment, since the study may be running
                    self._db.execute("BEGIN")
                self._prepare(read_only)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        self._db.execute("PRAGMA trusted_schema = OFF")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        self._version = version or SCHEMA_VERSION
        if version == 0 and self._had_content():
            raise sqlite3.DatabaseError("it is missing or empty, though the study had begun")
        if not read_only:
            keep_journal(self._db, self.path.parent)
        found = [row[0] for row in self._db.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            said = " ".join(found[0].removeprefix("*** in database main ***").split())
            raise sqlite3.DatabaseError(f"integrity check: {said}")
        if version == 0 and read_only:
            raise StoreError(f"nothing is recorded in {self.path.parent}")
        if version == 0:
            with self._transaction():
                for table in (*self._tables.values(), CHECKSUMS):
                    self._db.execute(table.sql)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION and version not in _UPDATES:
            raise StoreError(
                f"{self.path} has format {version}, and this trueoracle reads {SCHEMA_VERSION}"
            )
        if self._version >= CHUNKED:
            self._check_schema((METRICS,))
            self._seals = self._read_seals()
        self._take_task(self._read_task())
        self._check_schema(self._tables.values())
        if self._version < SCHEMA_VERSION and not read_only:
            self._update()

    def _check_schema(self, known: Iterable[Table]) -> None:
        if fault := schema_fault(self._db, self._version, known):
            raise sqlite3.DatabaseError(fault)

    def _read_task(self) -> Task | None:
        if self._version < NAMED:
            return OLDER_TASK
        try:
            return task_of(self._columns("metrics"))
        except ValueError as fault:
            raise self._damaged(f"table metrics: {fault}") from fault

    def _take_task(self, task: Task | None) -> None:
        """Use the tables that belong to a task's metrics."""
        self.task = task
        known = metrics_by_columns(self._db) if task is None else task.metrics
        self._tables = tables(known)
        self._measured = columns_of(known)
        self._of_epoch = ("epoch", "learning_rate", *self._measured)

    def _update(self) -> None:
        """Bring an older record to this format.

        Rows without a checksum are given the checksum of what is read now.
        """
        before = self._version
        older = [table for table in self._tables.values() if table.first <= before]
        for table in older:
            self._columns(table.name)
        with self._transaction():
            for version in range(before, SCHEMA_VERSION):
                for statement in _UPDATES[version]:
                    self._db.execute(statement)
            self._version = SCHEMA_VERSION
            for table in older:
                if before < CHUNKED:
                    self._cut(table)
                elif table.since(before) != table.columns:
                    for chunk in list(self._seals.get(table.name, {})):
                        self._seal(table.name, chunk)
            if before < NAMED:
                self._insert("metrics", self._new_chunk(), OLDER_TASK.rows)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _cut(self, table: Table) -> None:
        """Divide the rows of a table into chunks, and seal each of them."""
        apart = table.apart or "NULL"
        for (value,) in self._db.execute(f"SELECT DISTINCT {apart} FROM {table.name}").fetchall():
            chunk = self._new_chunk()
            where = f" WHERE {apart} = ?" if table.apart else ""
            values = (chunk, value) if table.apart else (chunk,)
            self._db.execute(f"UPDATE {table.name} SET chunk = ?{where}", values)
            self._seal(table.name, chunk, later=1)

    def _had_content(self) -> bool:
        """Whether the folder holds anything that is written only after the database."""
        return any(self.path.parent.glob("*.safetensors"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # the mistake is in the code, not in the file
        except sqlite3.OperationalError as error:
            if not self.path.exists():
                raise StoreError(
                    f"{self.path} was moved or removed while it was used ({error}): what was "
                    "committed is kept where it is now"
                ) from error
            if "full" in str(error) or "disk I/O" in str(error):
                raise StoreError(
                    f"cannot write {self.path}: {error}; what was committed is kept, so make room "
                    "and run the same command again"
                ) from error
            raise StoreError(f"cannot use {self.path}: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> StoreError:
        error = StoreError(
            f"{self.path} is damaged ({why}); it is left as it is: 'trueoracle verify "
            f"{self.path.parent}' says what is damaged and whether --repair can drop that, so that "
            "running does it again; or put a backup in its place"
        )
        error.__cause__ = ValueError(why)  # all that verify repeats
        return error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            self._seals_before = {}
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                for key, seal in self._seals_before.items():
                    self._keep_seal(key, seal)
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    # Checksums

    def _read_seals(self) -> dict[str, dict[int, Seal]]:
        try:
            with self._errors():
                return read_seals(self._db)
        except ValueError as fault:
            raise self._damaged(f"table checksums: {fault}") from fault

    def _columns(self, name: str) -> Columns:
        """A whole table, by column; raises :class:`StoreError` where it is not what was written."""
        table, parts = self._tables[name], []
        with self._errors():
            rows = read_rows(self._db, table, self._version)
            for _, part in sealed(table, self._version, rows, self._seals.get(name, {})):
                if isinstance(part, ValueError):
                    raise self._damaged(f"table {name}: {part}")
                parts.append(part)
        return joined(table, parts)

    def _new_chunk(self) -> int:
        if self._last_chunk is None:
            self._last_chunk = max(
                (chunk for seals in self._seals.values() for chunk in seals), default=0
            )
        return 1 + self._last_chunk

    def _network(self) -> str | None:
        """The SHA-256 of the dense network that is recorded now."""
        row = self._db.execute("SELECT sha256 FROM dense").fetchone()
        return row[0] if row else None

    def _insert(self, name: str, chunk: int, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows with their checksum, within a transaction."""
        table = self._tables[name]
        plain = table.plain(list(rows))
        if not plain:
            return
        self._write_rows(table, chunk, plain)
        self._keep(table, chunk, 0, plain)

    def _write_rows(self, table: Table, chunk: int, rows: Iterable[Sequence[Any]]) -> None:
        marks = ", ".join("?" * (1 + len(table.names)))
        self._db.executemany(
            f"INSERT INTO {table.name} ({', '.join(table.names)}, chunk) VALUES ({marks})",
            [(*row, chunk) for row in rows],
        )

    def _seal(self, name: str, chunk: int, *, later: int | None = None) -> None:
        """Take the checksum of rows as they are, after this transaction has changed them."""
        table, before = self._tables[name], self._seals.get(name, {}).get(chunk)
        names, order = ", ".join(table.names), ", ".join(table.key or ("rowid",))
        rows = self._db.execute(
            f"SELECT {names} FROM {name} WHERE chunk = ? ORDER BY {order}", (chunk,)
        ).fetchall()
        if later is None:
            later = before.later if before else 0
        self._keep(table, chunk, later, rows)

    def _keep(self, table: Table, chunk: int, later: int, rows: Sequence[Sequence[Any]]) -> None:
        """Write the checksum of rows that the table already holds."""
        network = self._network() if table.name in JUDGED else None
        columns = table.read(rows, table.columns)
        self._write_seal(Seal.of(table, SCHEMA_VERSION, chunk, network, later, columns))

    def _write_seal(self, seal: Seal) -> None:
        marks = ", ".join("?" * len(CHECKSUMS.names))
        self._db.execute(f"INSERT OR REPLACE INTO checksums VALUES ({marks})", astuple(seal))
        self._keep_seal((seal.table, seal.chunk), seal)

    def _keep_seal(self, key: tuple[str, int], seal: Seal | None) -> None:
        """Keep in mind what the table of checksums holds; None where it holds nothing now."""
        name, chunk = key
        seals = self._seals.setdefault(name, {})
        self._seals_before.setdefault(key, seals.get(chunk))
        if seal is None:
            seals.pop(chunk, None)
            self._last_chunk = None
        else:
            seals[chunk] = seal
            self._last_chunk = None if self._last_chunk is None else max(self._last_chunk, chunk)

    def _drop(self, name: str, where: str = "1", values: Sequence[object] = ()) -> None:
        """Delete rows, which make whole chunks, and their checksums, within a transaction."""
        query = f"SELECT DISTINCT chunk FROM {name} WHERE {where}"
        for (chunk,) in self._db.execute(query, values).fetchall():
            self._db.execute(f"DELETE FROM {name} WHERE chunk = ?", (chunk,))
            self._db.execute("DELETE FROM checksums WHERE chunk = ? AND of = ?", (chunk, name))
            self._keep_seal((name, chunk), None)

    def restore(
        self,
        task: Task | None,
        metrics: tuple[Metric, ...],
        chunks: Iterable[tuple[Seal, Columns]],
        epochs: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write chunks of another record into this empty one, as a single file.

        ``task`` is that of the other record, None where it is lost; ``metrics`` name the columns.
        ``epochs`` are those of the dense network's training, where the chunks lack them.
        """
        with self._transaction():
            self._make_measured(tables(metrics))
            self._tables = tables(metrics)
            for seal, values in chunks:
                table = self._tables[seal.table]
                rows = zip(*(c.plain(values[c.name]) for c in table.columns), strict=True)
                self._write_rows(table, seal.chunk, rows)
                made = (SCHEMA_VERSION, seal.chunk, seal.network, seal.later, values)
                self._write_seal(Seal.of(table, *made))
            if task is not None and not self._seals.get("metrics"):
                self._insert("metrics", self._new_chunk(), task.rows)
            names = ("epoch", "learning_rate", *columns_of(metrics))
            left = [[one[name] for name in names] for one in epochs]
            self._insert("dense_epochs", self._new_chunk(), left)
        self._take_task(task)
        self._rows("PRAGMA journal_mode = DELETE")

    # The task

    def record_task(self, name: str, metrics: Sequence[Metric]) -> None:
        """Record what the study's task measures; must precede anything that is measured.

        A task that is recorded already stays. Raises :class:`InputError` where other metrics are
        recorded, or the same metrics with another direction.
        """
        task = Task(name, check_metrics(metrics))
        if self.task is not None:
            ours, theirs = ([(m.name, m.better) for m in t.metrics] for t in (task, self.task))
            if ours != theirs:
                said = (", ".join(f"{n} ({way} is better)" for n, way in t) for t in (theirs, ours))
                raise InputError(
                    f"the study records {next(said)}, and its task now measures {next(said)}: give "
                    "the study another name to start anew with it"
                )
            return
        with self._transaction():
            if self._measured != columns_of(task.metrics):
                if any(self._seals.get(name) for name in MEASURED):
                    measured = ", ".join(self._measured)
                    raise self._damaged(f"its columns are {measured}: another task's")
                self._make_measured(tables(task.metrics))
            self._insert("metrics", self._new_chunk(), task.rows)
        self._take_task(task)

    def _make_measured(self, known: Mapping[str, Table]) -> None:
        """Make anew the tables that have a column for each metric; these tables are empty."""
        for name in MEASURED:
            self._db.execute(f"DROP TABLE {name}")
            self._db.execute(known[name].sql)
