"""The record of one study: a single SQLite file, written by one process, read by any.

Nothing here needs torch. Every error of the database becomes a :class:`StoreError` that says which
file and what to do; what was committed stays. Every commit leaves a checksum of the rows that it
wrote, which is held against them whenever they are read.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from trueoracle.errors import BusyError, InputError, StoreError
from trueoracle.record.chunks import (
    CHUNKED,
    joined,
    journal_fault,
    read_rows,
    read_seals,
    schema_fault,
    sealed,
)
from trueoracle.record.layout import (
    CHECKSUMS,
    MEASURED,
    METRICS,
    Columns,
    Seal,
    Table,
    Task,
    facts_fault,
    json_object,
    pruned_fault,
    tables,
    task_of,
)
from trueoracle.record.older import NAMED, OLDER_TASK, with_chance
from trueoracle.record.paths import DATABASE, LOCK
from trueoracle.tasks.metric import Metric, check_metrics, columns_of

__all__ = [
    "SCHEMA_VERSION",
    "Retrained",
    "Store",
    "is_locked",
    "locked",
    "metrics_by_columns",
]

SCHEMA_VERSION = 4

_COST_COLUMNS = ("parameters", "macs")
_BEFORE_METRICS = [name for name, table in tables(()).items() if table.first < NAMED]
# Format 1 had no costs, format 2 no checksums, format 3 no metrics and no labels of scores: an
# older record is read as one without, and completed when it is written.
_UPDATES = {
    1: tuple(
        f"ALTER TABLE {table} ADD COLUMN {name} INTEGER"
        for table in ("dense", "candidates")
        for name in _COST_COLUMNS
    ),
    2: (
        *(f"ALTER TABLE {table} ADD COLUMN chunk INTEGER" for table in _BEFORE_METRICS),
        "ALTER TABLE dense ADD COLUMN file_sha256 TEXT",
        CHECKSUMS.sql,
    ),
    3: ("ALTER TABLE criteria ADD COLUMN label TEXT", METRICS.sql),
}

Rows = Mapping[str, Sequence[Sequence[Any]]]
"""Rows by table, in the order of its columns."""


@dataclass(frozen=True)
class Retrained:
    """One finished retraining: a candidate, a seed, and one mapping of values per epoch."""

    candidate: str
    seed: int
    diverged: bool
    seconds: float
    epochs: Sequence[Mapping[str, Any]]


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a study's folder for writing; raises :class:`BusyError` where another process does.

    ``patience`` is how many seconds to try: a reader's look at the lock takes a moment.

    The operating system lets go of the lock with the process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """Whether some process is working on the study at this moment."""
    try:
        with locked(folder):
            return False
    except BusyError:
        return True
    except StoreError:  # a folder that cannot be written is not being written
        return False


def metrics_by_columns(db: sqlite3.Connection) -> tuple[Metric, ...]:
    """Metrics that fit the columns of a record which does not name them; no more is known."""
    found = [row[1] for row in db.execute("PRAGMA table_info(outcomes)")]
    names = [name.removeprefix("train_") for name in found if name.startswith("train_")]
    return tuple(Metric(name, name) for name in names)


class Store:
    """Reads and writes ``study.sqlite``; use as a context manager."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the record in ``folder``, making it where it is absent (unless ``read_only``).

        Raises :class:`StoreError` for a missing, damaged or newer file.

        ``task`` is what the record says of the study's task; None until :meth:`record_task`.
        """
        self.task: Task | None = None
        self._tables = tables(())
        self.path = folder / DATABASE
        self._seals: dict[tuple[str, int], Seal] = {}
        self._listed: Columns | None = None
        """The candidates as they were read; None until they are, and where they were changed."""
        if read_only and not self.path.is_file():
            raise StoreError(f"nothing is recorded in {folder}")
        with self._errors():
            # A log is not read while another process writes to it; a writer here holds the lock.
            if (not read_only or not is_locked(folder)) and (fault := journal_fault(self.path)):
                raise sqlite3.DatabaseError(fault)
            uri = self.path.resolve().as_uri() + ("?mode=ro" if read_only else "")
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
        try:
            with self._errors():
                self._prepare(read_only)
                if read_only:  # one moment of a study that may be running
                    self._db.execute("BEGIN")
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
            # WAL: readers never block the writer. FULL: what was committed outlives a power cut.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
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
        """Have the tables of a task's metrics."""
        self.task = task
        known = metrics_by_columns(self._db) if task is None else task.metrics
        self._tables = tables(known)
        self._measured = columns_of(known)
        self._of_epoch = ("epoch", "learning_rate", *self._measured)

    def _update(self) -> None:
        """Bring an older record to this format.

        What it holds without a checksum is sealed as it is read now.
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
                    for name, chunk in [key for key in self._seals if key[0] == table.name]:
                        self._seal(name, chunk)
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

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake of ours, not of the file's
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
        return StoreError(
            f"{self.path} is damaged ({why}); it is left as it is: 'trueoracle verify "
            f"{self.path.parent}' says what is whole and what --repair would drop, so that "
            "running does it again; or put a backup in its place"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            before = dict(self._seals)
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._seals = before
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    # Checksums

    def _read_seals(self) -> dict[tuple[str, int], Seal]:
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
            for _, part in sealed(table, self._version, rows, self._seals):
                if isinstance(part, ValueError):
                    raise self._damaged(f"table {name}: {part}")
                parts.append(part)
        return joined(table, parts)

    def _new_chunk(self) -> int:
        return 1 + max((chunk for _, chunk in self._seals), default=0)

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
        marks = ", ".join("?" * (1 + len(table.names)))
        self._db.executemany(
            f"INSERT INTO {name} ({', '.join(table.names)}, chunk) VALUES ({marks})",
            [(*row, chunk) for row in plain],
        )
        network = self._network() if name in ("scores", "retrainings", "outcomes") else None
        read = table.read(plain, table.columns)
        self._keep(Seal.of(table, SCHEMA_VERSION, chunk, network, 0, read))

    def _seal(self, name: str, chunk: int, *, later: int | None = None) -> None:
        """Take the checksum of rows as they stand, which were changed within this transaction."""
        table, before = self._tables[name], self._seals.get((name, chunk))
        names, order = ", ".join(table.names), ", ".join(table.key or ("rowid",))
        rows = self._db.execute(
            f"SELECT {names} FROM {name} WHERE chunk = ? ORDER BY {order}", (chunk,)
        ).fetchall()
        if later is None:
            later = before.later if before else 0
        network = self._network() if name in ("scores", "retrainings", "outcomes") else None
        read = table.read(rows, table.columns)
        self._keep(Seal.of(table, SCHEMA_VERSION, chunk, network, later, read))

    def _keep(self, seal: Seal) -> None:
        marks = ", ".join("?" * len(CHECKSUMS.names))
        self._db.execute(f"INSERT OR REPLACE INTO checksums VALUES ({marks})", astuple(seal))
        self._seals[seal.table, seal.chunk] = seal

    def _drop(self, name: str, where: str = "1", values: Sequence[object] = ()) -> None:
        """Delete rows that are whole chunks, and their checksums, within a transaction."""
        query = f"SELECT DISTINCT chunk FROM {name} WHERE {where}"
        for (chunk,) in self._db.execute(query, values).fetchall():
            self._db.execute(f"DELETE FROM {name} WHERE chunk = ?", (chunk,))
            self._db.execute("DELETE FROM checksums WHERE chunk = ? AND of = ?", (chunk, name))
            self._seals.pop((name, chunk), None)

    def restore(
        self,
        task: Task | None,
        metrics: tuple[Metric, ...],
        chunks: Iterable[tuple[Seal, Columns]],
        epochs: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write chunks of another record into an empty one, as a single file.

        The other's ``task`` is None where what it said of it is lost; ``metrics`` name the columns.
        ``epochs`` are those of the dense network's training, where the chunks lack them.
        """
        with self._transaction():
            self._make_measured(tables(metrics))
            self._tables = tables(metrics)
            for seal, values in chunks:
                table = self._tables[seal.table]
                marks = ", ".join("?" * (1 + len(table.names)))
                rows = zip(*(c.plain(values[c.name]) for c in table.columns), strict=True)
                self._db.executemany(
                    f"INSERT INTO {table.name} ({', '.join(table.names)}, chunk) VALUES ({marks})",
                    [(*row, seal.chunk) for row in rows],
                )
                made = (SCHEMA_VERSION, seal.chunk, seal.network, seal.later, values)
                self._keep(Seal.of(table, *made))
            if task is not None and all(name != "metrics" for name, _ in self._seals):
                self._insert("metrics", self._new_chunk(), task.rows)
            names = ("epoch", "learning_rate", *columns_of(metrics))
            left = [[one[name] for name in names] for one in epochs]
            self._insert("dense_epochs", self._new_chunk(), left)
        self._take_task(task)
        self._rows("PRAGMA journal_mode = DELETE")

    def check(self) -> None:
        """Read all that is recorded; raises :class:`StoreError` where some of it is damaged."""
        for name in ("provenance", "dense", "dense_epochs", "candidates", "criteria"):
            self._columns(name)
        for name in ("scores", "retrainings", "outcomes"):
            self._of_candidates(name)

    def network(self) -> str | None:
        """The SHA-256 of the dense network whose scores and outcomes are recorded.

        None where there are none, or where they are older than this is kept.
        """
        return next((seal.network for seal in self._seals.values() if seal.network), None)

    # The task

    def record_task(self, name: str, metrics: Sequence[Metric]) -> None:
        """Record what the study's task measures; comes before anything that is measured.

        Where it is recorded already, that stays. Raises :class:`InputError` where other metrics
        are, or the same ones in another direction.
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
                if any(chunk for name, chunk in self._seals if name in MEASURED):
                    measured = ", ".join(self._measured)
                    raise self._damaged(f"its columns are {measured}: another task's")
                self._make_measured(tables(task.metrics))
            self._insert("metrics", self._new_chunk(), task.rows)
        self._take_task(task)

    def _make_measured(self, known: Mapping[str, Table]) -> None:
        """Make the empty tables that have a column for each metric anew."""
        for name in MEASURED:
            self._db.execute(f"DROP TABLE {name}")
            self._db.execute(known[name].sql)

    # Provenance

    def begin(self, started: str, spec: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
        """Record the start of one sitting; returns its id for :meth:`end`."""
        with self._transaction():
            (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM provenance").fetchone()
            row = (last + 1, started, None, json.dumps(spec), json.dumps(facts))
            self._insert("provenance", self._new_chunk(), [row])
            return int(last + 1)

    def note(self, sitting: int, name: str, value: object) -> None:
        """Add one fact to a sitting."""
        self._change(
            sitting, "facts = json_set(facts, ?, json(?))", (f"$.{name}", json.dumps(value))
        )

    def noted(self, name: str) -> Any:
        """What the latest sitting that noted this fact said; None where none did."""
        said = [sitting[name] for sitting in self.provenance() if name in sitting]
        return said[-1] if said else None

    def end(self, sitting: int, ended: str) -> None:
        self._change(sitting, "ended = ?", (ended,))

    def _change(self, sitting: int, change: str, values: Sequence[object]) -> None:
        with self._transaction():
            self._db.execute(f"UPDATE provenance SET {change} WHERE id = ?", (*values, sitting))
            query = "SELECT chunk FROM provenance WHERE id = ?"
            for (chunk,) in self._db.execute(query, (sitting,)).fetchall():
                self._seal("provenance", chunk)

    def spec(self) -> dict[str, Any] | None:
        """The fields of the recorded study; None before anything was recorded."""
        specs = self._columns("provenance")["spec"]
        return json_object(specs[-1]) if specs else None

    def provenance(self) -> list[dict[str, Any]]:
        """All sittings, oldest first: started, ended and the facts of package and machine."""
        columns, sittings = self._columns("provenance"), []
        for started, ended, text in zip(
            columns["started"], columns["ended"], columns["facts"], strict=True
        ):
            facts = with_chance(json_object(text) or {})
            if fault := facts_fault(facts):
                raise self._damaged(f"table provenance: {fault}")
            sittings.append(facts | {"started": started, "ended": ended})
        return sittings

    # Dense network

    def record_dense(
        self,
        sha256: str,
        architecture: str,
        origin: str,
        seconds: float,
        metrics: Mapping[str, float],
        epochs: Iterable[Mapping[str, Any]],
        file_sha256: str | None = None,
    ) -> None:
        """Record the dense network: hashes, metrics, and the epochs where it was trained.

        ``sha256`` is that of its weights, ``file_sha256`` of the file that holds them.
        """
        self._check_task()
        with self._transaction():
            self._drop("dense")
            self._drop("dense_epochs")
            chunk = self._new_chunk()
            values: dict[str, Any] = {name: metrics[name] for name in self._measured}
            values |= {"sha256": sha256, "architecture": architecture, "origin": origin}
            values |= {"seconds": seconds, "file_sha256": file_sha256}
            names = self._tables["dense"].names
            self._insert("dense", chunk, [[values.get(name) for name in names]])
            self._insert(
                "dense_epochs", chunk, [[one[name] for name in self._of_epoch] for one in epochs]
            )

    def record_dense_file(self, file_sha256: str) -> None:
        """Record the SHA-256 of the dense network's file, which was written anew."""
        self._change_dense("file_sha256 = ?", (file_sha256,))

    def _change_dense(self, change: str, values: Sequence[object]) -> None:
        with self._transaction():
            self._db.execute(f"UPDATE dense SET {change}", values)
            for (chunk,) in self._db.execute("SELECT chunk FROM dense").fetchall():
                self._seal("dense", chunk)

    def dense(self) -> dict[str, Any] | None:
        """The dense network's hashes, origin, seconds, metrics and cost; None before it is there.

        ``parameters``, ``macs`` and ``file_sha256`` are None where the record is older than they
        are, metrics None where they are NaN.
        """
        columns = self._columns("dense")
        count = len(columns["sha256"])
        if count > 1:
            raise self._damaged(f"table dense has {count} rows, expected one")
        if not count:
            return None
        found = {name: values[0] for name, values in columns.items()}
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, float)}
        return found | {k: None if v != v else v for k, v in numbers.items()}

    # Candidates and scores

    def record_candidates(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Record (id, what is pruned) in order; what is there already stays."""
        with self._transaction():
            known = self._candidates()
            there = set(known["position"]), set(known["id"])
            new = [
                (place, name, json.dumps(pruned), None, None)
                for place, (name, pruned) in enumerate(rows)
                if place not in there[0] and name not in there[1]
            ]
            self._insert("candidates", self._new_chunk(), new)
            self._listed = None

    def _candidates(self) -> Columns:
        """The table of candidates, whose ids and positions are each there once."""
        if self._listed is not None:
            return self._listed
        columns = self._columns("candidates")
        for name in ("id", "position"):
            if len(set(columns[name])) != len(columns[name]):
                raise self._damaged(f"table candidates: a value of {name} is there twice")
        pruning = (self.spec() or {}).get("pruning")
        kind = pruning.get("kind") if isinstance(pruning, dict) else None
        if kind in ("structured", "unstructured", "n:m", "depth"):
            pruned = [json_object(text) or {} for text in columns["pruned"]]
            parameters = (self.dense() or {}).get("parameters")
            if fault := pruned_fault(kind, pruned, parameters):
                raise self._damaged(f"table candidates: {fault}")
        self._listed = columns
        return columns

    def candidate_ids(self) -> list[str]:
        """The ids of the recorded candidates, in order."""
        columns = self._candidates()
        order = sorted(zip(columns["position"], columns["id"], strict=True))
        return [name for _, name in order]

    def has_costs(self) -> bool:
        """Whether every candidate's cost is recorded, and the dense network's."""
        (left,) = self._rows(
            "SELECT (SELECT count(*) FROM candidates WHERE macs IS NULL) + "
            "(SELECT count(*) FROM dense WHERE macs IS NULL)"
        )[0]
        return bool(left == 0)

    def record_costs(
        self, dense: tuple[int, int], candidates: Iterable[tuple[str, int, int]]
    ) -> None:
        """Record parameters and MACs: of the dense network, and by candidate id."""
        self._change_dense("parameters = ?, macs = ?", dense)
        with self._transaction():
            costs = {name: (int(parameters), int(macs)) for name, parameters, macs in candidates}
            self._db.executemany(
                "UPDATE candidates SET parameters = ?, macs = ? WHERE id = ?",
                [(*cost, name) for name, cost in costs.items()],
            )
            for (chunk,) in self._db.execute("SELECT DISTINCT chunk FROM candidates").fetchall():
                self._seal("candidates", chunk)
            self._listed = None

    def record_criterion(
        self, name: str, source: str, fingerprint: str, label: str | None = None
    ) -> bool:
        """Record a criterion; returns False, dropping its scores, where its code may have changed.

        An empty fingerprint says that the code cannot be read, so that it may always have.
        ``label`` is what its score is called in figures and sentences.
        """
        rows = list(zip(*self._columns("criteria").values(), strict=True))
        old = next((row for row in rows if row[0] == name), None)
        changed = old is not None and (old[2] != fingerprint or not fingerprint)
        new = (name, source, fingerprint, label)
        with self._transaction():
            if old != new:
                self._drop("criteria", "name = ?", (name,))
                self._insert("criteria", self._new_chunk(), [new])
            if changed:
                self._drop("scores", "criterion = ?", (name,))
        return not changed

    def labels(self) -> dict[str, str]:
        """What the scores of criteria are called, by criterion, where that is recorded."""
        columns = self._columns("criteria")
        both = zip(columns["name"], columns["label"], strict=True)
        return {name: label for name, label in both if label}

    def record_scores(self, criterion: str, rows: Iterable[tuple[str, float]]) -> None:
        """Record (candidate id, score) of one criterion; what is there already stays."""
        there = self._scored(criterion)
        new = {name: value for name, value in rows if name not in there}
        with self._transaction():
            self._insert(
                "scores", self._new_chunk(), [(name, criterion, v) for name, v in new.items()]
            )

    def scored(self, criterion: str) -> set[str]:
        """The ids of the candidates that a criterion has scored."""
        columns = self._of_candidates("scores")
        both = zip(columns["candidate"], columns["criterion"], strict=True)
        return {candidate for candidate, name in both if name == criterion}

    def _scored(self, criterion: str) -> set[str]:
        rows = self._rows("SELECT candidate FROM scores WHERE criterion = ?", (criterion,))
        return {row[0] for row in rows}

    # Outcomes

    def record_retrained(self, finished: Iterable[Retrained]) -> None:
        """Record finished retrainings, each with all its epochs, in one transaction.

        What is there already stays.
        """
        self._check_task()
        there = "SELECT 1 FROM retrainings WHERE seed = ? AND candidate = ?"
        new = {(one.seed, one.candidate): one for one in finished}
        new = {key: one for key, one in new.items() if not self._rows(there, key)}
        retrainings = [(one.candidate, one.seed, one.diverged, one.seconds) for one in new.values()]
        outcomes = [
            (one.candidate, one.seed, *(epoch[name] for name in self._of_epoch))
            for one in new.values()
            for epoch in one.epochs
        ]
        with self._transaction():
            chunk = self._new_chunk()
            self._insert("retrainings", chunk, retrainings)
            self._insert("outcomes", chunk, outcomes)

    def _check_task(self) -> None:
        if self.task is None:
            raise ValueError("record_task says what is measured, and comes first")

    def retrained(self) -> set[tuple[int, str]]:
        """The finished retrainings, as (seed, candidate id)."""
        columns = self._of_candidates("retrainings")
        return set(zip(columns["seed"], columns["candidate"], strict=True))

    def _retrained(self) -> set[tuple[int, str]]:
        return {(seed, c) for seed, c in self._rows("SELECT seed, candidate FROM retrainings")}

    def counts(self) -> dict[str, int]:
        """How many candidates, scores, retrainings and diverged retrainings are recorded."""
        (row,) = self._rows(
            "SELECT (SELECT count(*) FROM candidates), (SELECT count(*) FROM scores), "
            "(SELECT count(*) FROM retrainings), "
            "(SELECT count(*) FROM retrainings WHERE diverged)"
        )
        return dict(zip(("candidates", "scores", "retrainings", "diverged"), row, strict=True))

    # Copies and tables

    def offered(
        self, other: Store, *, criteria: Mapping[str, str], seeds: Sequence[int]
    ) -> list[Rows]:
        """What another record holds for this one's candidates, and this one does not.

        ``criteria`` maps the criteria whose scores to take to their fingerprints, ``seeds`` lists
        the retrainings to take. The caller answers for the numbers being the same. Raises
        :class:`StoreError` where the other record is damaged.
        """
        ours, found = set(self.candidate_ids()), list[Rows]()
        known = other._columns("criteria")
        theirs = dict(zip(known["name"], known["fingerprint"], strict=True))
        for name, fingerprint in criteria.items():
            new = (other._scored(name) & ours) - self._scored(name)
            if new and theirs.get(name) == fingerprint:
                found.append({"scores": other._some("scores", new, "criterion", name)})
        mine, others = self._retrained(), other._retrained()
        for seed in seeds if self._measured == other._measured else ():
            new = {candidate for one, candidate in others - mine if one == seed} & ours
            tables = ("retrainings", "outcomes") if new else ()
            if rows := {table: other._some(table, new, "seed", seed) for table in tables}:
                found.append(rows)
        return found

    def _some(
        self, name: str, candidates: set[str], column: str, value: object
    ) -> list[tuple[Any, ...]]:
        """The rows of a table about some candidates and with one value of another column."""
        columns = self._of_candidates(name)
        table = list(columns)
        at, other = table.index("candidate"), table.index(column)
        rows = zip(*columns.values(), strict=True)
        return [row for row in rows if row[at] in candidates and row[other] == value]

    def adopt(self, offered: Sequence[Rows]) -> int:
        """Record what :meth:`offered` found; returns how many scores and retrainings."""
        with self._transaction():
            for tables in offered:
                chunk = self._new_chunk()
                for name, rows in tables.items():
                    self._insert(name, chunk, rows)
        return sum(len(one.get("scores", one.get("retrainings", ()))) for one in offered)

    def _of_candidates(self, name: str) -> Columns:
        """A table whose rows are about candidates, all of which are listed."""
        columns, listed = self._columns(name), set(self._candidates()["id"])
        if listed and (strange := set(columns["candidate"]) - listed):
            raise self._damaged(f"table {name}: {min(strange)!r} is no candidate of the study")
        return columns

    def frame(self, table: str) -> pd.DataFrame:
        """One of the tables candidates, scores, outcomes, retrainings, dense_epochs, whole."""
        if table == "candidates":
            columns = self._candidates()
            frame = pd.DataFrame(columns).sort_values("position", ignore_index=True)
            # Whole numbers, also where an older record has none.
            return frame.astype(dict.fromkeys(_COST_COLUMNS, "Int64"))
        if table == "dense_epochs":
            return pd.DataFrame(self._columns(table)).sort_values("epoch", ignore_index=True)
        frame = pd.DataFrame(self._of_candidates(table))
        place = {name: i for i, name in enumerate(self.candidate_ids())}
        frame["position"] = frame["candidate"].map(place)
        frame = frame.dropna(subset="position")  # a record whose candidates are to be listed anew
        order = [name for name in ("criterion", "seed", "position", "epoch") if name in frame]
        frame = frame.sort_values(order, kind="stable", ignore_index=True)
        return frame.drop(columns="position")
