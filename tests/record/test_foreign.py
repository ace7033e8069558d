"""Folders of somebody else's: opening one changes, removes and runs nothing beside it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from tests.record.records import older_record
from trueoracle.errors import StoreError
from trueoracle.record.database import SCHEMA_VERSION
from trueoracle.record.lock import is_locked, locked
from trueoracle.record.networks import read_networks
from trueoracle.record.paths import DATABASE, LOCK, NETWORKS, SEARCHES
from trueoracle.record.results import Results
from trueoracle.record.status import read_status
from trueoracle.record.store import Store
from trueoracle.record.verify import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return older_record(tmp_path / "runs")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that a hostile folder names."""
    path = tmp_path / "mine.txt"
    path.write_text("mine\n" * 10)
    return path


def leave_a_journal(folder: Path, named: Path) -> None:
    """The journal of an interrupted change that says it is one of several, listed in ``named``."""
    database, journal = folder / DATABASE, folder / f"{DATABASE}-journal"
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        ((size,),) = db.execute("PRAGMA page_size").fetchall()
        db.execute("PRAGMA cache_size = 1")  # so that changes reach the files
        db.execute("BEGIN")
        db.execute("UPDATE outcomes SET epoch = epoch + 1000")
        for number in range(100):
            db.execute("INSERT INTO provenance (started) VALUES (?)", (f"{number}" * 1500,))
        copies = [shutil.copy(path, f"{path}.kept") for path in (database, journal)]
        db.execute("ROLLBACK")
    for copy in copies:
        Path(copy).rename(copy.removesuffix(".kept"))
    name = os.fsencode(named)
    tail = struct.pack(">I", 2**30 // size + 1) + name
    tail += struct.pack(">II", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    with journal.open("ab") as file:
        file.write(tail)


def test_a_journal_removes_no_file(folder: Path, victim: Path) -> None:
    leave_a_journal(folder, victim)
    copy = shutil.copytree(folder, folder.parent / "plain")
    with closing(sqlite3.connect(copy / DATABASE)) as db:  # what SQLite would do
        db.execute("SELECT count(*) FROM outcomes").fetchall()
    assert not victim.exists()
    victim.write_text("mine")
    for read_only in (True, False):
        with pytest.raises(StoreError, match="study.sqlite-journal names another file"):
            Store(folder, read_only=read_only)
    assert [part.what for part in verify(folder).damaged][0].startswith("study.sqlite-journal nam")
    assert call("verify", folder, "--repair").code == 4
    assert victim.read_text() == "mine"


def test_a_lock_that_is_a_link_empties_no_file(folder: Path, victim: Path) -> None:
    (folder / LOCK).unlink(missing_ok=True)
    (folder / LOCK).symlink_to(victim)
    before = victim.read_text()
    with pytest.raises(StoreError, match="its lock is a link to another file"), locked(folder):
        pass
    assert not is_locked(folder)
    assert len(Results(folder).candidates)  # which writes nothing
    assert victim.read_text() == before


@pytest.mark.parametrize("version", [2, SCHEMA_VERSION])
def test_a_view_is_not_computed(version: int, folder: Path) -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {version}")
        for name in ("scores", "checksums"):
            db.execute(f"DROP TABLE IF EXISTS {name}")
            db.execute(f"CREATE VIEW {name} AS {endless}")
    for read in (lambda: Results(folder), lambda: Store(folder), lambda: read_status(folder)):
        with pytest.raises(StoreError, match="holds the view"):
            read()
    (damaged,) = verify(folder).damaged
    assert "holds the view" in damaged.what


def test_a_virtual_table_is_not_opened(folder: Path) -> None:
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as db:
        db.execute("CREATE VIRTUAL TABLE more USING rtree(id, a, b)")
    with pytest.raises(StoreError, match="holds the virtual table 'more'"):
        Results(folder)
    assert verify(folder).damaged


DEEP = "[" * 100_000


def test_json_without_an_end_is_one_line(folder: Path, tmp_path: Path) -> None:
    search = folder / SEARCHES / "one"
    search.mkdir(parents=True, exist_ok=True)
    (search / "search.json").write_text(DEEP)
    assert read_status(folder)["study"] == "tiny"
    other = tmp_path / "runs" / "several-0123456789ab"
    other.mkdir()
    (other / NETWORKS).write_text(DEEP)
    with pytest.raises(StoreError, match="nested too deeply"):
        read_networks(other)
    for line in (["status"], ["report", other], ["verify", other], ["export", other, "--out", "x"]):
        called = call(*line, *(() if line[0] != "status" else ("--runs", tmp_path / "runs")))
        assert called.code in (0, 4), called.err
        assert called.err.count("\n") <= 1
