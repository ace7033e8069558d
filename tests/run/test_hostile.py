"""Records that somebody else wrote: each value that cannot be is said in one line."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from tests.record.records import older_record
from trueoracle.errors import StoreError
from trueoracle.record.layout import tables
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import Results
from trueoracle.record.status import read_status
from trueoracle.record.store import Store
from trueoracle.report.summary import summarise
from trueoracle.tasks.metric import CLASSIFICATION

TABLES = tables(CLASSIFICATION)

VALUES: dict[str, object] = {
    "nothing": None,
    "text": "x",
    "negative": -1,
    "huge": 2**62,
    "infinite": float("inf"),
    "out of range": 1e308,
    "a fraction": 0.5,
    "bytes": b"\x00\xff",
    "an object": "{}",
    "filters far out": '{"conv1": [99999999999]}',
    "no filters": '{"conv1": 3}',
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 500 + "1" + "}" * 500,
    "wrong facts": '{"skipped": 3, "classes": "x"}',
    "not a number": '{"seconds": NaN}',
}
COLUMNS = [
    (table.name, c.name) for table in TABLES.values() if table.first <= 2 for c in table.since(2)
]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its rows have no checksums, so that only what they say is looked at.
    return older_record(tmp_path_factory.mktemp("runs"))


def mutated(folder: Path, target: Path, table: str, column: str, value: object) -> bool:
    """A copy with one value in another row's place; False where SQLite does not take it."""
    shutil.copytree(folder, target)
    key = TABLES[table].key or ("rowid",)
    with sqlite3.connect(target / DATABASE) as database:
        row = database.execute(f"SELECT {', '.join(key)} FROM {table}").fetchone()
        where = " AND ".join(f"{name} = ?" for name in key)
        try:
            database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value, *row))
        except sqlite3.IntegrityError:
            return False
    database.close()
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[".".join(names) for names in COLUMNS])
def test_a_value_that_cannot_be_is_said_or_does_no_harm(
    older: Path, tmp_path: Path, table: str, column: str
) -> None:
    is_summarised = False
    for name, value in VALUES.items():
        folder = tmp_path / name / older.name
        if not mutated(older, folder, table, column, value):
            continue
        for error in (said(status, folder), said(exported, folder), said(opened, folder)):
            assert "\n" not in error
            assert not error or str(folder) in error
        if not said(exported, folder) and not is_summarised:  # which takes a while
            is_summarised = True
            json.dumps(summarise(Results(folder)), allow_nan=False)


def said(command: Callable[[Path], object], folder: Path) -> str:
    """The line in which a command refuses a record; empty where it does not."""
    try:
        command(folder)
    except StoreError as error:
        return str(error) or "nothing"
    return ""


def status(folder: Path) -> None:
    json.dumps(read_status(folder), allow_nan=False)


def exported(folder: Path) -> None:
    Results(folder).tables()


def opened(folder: Path) -> None:
    """As a run does that goes on."""
    with Store(folder) as store:
        store.check()


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("outcomes", "test_loss", "x", "outcomes: test_loss is str 'x', expected a number"),
        ("outcomes", "epoch", -1, "outcomes: epoch is int '-1', expected a whole number from 0"),
        ("outcomes", "candidate", "x", "outcomes: 'x' is no candidate of the study"),
        ("scores", "candidate", "x", "scores: 'x' is no candidate of the study"),
        ("retrainings", "seed", 2**40, "retrainings: seed is int '1099511627776', expected a wh"),
        ("candidates", "pruned", '{"conv1": [7000]}', "pruned is {.conv1.: .7000.}, expected fil"),
        ("candidates", "pruned", '{"conv1": [0, 1]}', "pruned is .*, expected filters by group"),
        ("candidates", "pruned", "[0]", "candidates: pruned is str '.0.', expected a JSON object"),
        ("provenance", "spec", "[]", "provenance: spec is str '..', expected a JSON object"),
        ("provenance", "facts", '{"skipped": [1]}', "provenance: facts.skipped is '.1.', expected"),
        ("dense", "test_accuracy", 7, "dense: test_accuracy is float '7.0', expected a number fr"),
    ],
)
def test_the_file_table_and_value_are_named(
    older: Path, tmp_path: Path, table: str, column: str, value: object, message: str
) -> None:
    folder = tmp_path / "runs" / older.name
    mutated(older, folder, table, column, value)
    with pytest.raises(StoreError, match=rf"study\.sqlite is damaged \(table .*{message}"):
        Results(folder)
    for command in (["export", folder, "--out", tmp_path / "tables"], ["report", folder]):
        called = call(*command)
        assert called.code == 4
        assert called.err.count("\n") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON scores BEGIN DELETE FROM outcomes; END",
        "CREATE VIEW v AS SELECT * FROM scores",
        "ALTER TABLE scores RENAME TO other",
        "ALTER TABLE outcomes DROP COLUMN test_loss",
        "ALTER TABLE outcomes ADD COLUMN more TEXT",
    ],
)
def test_a_database_that_is_made_otherwise_is_said(
    older: Path, tmp_path: Path, statement: str
) -> None:
    folder = tmp_path / older.name
    shutil.copytree(older, folder)
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute(statement)
    database.close()
    for read_only in (True, False):
        with pytest.raises(StoreError, match="is damaged"):
            Store(folder, read_only=read_only)


def test_the_list_of_what_a_record_holds_is_that_of_its_tables(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.record_task("classification", CLASSIFICATION)
        for table in TABLES.values():
            found = [row[1] for row in store._rows(f"PRAGMA table_info({table.name})")]
            assert found == [*table.names, "chunk"]
