"""A flipped bit never changes a number unnoticed.

``TRUEORACLE_FLIPS=20000 python -m pytest tests/record/test_damage.py`` tries more of them.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.record.records import older_record
from trueoracle.errors import StoreError
from trueoracle.files import sha256_of
from trueoracle.record.chunks import journal_fault
from trueoracle.record.paths import DATABASE, DENSE
from trueoracle.record.results import Results
from trueoracle.record.store import Retrained, Store
from trueoracle.record.verify import repair, verify
from trueoracle.run.dense import check_dense_file
from trueoracle.tasks.metric import CLASSIFICATION, columns_of

FLIPS = int(os.environ.get("TRUEORACLE_FLIPS", "200"))
LOG = f"{DATABASE}-wal"
IN_BLOCKS = [name for name in columns_of(CLASSIFICATION) if not name.startswith("train_")]

Tables = dict[str, pd.DataFrame]


def tables(folder: Path) -> Tables:
    """All numbers of a record."""
    results = Results(folder)
    found = results.tables() | {"counts": pd.DataFrame([results.counts])}
    found["dense"] = pd.DataFrame([results.dense or {}])
    found["provenance"] = pd.DataFrame([str(results.provenance), str(results.spec)])
    return found


def read(folder: Path) -> Tables | str:
    """All numbers of a record, or the one line that says what is wrong with it."""
    try:
        return tables(folder)
    except StoreError as error:
        return str(error)


def is_same(one: Tables, other: Tables) -> bool:
    return all(one[name].equals(other[name]) for name in one)


def copied(folder: Path, name: str) -> Path:
    target = folder.parent / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older_record(tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def killed(older: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record as a killed process leaves it: with much of it in the write-ahead log."""
    folder = tmp_path_factory.mktemp("new") / older.name
    folder.mkdir()
    old = Results(older)
    assert old.dense is not None
    with Store(folder) as store:
        shutil.copy(older / DENSE, folder)
        store.record_task("classification", CLASSIFICATION)
        sitting = store.begin("2026-01-01", old.spec.model_dump(mode="json"), {"chance": 0.1})
        epochs = old.dense_epochs.to_dict("records")
        file = sha256_of(folder / DENSE)
        store.record_dense(
            old.dense["sha256"], "", "trained", 1.0, old.dense,
            [{str(k): v for k, v in one.items()} for one in epochs], file,
        )  # fmt: skip
        pruned = zip(old.candidates["candidate"], old.candidates["pruned"], strict=True)
        store.record_candidates(pruned)
        store.record_blocks({"validation": [5] * 20, "test": [5] * 20})
        store.record_costs((5500, 9), [(name, 5000, 8) for name in old.candidates["candidate"]])
        for name in ("oracle", "l1"):
            store.record_criterion(name, "a paper", "mark", f"score {name}")
            scores = list(zip(old.scores["candidate"], old.scores[name], strict=True))
            store.record_scores(name, scores[:6])
            store.record_scores(name, scores[6:])
        store._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        for part in chunks(old):
            store.record_retrained(part)
        store.end(sitting, "2026-01-02")
        copy = folder.with_name("killed")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    assert (copy / LOG).stat().st_size > 20_000
    return copy


@pytest.fixture(scope="module")
def record(killed: Path) -> Path:
    """The same, closed in order."""
    folder = killed.with_name("closed")
    shutil.copytree(killed, folder)
    with Store(folder) as store:
        store.check()
    assert not (folder / LOG).exists()
    return folder


def chunks(results: Results) -> Iterator[list[Retrained]]:
    keys = list(zip(results.retrainings["seed"], results.retrainings["candidate"], strict=True))
    for i in range(0, len(keys), 4):
        part: list[Retrained] = []
        for seed, candidate in keys[i : i + 4]:
            own = results.outcomes.query("seed == @seed and candidate == @candidate")
            rows = [{str(k): v for k, v in row.items()} for row in own.to_dict("records")]
            sums = {name: [place / 7 + len(part) for place in range(20)] for name in IN_BLOCKS}
            part.append(Retrained(candidate, int(seed), False, 0.5, rows, sums))
        yield part


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.mark.slow
def test_a_flipped_bit_of_the_database_is_found_or_does_no_harm(record: Path) -> None:
    whole, found = tables(record), 0
    draw = random.Random(0)
    size = (record / DATABASE).stat().st_size
    for _ in range(FLIPS):
        place, bit = draw.randrange(size), draw.randrange(8)
        folder = copied(record, "flipped")
        flip(folder / DATABASE, place, bit)
        seen = read(folder)
        if isinstance(seen, str):
            assert "\n" not in seen
            found += 1
        else:
            assert is_same(seen, whole), f"byte {place}, bit {bit}"
    assert 0 < found <= FLIPS


def test_a_flipped_bit_of_the_log_is_found_or_does_no_harm(killed: Path) -> None:
    whole, found = tables(copied(killed, "flipped")), 0
    draw = random.Random(1)
    size = (killed / LOG).stat().st_size
    for _ in range(FLIPS // 4):
        place, bit = draw.randrange(size), draw.randrange(8)
        folder = copied(killed, "flipped")
        flip(folder / LOG, place, bit)
        seen = read(folder)
        if isinstance(seen, str):
            assert "of study.sqlite-wal is not what was written" in seen
            found += 1
        else:
            assert is_same(seen, whole), f"byte {place}, bit {bit} of the log"
    assert found > FLIPS // 8  # every frame counts


def test_what_was_committed_before_damage_to_the_log_is_kept(killed: Path) -> None:
    whole = tables(copied(killed, "flipped"))
    folder = copied(killed, "mended")
    flip(folder / LOG, (folder / LOG).stat().st_size // 2, 3)
    (damaged,) = verify(folder).damaged
    assert damaged.name == LOG
    repair(folder)
    assert verify(folder).state == "whole"
    left = tables(folder)
    pd.testing.assert_frame_equal(left["scores"], whole["scores"])
    assert 0 < len(left["retrainings"]) < len(whole["retrainings"])
    (aside,) = folder.glob("damaged-*")
    assert sorted(path.name for path in aside.iterdir()) == [DATABASE, LOG]


def test_a_log_that_is_cut_off_is_read_as_far_as_it_was_committed(killed: Path) -> None:
    # As a process leaves it that is killed while it writes: that is no damage.
    folder = copied(killed, "cut")
    content = (folder / LOG).read_bytes()
    (folder / LOG).write_bytes(content[:-100])
    assert len(Results(folder).outcomes) > 0


def test_a_flipped_bit_of_the_dense_network_is_found(record: Path) -> None:
    dense = Results(record).dense
    assert dense is not None
    check_dense_file(record, dense)
    draw = random.Random(2)
    size = (record / DENSE).stat().st_size
    for _ in range(FLIPS // 4):
        folder = copied(record, "flipped")
        flip(folder / DENSE, draw.randrange(size), draw.randrange(8))
        with pytest.raises(StoreError, match=r"dense\.safetensors is damaged"):
            check_dense_file(folder, dense)
        assert [part.name for part in verify(folder).damaged] == [DENSE]


def changed(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute(statement)
    database.close()


def test_a_damaged_chunk_is_dropped_and_the_others_stay(record: Path) -> None:
    whole = tables(record)
    folder = copied(record, "mended")
    (candidate,) = whole["retrainings"]["candidate"][:1]
    changed(
        folder,
        "UPDATE outcomes SET test_loss = test_loss * 1.0001 "
        f"WHERE candidate = '{candidate}' AND seed = 0 AND epoch = 1",
    )
    with pytest.raises(StoreError, match=r"table outcomes: 8 rows .* the checksum of what was wri"):
        Results(folder)
    (damaged,) = verify(folder).damaged
    assert damaged.name == "outcomes (seed 0)"
    assert damaged.mend == "running retrains these candidates again"
    done = repair(folder)
    assert "outcomes (seed 0): dropped; running retrains these candidates again" in done
    assert verify(folder).state == "whole"
    left = tables(folder)
    chunk = set(whole["retrainings"]["candidate"][:4])
    lost = whole["outcomes"]["candidate"].isin(chunk) & (whole["outcomes"]["seed"] == 0)
    pd.testing.assert_frame_equal(left["outcomes"], whole["outcomes"][~lost].reset_index(drop=True))
    assert len(left["retrainings"]) == len(whole["retrainings"]) - 4
    for name in ("candidates", "scores", "dense_epochs", "provenance", "dense"):
        pd.testing.assert_frame_equal(left[name], whole[name])
    # What was damaged is kept.
    (aside,) = folder.glob("damaged-*")
    assert (aside / DATABASE).is_file()
    assert repair(folder) == []


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("UPDATE scores SET score = -1 WHERE criterion = 'l1'", "scores (criterion l1)"),
        ("UPDATE retrainings SET diverged = 1 WHERE seed = 1", "retrainings (seed 1)"),
        ("UPDATE retrainings SET chunk = 99 WHERE seed = 1", "retrainings (seed 1)"),
        ("UPDATE checksums SET sha256 = 'x' WHERE of = 'candidates'", "candidates"),
        ("UPDATE checksums SET network = 'x' WHERE of = 'scores'", "scores (criterion l1)"),
        ("DELETE FROM checksums WHERE of = 'criteria'", "criteria (name l1)"),
        ("DELETE FROM dense_epochs WHERE epoch = 1", "dense_epochs"),
        ("UPDATE dense SET test_loss = 0", "dense"),
        ("UPDATE provenance SET started = 'x'", "provenance (id 1)"),
        ("UPDATE criteria SET label = 'x' WHERE name = 'l1'", "criteria (name l1)"),
    ],
)
def test_what_is_damaged_is_said_and_set_aside(record: Path, statement: str, name: str) -> None:
    folder = copied(record, "one")
    changed(folder, statement)
    with (
        Store(folder, read_only=True) as store,
        pytest.raises(StoreError, match=f"damaged .table {name.split()[0]}: "),
    ):
        store.check()
    found = verify(folder)
    assert name in [part.name for part in found.damaged]
    assert all(part.mend for part in found.damaged)
    assert repair(folder)
    assert verify(folder).state == "whole"
    with Store(folder) as store:
        store.check()
    if name.startswith("dense_epochs"):  # the dense network's file tells them, too
        pd.testing.assert_frame_equal(Results(folder).dense_epochs, Results(record).dense_epochs)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metrics SET better = 'lower' WHERE name = 'accuracy'",
        "UPDATE metrics SET label = 'x'",
        "DELETE FROM checksums WHERE of = 'metrics'",
        "DELETE FROM metrics",
    ],
)
def test_metrics_that_are_damaged_are_recorded_again(record: Path, statement: str) -> None:
    whole = tables(record)
    folder = copied(record, "one")
    changed(folder, statement)
    with pytest.raises(StoreError, match=r"damaged .table metrics: "):
        Results(folder)
    assert "metrics" in [part.name for part in verify(folder).damaged]
    repair(folder)
    assert verify(folder).state == "whole"
    with pytest.raises(StoreError, match="does not say what its task measures: run the study"):
        Results(folder)
    with Store(folder) as store:  # as running does
        store.record_task("classification", CLASSIFICATION)
    assert is_same(tables(folder), whole)


def test_damage_to_the_pages_is_mended_from_what_can_be_read(record: Path) -> None:
    whole = tables(record)
    folder = copied(record, "pages")
    with sqlite3.connect(folder / DATABASE) as database:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'outcomes'"
        (page,) = database.execute(query).fetchone()
    database.close()
    content = bytearray((folder / DATABASE).read_bytes())
    content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    (folder / DATABASE).write_bytes(content)
    found = verify(folder)
    assert found.state == "damaged"
    assert not any("\n" in part.what for part in found.parts)
    repair(folder)
    left = tables(folder)
    pd.testing.assert_frame_equal(left["scores"], whole["scores"])
    assert left["outcomes"].empty
    assert left["retrainings"].empty


def test_nothing_is_repaired_where_nothing_can_be_told(record: Path) -> None:
    folder = copied(record, "garbage")
    (folder / DATABASE).write_bytes(b"\x00garbage" * 1000)
    assert verify(folder).state == "damaged"
    with pytest.raises(StoreError, match="cannot be repaired"):
        repair(folder)
    assert (folder / DATABASE).read_bytes() == b"\x00garbage" * 1000


def test_an_older_record_is_unchecked_until_it_is_written(older: Path) -> None:
    folder = copied(older, "older")
    found = verify(folder)
    assert found.state == "unchecked"
    assert not found.damaged
    assert {part.name for part in found.parts if part.state == "unchecked"} >= {DATABASE, DENSE}
    whole = tables(folder)
    with Store(folder) as store:
        store.check()
    upgraded = tables(folder)
    assert is_same(whole, upgraded)
    notes = [part.what for part in verify(folder).parts if part.name == "outcomes"]
    assert notes == ["28 rows in 2 commits, recorded before checksums were kept and sealed later"]


def test_a_record_without_metrics_is_checked_and_completed_when_it_is_written(
    tmp_path: Path,
) -> None:
    folder = older_record(tmp_path, 3)
    assert verify(folder).state == "whole"
    whole = tables(folder)
    assert Results(folder).metrics == CLASSIFICATION
    with Store(folder) as store:
        store.check()
        store.record_task("classification", CLASSIFICATION)
    found = verify(folder)
    assert found.state == "whole"
    assert "metrics" in [part.name for part in found.parts]
    assert is_same(whole, tables(folder))


def test_a_record_without_metrics_is_repaired_into_one_with_them(tmp_path: Path) -> None:
    folder = older_record(tmp_path, 3)
    changed(folder, "UPDATE scores SET score = -1 WHERE criterion = 'l1'")
    assert [part.name for part in verify(folder).damaged] == ["scores (criterion l1)"]
    before = tables(copied(older_record(tmp_path / "whole", 3), "same"))
    repair(folder)
    assert verify(folder).state == "whole"
    left = tables(folder)
    for name in ("candidates", "outcomes", "retrainings", "dense_epochs", "metrics", "dense"):
        pd.testing.assert_frame_equal(left[name], before[name])
    assert list(left["scores"].columns) == ["candidate", "oracle"]


def test_a_format_that_a_flipped_bit_makes_older_is_no_older_record(record: Path) -> None:
    folder = copied(record, "version")
    changed(folder, "PRAGMA user_version = 2")
    with pytest.raises(StoreError, match=r"is damaged \(table"):
        Results(folder)


def test_a_frame_that_was_being_written_over_an_older_one_is_no_damage(tmp_path: Path) -> None:
    path, log = tmp_path / "one.sqlite", tmp_path / "one.sqlite-wal"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE numbers (value)")
    for value in range(30):
        database.execute("INSERT INTO numbers VALUES (?)", (value,))
    database.execute("PRAGMA wal_checkpoint(RESTART)")
    database.execute("INSERT INTO numbers VALUES (30)")  # begins the log anew, over older frames
    content = log.read_bytes()
    copy = tmp_path / "copy.sqlite"
    copy.with_name("copy.sqlite-wal").write_bytes(content)
    assert journal_fault(copy) == ""
    frame = 24 + int.from_bytes(content[8:12], "big")
    own = [i for i in range(32, len(content), frame) if content[i + 8 : i + 16] == content[16:24]]
    assert 0 < len(own) < (len(content) - 32) // frame
    torn = bytearray(content)  # the header of the next frame is there, its page is not
    torn[own[-1] + frame + 8 : own[-1] + frame + 16] = content[16:24]
    copy.with_name("copy.sqlite-wal").write_bytes(torn)
    assert journal_fault(copy) == ""
    torn[32 + 100] ^= 1  # the first frame was committed: others follow it
    copy.with_name("copy.sqlite-wal").write_bytes(torn)
    assert journal_fault(copy) == "frame 1 of copy.sqlite-wal is not what was written"
    database.close()


def test_lost_blocks_of_examples_are_recorded_again(record: Path) -> None:
    folder, whole = copied(record, "blocks"), tables(record)
    changed(folder, "UPDATE blocks SET examples = 6 WHERE position = 3")
    assert [part.name for part in verify(folder).damaged] == ["blocks"]
    assert "running records them again" in repair(folder)[1]
    # Sums without their blocks mean nothing: they are there, and wait for them.
    assert tables(folder)["blocks"].empty
    with Store(folder) as store:
        store.record_blocks({"validation": [5] * 20, "test": [5] * 20})
    assert is_same(tables(folder), whole)


def test_sums_over_blocks_that_were_changed_are_found(record: Path) -> None:
    folder = copied(record, "sums")
    changed(folder, "UPDATE retrainings SET blocks = zeroblob(320) WHERE seed = 0")
    assert {part.name for part in verify(folder).damaged} == {
        "retrainings (seed 0)",
        "retrainings (seed 0, 1)",
    }
    with pytest.raises(StoreError, match="do not have the checksum of what was written"):
        Results(folder)
