"""Whether a run's folder holds what was written to it, and which damaged parts can be made again.

Needs no torch.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from trueoracle.analysis.numbers import many
from trueoracle.errors import StoreError, first_line
from trueoracle.files import (
    parse_json,
    read_checked,
    read_checked_json,
    remove_drafts,
    sha256_of,
    tensors_sha256,
)
from trueoracle.record.chunks import CHUNKED, journal_fault, kinds_fault, read_rows, sealed
from trueoracle.record.connection import connect
from trueoracle.record.database import SCHEMA_VERSION, metrics_by_columns
from trueoracle.record.layout import CHECKSUMS, METRICS, Columns, Seal, Table, Task, tables, task_of
from trueoracle.record.lock import is_locked, locked
from trueoracle.record.older import NAMED, OLDER_TASK
from trueoracle.record.paths import (
    AROUND,
    CANDIDATES,
    DATABASE,
    DENSE,
    NETWORKS,
    RETRAINING,
    SEARCHES,
    UNDER_WAY,
)
from trueoracle.record.store import Store
from trueoracle.tasks.metric import Metric

__all__ = ["FAILURES", "Part", "Verified", "repair", "verify"]

FAILURES = "failures"
"""The table of retrainings that raised an error."""

State = Literal["whole", "unchecked", "damaged"]

_BACKUP = "put a backup in its place, which --repair cannot replace"
_BEFORE = "recorded before checksums were kept"
_AGAIN = {
    "metrics": "running records them again",
    "blocks": "running records them again",
    "provenance": "that sitting is forgotten",
    "dense": f"running looks at {DENSE} again, or makes the network again",
    "dense_epochs": f"they are taken from {DENSE} where that is whole",
    "candidates": "running lists them again",
    "criteria": "running records it, and its scores, again",
    "scores": "running scores these candidates again",
    "retrainings": "running retrains these candidates again",
    "outcomes": "running retrains these candidates again",
    "failures": "running retrains these candidates again",
}
"""What happens after damaged rows are dropped."""


@dataclass(frozen=True)
class Part:
    """One recorded thing, with ``what`` is wrong with it and how to ``mend`` it."""

    name: str
    state: State
    what: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Verified:
    """The parts of a run; there are none while another process works on it (``running``)."""

    folder: Path
    parts: tuple[Part, ...]
    running: bool = False

    @property
    def damaged(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.state == "damaged")

    @property
    def state(self) -> str:
        """The worst state of any part, or ``running``."""
        states = {part.state for part in self.parts}
        if self.running:
            return "running"
        return next((one for one in ("damaged", "unchecked") if one in states), "whole")

    def as_dict(self) -> dict[str, Any]:
        parts = [asdict(part) for part in self.parts]
        return {"folder": str(self.folder), "state": self.state, "parts": parts}


def verify(folder: Path) -> Verified:
    """Read all that is recorded in ``folder``; raises :class:`StoreError` where nothing is."""
    if not (folder / DATABASE).is_file() and (folder / NETWORKS).is_file():
        mend = "put a backup in its place, or run the study again, which writes it anew"
        return Verified(folder, (_json_part(folder, NETWORKS, mend),))
    if not (folder / DATABASE).is_file():
        raise StoreError(f"nothing is recorded in {folder}")
    if is_locked(folder):
        return Verified(folder, (), running=True)
    found = _survey(folder)
    parts = [*_database_parts(folder, found), *_file_parts(folder, found), *_search_parts(folder)]
    return Verified(folder, tuple(parts))


def repair(folder: Path) -> list[str]:
    """Set aside what is damaged, so that running makes it again; returns what was done, in words.

    The damaged files are kept in a folder ``damaged-…`` of the run. What is whole of a damaged
    database is written to a new one. Raises :class:`StoreError` where it is not known what is
    whole.
    """
    if not (folder / DATABASE).is_file():  # of several networks, and only their names are here
        return []
    with locked(folder, patience=1.0):
        remove_drafts(folder)
        found = _survey(folder)
        database = [p for p in _database_parts(folder, found) if p.state == "damaged"]
        files = [p.name for p in _file_parts(folder, found) if p.state == "damaged"]
        searches = {
            str(Path(part.name).parent)
            for part in _search_parts(folder)
            if part.state == "damaged" and part.name.endswith(".json")
        }
        if not database and not files and not searches:
            return []
        if database and not found.is_readable:
            raise StoreError(
                f"{folder / DATABASE} cannot be repaired: it is not known what of it is whole "
                f"({database[0].what}); put a backup in its place, or move {folder} away to start "
                "anew"
            )
        aside = folder / f"damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        aside.mkdir()
        done = [f"what is damaged is kept in {aside}"]
        if database:
            done += _rebuild(folder, found, aside)
        for name in (*files, *sorted(searches)):
            with suppress(FileNotFoundError):
                shutil.move(folder / name, aside / Path(name).name)
                done.append(f"{name} was set aside")
        return done


# The database


@dataclass
class _Survey:
    """What can be read of a database: the chunks that are whole, and what is wrong with others."""

    version: int = 0
    faults: list[Part] = field(default_factory=list)
    whole: dict[tuple[str, int], tuple[Seal, Columns]] = field(default_factory=dict)
    dense: dict[str, Any] | None = None
    task: Task | None = None
    metrics: tuple[Metric, ...] = ()
    is_readable: bool = False

    def chunks(self, table: str) -> list[Columns]:
        return [columns for (name, _), (_, columns) in self.whole.items() if name == table]


def _survey(folder: Path) -> _Survey:
    path, found = folder / DATABASE, _Survey()
    if fault := journal_fault(path):
        mend = "--repair keeps what was committed before it; running does the rest again"
        found.faults.append(Part(f"{DATABASE}-wal", "damaged", fault, mend))
    try:
        with closing(connect(path, read_only=True)) as db:
            # A byte that is no text makes one row wrong, but must not make all rows unreadable.
            db.text_factory = lambda text: text.decode(errors="replace")
            db.execute("BEGIN")  # a study that is running may commit meanwhile
            db.execute("PRAGMA trusted_schema = OFF")
            if fault := kinds_fault(db):
                raise sqlite3.DatabaseError(fault)
            (found.version,) = db.execute("PRAGMA user_version").fetchone()
            if CHUNKED <= found.version <= SCHEMA_VERSION:
                _read(db, found)
            else:
                _read_older(folder, found)
    except (sqlite3.Error, StoreError) as error:
        found.faults.append(Part(DATABASE, "damaged", str(error), _BACKUP))
    return found


def _read(db: sqlite3.Connection, found: _Survey) -> None:
    with suppress(sqlite3.DatabaseError):
        (state,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            mend = "--repair writes what is whole to a new file"
            said = " ".join(str(state).removeprefix("*** in database main ***").split())
            found.faults.append(Part(DATABASE, "damaged", said, mend))
    query = f"SELECT {', '.join(CHECKSUMS.names)} FROM checksums"
    seals: dict[str, dict[int, Seal]] = {}
    for row in db.execute(query):
        with suppress(ValueError):
            CHECKSUMS.read([row], CHECKSUMS.columns)
            seal = Seal(*row)
            seals.setdefault(seal.table, {})[seal.chunk] = seal
    found.is_readable = True
    if found.version < NAMED:
        found.task = OLDER_TASK
    else:
        _read_table(db, METRICS, found, seals.get(METRICS.name, {}))
        for columns in found.chunks("metrics"):
            with suppress(ValueError):
                found.task = task_of(columns)
    found.metrics = found.task.metrics if found.task else metrics_by_columns(db)
    for table in tables(found.metrics).values():
        if table is not METRICS:
            _read_table(db, table, found, seals.get(table.name, {}))
    for columns in found.chunks("dense"):
        found.dense = {column: values[0] for column, values in columns.items()}


def _read_table(
    db: sqlite3.Connection, table: Table, found: _Survey, seals: Mapping[int, Seal]
) -> None:
    """Find which chunks of a table are whole."""
    ended: list[sqlite3.Error] = []
    rows = read_rows(db, table, found.version, ended.append)
    for chunk, part in sealed(table, found.version, rows, seals):
        if chunk is not None and not isinstance(part, ValueError):
            found.whole[table.name, chunk] = seals[chunk], part
            continue
        about = f"{table.name} {_about(table, rows.get(chunk, []))}".rstrip()
        found.faults.append(Part(about, "damaged", str(part), _AGAIN[table.name]))
    again = _AGAIN[table.name]
    found.faults += [Part(table.name, "damaged", str(error), again) for error in ended]


def _read_older(folder: Path, found: _Survey) -> None:
    """Find whether a record without checksums can be read at all."""
    try:
        with Store(folder, read_only=True) as store:
            store.check()
            found.dense = store.dense()
    except StoreError as error:
        why = first_line(error.__cause__ or error)
        found.faults.append(Part(DATABASE, "damaged", why, _BACKUP))


def _about(table: Table, rows: Sequence[Sequence[Any]]) -> str:
    """The rows that are meant, in words, such as ``(seed 0)``."""
    if table.apart is None or not rows:
        return ""
    place = table.names.index(table.apart)
    values = sorted({str(row[place])[:40] for row in rows})
    return f"({table.apart} {', '.join(values[:4])})"


def _database_parts(folder: Path, found: _Survey) -> Iterator[Part]:
    yield from found.faults
    if 0 < found.version < CHUNKED and not found.faults:
        yield Part(DATABASE, "unchecked", _BEFORE, "running keeps checksums of it from then on")
    for name in tables(found.metrics):
        seals = [seal for (table, _), (seal, _) in found.whole.items() if table == name]
        if seals:
            rows = many(sum(seal.rows for seal in seals), "row")
            later = f", {_BEFORE} and sealed later" if any(seal.later for seal in seals) else ""
            what = f"{rows} in {many(len(seals), 'commit')}{later}"
            if name == FAILURES:
                what += ", each a retraining that failed"
            yield Part(name, "whole", what)


def _rebuild(folder: Path, found: _Survey, aside: Path) -> list[str]:
    """Write what is whole to a new database, and set the old one aside."""
    kept, dropped = _kept(found)
    path = folder / DATABASE
    logs = [path.with_name(f"{DATABASE}{ending}") for ending in ("-wal", "-journal")]
    epochs: list[dict[str, Any]] = []
    is_whole = found.dense is not None and _dense_part(folder, found.dense).state == "whole"
    if is_whole and not found.chunks("dense_epochs"):
        epochs = _epochs_in(folder / DENSE)
    draft = aside / "new"
    draft.mkdir()
    with Store(draft) as store:
        store.restore(found.task, found.metrics, kept.values(), epochs)
    for file in (path, *logs):
        if file.exists():
            shutil.copy2(file, aside)
    # These files belong to the old database, and go with it.
    for file in (*logs, path.with_name(f"{DATABASE}-shm")):
        file.unlink(missing_ok=True)
    (draft / DATABASE).replace(path)
    shutil.rmtree(draft)
    return dropped or [f"{DATABASE} was written anew; all of its rows are whole"]


def _kept(found: _Survey) -> tuple[dict[tuple[str, int], tuple[Seal, Columns]], list[str]]:
    """The chunks that stay and, in words, what does not.

    A chunk that is whole is dropped, too, where it means nothing without a damaged one: scores
    without the record of their criterion, or a retraining without its epochs.
    """
    kept = dict(found.whole)
    dropped = [part for part in found.faults if part.name.split()[0] in _AGAIN]
    said = [f"{part.name}: dropped; {part.mend}" for part in dropped]
    criteria = {name for columns in found.chunks("criteria") for name in columns["name"]}
    retrained = _retrained(found, "retrainings") & _retrained(found, "outcomes")
    for key, (seal, columns) in found.whole.items():
        if key[0] == "scores" and not set(columns["criterion"]) <= criteria:
            del kept[key]
            said.append(f"{many(seal.rows, 'score')} by {columns['criterion'][0]}: dropped")
        elif key[0] in ("retrainings", "outcomes") and not _keys(columns) <= retrained:
            del kept[key]
            said.append(f"{many(seal.rows, 'row')} of {key[0]} that belong to these: dropped")
    return kept, said


def _retrained(found: _Survey, table: str) -> set[tuple[int, str]]:
    """The seeds and candidates of which a table has whole rows."""
    return {key for columns in found.chunks(table) for key in _keys(columns)}


def _keys(columns: Columns) -> set[tuple[int, str]]:
    return set(zip(columns["seed"], columns["candidate"], strict=True))


def _epochs_in(path: Path) -> list[dict[str, Any]]:
    """The epochs of the dense network's training, which are also in the network's file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = parse_json(file.read(size))
    epochs: list[dict[str, Any]] = parse_json(header["__metadata__"]["epochs"])
    return epochs


# The files


def _file_parts(folder: Path, found: _Survey) -> Iterator[Part]:
    if found.dense is not None:
        yield _dense_part(folder, found.dense)
    under_way = {UNDER_WAY: "the dense network"} if (folder / UNDER_WAY).exists() else {}
    under_way |= {path.name: "its networks" for path in sorted(folder.glob(RETRAINING))}
    for name, networks in under_way.items():
        whole = read_checked(folder / name) is not None
        mend = "" if whole else f"running trains {networks} from the start"
        what = "" if whole else "it is not what was written"
        yield Part(name, "whole" if whole else "damaged", what, mend)
    if (folder / CANDIDATES).exists():
        yield _json_part(folder, CANDIDATES, "running writes it again")
    if (folder / AROUND).exists():
        yield _around_part(folder)


def _around_part(folder: Path) -> Part:
    mend = "--repair sets it aside, and running computes it again"
    try:
        with (folder / AROUND).open("rb") as file:
            digest, noted = tensors_sha256(file)
    except (OSError, ValueError) as error:
        return Part(AROUND, "damaged", first_line(error), mend)
    if noted is None:
        return Part(AROUND, "unchecked", _BEFORE)
    if noted != digest:
        return Part(AROUND, "damaged", "it is not what was written", mend)
    return Part(AROUND, "whole")


def _dense_part(folder: Path, dense: Mapping[str, Any]) -> Part:
    mend = (
        "put a backup in its place; or --repair sets it aside, and running makes the network again "
        "and takes it if it is the recorded one to the bit"
    )
    try:
        digest = sha256_of(folder / DENSE)
    except OSError as error:
        return Part(DENSE, "damaged", f"it cannot be read: {error.strerror}", mend)
    if dense["file_sha256"] is None:
        return Part(DENSE, "unchecked", _BEFORE, "running looks at its weights")
    if digest != dense["file_sha256"]:
        return Part(DENSE, "damaged", "it is not what was written", mend)
    return Part(DENSE, "whole")


def _json_part(folder: Path, name: str, mend: str) -> Part:
    try:
        text = (folder / name).read_text(encoding="utf-8")
        read_checked_json(text)
    except (OSError, ValueError) as error:
        return Part(name, "damaged", str(error).splitlines()[0], mend)
    if '"sha256"' not in text:
        return Part(name, "unchecked", _BEFORE)
    return Part(name, "whole")


def _search_parts(folder: Path) -> Iterator[Part]:
    """The searches' records, and the weights that they lead to."""
    for path in sorted(folder.glob(f"{SEARCHES}/*/*.json")):
        name = path.relative_to(folder).as_posix()
        mend = "--repair sets the search's folder aside, and the same search begins anew"
        part = _json_part(folder, name, mend)
        yield part
        files: dict[str, str] = {}
        if part.state != "damaged":
            known = read_checked_json(path.read_text(encoding="utf-8")).get("files", {})
            files = known if isinstance(known, dict) else {}
        for weights in sorted({*(path.parent / f for f in files), *path.parent.glob("after-*")}):
            yield _weights_part(folder, weights, files.get(weights.name))


def _weights_part(folder: Path, path: Path, expected: str | None) -> Part:
    name = path.relative_to(folder).as_posix()
    mend = "the same search trains it again from the last rung whose weights are whole"
    if expected is None:
        return Part(name, "unchecked", _BEFORE)
    try:
        whole = sha256_of(path) == expected
    except OSError as error:
        return Part(name, "damaged", f"it cannot be read: {error.strerror}", mend)
    if not whole:
        return Part(name, "damaged", "it is not what was written", mend)
    return Part(name, "whole")
