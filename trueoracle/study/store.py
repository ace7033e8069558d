"""The record of one study: a single SQLite file, written by one process, read by any.

Nothing here needs torch. Every error of the database becomes a :class:`StoreError` that says which
file and what to do; what was committed stays.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from trueoracle.analysis.outcomes import METRICS
from trueoracle.errors import BusyError, StoreError

__all__ = ["DATABASE", "SCHEMA_VERSION", "Retrained", "Store", "is_locked", "locked"]

DATABASE = "study.sqlite"
LOCK = "study.lock"
SCHEMA_VERSION = 2

_METRIC_COLUMNS = ", ".join(f"{name} REAL" for name in METRICS)
_SCHEMA = f"""
CREATE TABLE provenance (
    id INTEGER PRIMARY KEY, started TEXT, ended TEXT, spec TEXT, facts TEXT
);
CREATE TABLE dense (
    sha256 TEXT, architecture TEXT, origin TEXT, seconds REAL, {_METRIC_COLUMNS},
    parameters INTEGER, macs INTEGER
);
CREATE TABLE dense_epochs (
    epoch INTEGER PRIMARY KEY, learning_rate REAL, {_METRIC_COLUMNS}
);
CREATE TABLE candidates (
    position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, pruned TEXT NOT NULL,
    parameters INTEGER, macs INTEGER
);
CREATE TABLE criteria (
    name TEXT PRIMARY KEY, source TEXT, fingerprint TEXT
);
CREATE TABLE scores (
    candidate TEXT, criterion TEXT, score REAL, PRIMARY KEY (criterion, candidate)
) WITHOUT ROWID;
CREATE TABLE retrainings (
    candidate TEXT, seed INTEGER, diverged INTEGER NOT NULL, seconds REAL,
    PRIMARY KEY (seed, candidate)
) WITHOUT ROWID;
CREATE TABLE outcomes (
    candidate TEXT, seed INTEGER, epoch INTEGER, learning_rate REAL, {_METRIC_COLUMNS},
    PRIMARY KEY (seed, candidate, epoch)
) WITHOUT ROWID;
"""
"""Losses are in nats, accuracies fractions, times seconds or ISO 8601; NULL stands for NaN."""

_COST_COLUMNS = ("parameters", "macs")
# Format 1 knew no costs: a record of it is read as one without, and completed when it is written.
_UPDATES = {
    1: tuple(
        f"ALTER TABLE {table} ADD COLUMN {name} INTEGER"
        for table in ("dense", "candidates")
        for name in _COST_COLUMNS
    )
}

_DENSE_COLUMNS = ("sha256", "architecture", "origin", "seconds", *METRICS)
_EPOCH_COLUMNS = ("epoch", "learning_rate", *METRICS)


@dataclass(frozen=True)
class Retrained:
    """One finished retraining: a candidate, a seed, and one mapping of values an epoch."""

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


class Store:
    """Reads and writes ``study.sqlite``; use as a context manager."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the record in ``folder``, making it where it is absent (unless ``read_only``).

        Raises :class:`StoreError` for a missing, damaged or newer file.
        """
        self.path = folder / DATABASE
        if read_only and not self.path.is_file():
            raise StoreError(f"nothing is recorded in {folder}")
        with self._errors():
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
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and self._had_content():
            raise sqlite3.DatabaseError("it is missing or empty, though the study had begun")
        if not read_only:
            # WAL: readers never block the writer. FULL: what was committed outlives a power cut.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        found = [row[0] for row in self._db.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError(f"integrity check: {found[0]}")
        if version == 0 and not read_only:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version == 0:
            raise StoreError(f"nothing is recorded in {self.path.parent}")
        elif version != SCHEMA_VERSION and version not in _UPDATES:
            raise StoreError(
                f"{self.path} has format {version}, and this trueoracle reads {SCHEMA_VERSION}"
            )
        elif version != SCHEMA_VERSION and not read_only:
            with self._transaction():
                for statement in _UPDATES[version]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

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
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a mistake of ours, not of the file's
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise StoreError(
                    f"cannot write {self.path}: {error}; what was committed is kept, so make room "
                    "and run the same command again"
                ) from error
            raise StoreError(f"cannot use {self.path}: {error}") from error
        except (sqlite3.DatabaseError, pd.errors.DatabaseError) as error:
            raise StoreError(
                f"{self.path} is damaged ({error}); it is left as it is: put a backup in its "
                "place, or save its rows with 'sqlite3 study.sqlite .recover', or move its folder "
                "away to start anew"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    # Provenance

    def begin(self, started: str, spec: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
        """Record the start of one sitting; returns its id for :meth:`end`."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO provenance (started, spec, facts) VALUES (?, ?, ?)",
                (started, json.dumps(spec), json.dumps(facts)),
            )
            return int(cursor.lastrowid or 0)

    def note(self, sitting: int, name: str, value: object) -> None:
        """Add one fact to a sitting."""
        with self._transaction():
            self._db.execute(
                "UPDATE provenance SET facts = json_set(facts, ?, json(?)) WHERE id = ?",
                (f"$.{name}", json.dumps(value), sitting),
            )

    def noted(self, name: str) -> Any:
        """What the latest sitting that noted this fact said; None where none did."""
        said = [sitting[name] for sitting in self.provenance() if name in sitting]
        return said[-1] if said else None

    def end(self, sitting: int, ended: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE provenance SET ended = ? WHERE id = ?", (ended, sitting))

    def spec(self) -> dict[str, Any] | None:
        """The fields of the recorded study; None before anything was recorded."""
        rows = self._rows("SELECT spec FROM provenance ORDER BY id DESC LIMIT 1")
        return json.loads(rows[0][0]) if rows else None

    def provenance(self) -> list[dict[str, Any]]:
        """All sittings, oldest first: started, ended and the facts of package and machine."""
        rows = self._rows("SELECT started, ended, facts FROM provenance ORDER BY id")
        return [{"started": s, "ended": e, **json.loads(facts)} for s, e, facts in rows]

    # Dense network

    def record_dense(
        self,
        sha256: str,
        architecture: str,
        origin: str,
        seconds: float,
        metrics: Mapping[str, float],
        epochs: Iterable[Mapping[str, Any]],
    ) -> None:
        """Record the dense network: hashes, metrics, and the epochs where it was trained."""
        marks = ", ".join("?" * len(_DENSE_COLUMNS))
        with self._transaction():
            self._db.execute("DELETE FROM dense")
            self._db.execute("DELETE FROM dense_epochs")
            self._db.execute(
                f"INSERT INTO dense ({', '.join(_DENSE_COLUMNS)}) VALUES ({marks})",
                (sha256, architecture, origin, seconds, *(metrics[name] for name in METRICS)),
            )
            self._db.executemany(
                f"INSERT INTO dense_epochs VALUES ({', '.join('?' * len(_EPOCH_COLUMNS))})",
                [tuple(epoch[name] for name in _EPOCH_COLUMNS) for epoch in epochs],
            )

    def dense(self) -> dict[str, Any] | None:
        """The dense network's hashes, origin, seconds, metrics and cost; None before it is there.

        ``parameters`` and ``macs`` are None where the record is older than they are.
        """
        rows = self._rows("SELECT * FROM dense")
        columns = (*_DENSE_COLUMNS, *_COST_COLUMNS)
        return dict.fromkeys(columns) | dict(zip(columns, rows[0], strict=False)) if rows else None

    # Candidates and scores

    def record_candidates(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Record (id, what is pruned) in order; what is there already stays."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO candidates (position, id, pruned) VALUES (?, ?, ?)",
                [(i, name, json.dumps(pruned)) for i, (name, pruned) in enumerate(rows)],
            )

    def candidate_ids(self) -> list[str]:
        """The ids of the recorded candidates, in order."""
        return [name for (name,) in self._rows("SELECT id FROM candidates ORDER BY position")]

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
        with self._transaction():
            self._db.execute("UPDATE dense SET parameters = ?, macs = ?", dense)
            self._db.executemany(
                "UPDATE candidates SET parameters = ?, macs = ? WHERE id = ?",
                [(parameters, macs, name) for name, parameters, macs in candidates],
            )

    def record_criterion(self, name: str, source: str, fingerprint: str) -> bool:
        """Record a criterion; returns False, dropping its scores, where its code may have changed.

        An empty fingerprint says that the code cannot be read, so that it may always have.
        """
        old = self._rows("SELECT fingerprint FROM criteria WHERE name = ?", (name,))
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO criteria VALUES (?, ?, ?)", (name, source, fingerprint)
            )
            if old and (old[0][0] != fingerprint or not fingerprint):
                self._db.execute("DELETE FROM scores WHERE criterion = ?", (name,))
                return False
        return True

    def record_scores(self, criterion: str, rows: Iterable[tuple[str, float]]) -> None:
        """Record (candidate id, score) of one criterion."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO scores VALUES (?, ?, ?)",
                [(candidate, criterion, value) for candidate, value in rows],
            )

    def scored(self, criterion: str) -> set[str]:
        """The ids of the candidates that a criterion has scored."""
        rows = self._rows("SELECT candidate FROM scores WHERE criterion = ?", (criterion,))
        return {row[0] for row in rows}

    # Outcomes

    def record_retrained(self, finished: Iterable[Retrained]) -> None:
        """Record finished retrainings, each with all its epochs, in one transaction."""
        marks = ", ".join("?" * (2 + len(_EPOCH_COLUMNS)))
        with self._transaction():
            for one in finished:
                self._db.execute(
                    "INSERT OR IGNORE INTO retrainings VALUES (?, ?, ?, ?)",
                    (one.candidate, one.seed, one.diverged, one.seconds),
                )
                self._db.executemany(
                    f"INSERT OR IGNORE INTO outcomes VALUES ({marks})",
                    [
                        (one.candidate, one.seed, *(epoch[name] for name in _EPOCH_COLUMNS))
                        for epoch in one.epochs
                    ],
                )

    def retrained(self) -> set[tuple[int, str]]:
        """The finished retrainings, as (seed, candidate id)."""
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

    def adopt(
        self,
        other: Path,
        *,
        criteria: Mapping[str, str],
        seeds: Sequence[int],
    ) -> int:
        """Copy what another study's record holds for this one's candidates; returns the rows.

        ``criteria`` maps the criteria whose scores to take to their fingerprints, ``seeds`` lists
        the retrainings to take. The caller answers for the numbers being the same.
        """
        ours = "candidate IN (SELECT id FROM main.candidates)"
        taken = 0
        with self._errors():
            self._db.execute("ATTACH ? AS other", (f"{other.resolve().as_uri()}?mode=ro",))
        try:
            with self._transaction():
                for name, fingerprint in criteria.items():
                    taken += self._db.execute(
                        "INSERT OR IGNORE INTO main.scores SELECT * FROM other.scores "
                        f"WHERE {ours} AND criterion IN (SELECT name FROM other.criteria "
                        "WHERE name = ? AND fingerprint = ?)",
                        (name, fingerprint),
                    ).rowcount
                for seed in seeds:
                    for table in ("outcomes", "retrainings"):
                        rows = self._db.execute(
                            f"INSERT OR IGNORE INTO main.{table} SELECT * FROM other.{table} "
                            f"WHERE {ours} AND seed = ? AND candidate NOT IN "
                            "(SELECT candidate FROM main.retrainings WHERE seed = ?)",
                            (seed, seed),
                        ).rowcount
                    taken += rows
        finally:
            self._db.execute("DETACH other")
        return taken

    def frame(self, table: str) -> pd.DataFrame:
        """One of the tables candidates, scores, outcomes, retrainings, dense_epochs, whole."""
        order = {"outcomes": "seed, position, epoch", "retrainings": "seed, position"}
        with self._errors():
            if table in order:
                query = (
                    f"SELECT {table}.* FROM {table} JOIN candidates ON candidate = id "
                    f"ORDER BY {order[table]}"
                )
            elif table == "scores":
                query = "SELECT scores.* FROM scores JOIN candidates ON candidate = id "
                query += "ORDER BY criterion, position"
            else:
                query = f"SELECT * FROM {table} ORDER BY 1"
            frame = pd.read_sql_query(query, self._db)
        if table == "candidates":  # whole numbers, also where an older record has none
            frame = frame.reindex(columns=["position", "id", "pruned", *_COST_COLUMNS])
            frame = frame.astype(dict.fromkeys(_COST_COLUMNS, "Int64"))
        # A column of nothing but NULL would else be one of objects.
        numbers = {"score", "seconds", "learning_rate", *METRICS} & set(frame.columns)
        return frame.astype(dict.fromkeys(numbers, "float64"))
