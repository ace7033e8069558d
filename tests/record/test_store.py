from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trueoracle.errors import BusyError, InputError, StoreError
from trueoracle.record.lock import is_locked, locked
from trueoracle.record.paths import DATABASE
from trueoracle.record.store import Retrained, Store
from trueoracle.tasks.metric import ACCURACY, CLASSIFICATION, LOSS, Metric, columns_of

CANDIDATES: Sequence[tuple[str, dict[str, Sequence[int]]]] = [
    ("aa", {"conv1": [0, 1]}),
    ("bb", {"conv1": [0, 2]}),
]


def epoch(number: int, loss: float = 0.5) -> dict[str, Any]:
    columns = columns_of(CLASSIFICATION)
    metrics = {name: loss if name.endswith("loss") else 0.5 for name in columns}
    return {"epoch": number, "learning_rate": 0.1, **metrics}


def retrained(candidate: str, seed: int = 0, epochs: int = 2) -> Retrained:
    return Retrained(candidate, seed, False, 1.5, [epoch(i) for i in range(epochs)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "study-0123"
    made.mkdir()
    return made


def fill(folder: Path) -> None:
    with Store(folder) as store:
        store.record_task("classification", CLASSIFICATION)
        store.begin("2026-01-01T00:00:00+00:00", {"name": "study"}, {"torch": "x"})
        store.record_candidates(CANDIDATES)
        store.record_criterion("l1", "a paper", "f1")
        store.record_scores("l1", [("aa", 1.0), ("bb", math.nan)])
        store.record_retrained([retrained("aa"), retrained("bb")])


def test_what_was_recorded_is_read_back(folder: Path) -> None:
    fill(folder)
    with Store(folder, read_only=True) as store:
        assert store.spec() == {"name": "study"}
        assert store.provenance()[0]["torch"] == "x"
        assert store.provenance()[0]["ended"] is None
        assert store.scored("l1") == {"aa", "bb"}
        assert store.retrained() == {(0, "aa"), (0, "bb")}
        names = ("candidates", "scores", "retrainings", "diverged", "failed")
        assert store.counts() == dict(zip(names, (2, 2, 2, 0, 0), strict=True))
        outcomes = store.frame("outcomes")
        assert outcomes["candidate"].tolist() == ["aa", "aa", "bb", "bb"]
        assert outcomes["epoch"].tolist() == [0, 1, 0, 1]
        scores = store.frame("scores")["score"].tolist()
        assert scores[0] == 1.0
        assert math.isnan(scores[1])


def test_recording_again_changes_nothing(folder: Path) -> None:
    fill(folder)
    with Store(folder) as store:
        store.record_candidates([*CANDIDATES, ("cc", {"conv1": [1, 2]})])
        store.record_scores("l1", [("aa", 99.0)])
        store.record_retrained([Retrained("aa", 0, True, 9.0, [epoch(0, loss=9.0)])])
        assert store.frame("scores")["score"].tolist()[0] == 1.0
        assert store.counts()["diverged"] == 0
        assert 9.0 not in store.frame("outcomes")["test_loss"].tolist()


def test_a_transaction_is_whole_or_absent(folder: Path) -> None:
    fill(folder)
    broken = Retrained("bb", 1, False, 1.0, [epoch(0), {"epoch": 1}])
    with Store(folder) as store:
        with pytest.raises(KeyError):
            store.record_retrained([retrained("aa", seed=1), broken])
        assert store.retrained() == {(0, "aa"), (0, "bb")}
        assert set(store.frame("outcomes")["seed"]) == {0}


def test_a_sitting_takes_notes(folder: Path) -> None:
    fill(folder)
    with Store(folder) as store:
        sitting = store.begin("now", {"name": "study"}, {"torch": "y"})
        store.note(sitting, "adopted", {"other-1": 3})
        assert store.provenance()[1]["adopted"] == {"other-1": 3}
        assert "adopted" not in store.provenance()[0]


def test_scores_of_a_criterion_whose_code_changed_are_dropped(folder: Path) -> None:
    fill(folder)
    with Store(folder) as store:
        assert store.record_criterion("l1", "a paper", "f1")
        assert store.scored("l1") == {"aa", "bb"}
        assert not store.record_criterion("l1", "a paper", "f2")
        assert store.scored("l1") == set()
        # Code that cannot be read may always have changed.
        assert store.record_criterion("typed", "", "")
        assert not store.record_criterion("typed", "", "")


MIOU = Metric("mean_iou", "mean IoU", better="higher", low=0.0, high=1.0)
ODD = (Metric("elbo", "negative ELBO", unit="nats", exponential="odds"), MIOU, Metric("mae", "MAE"))


@pytest.mark.parametrize("metrics", [CLASSIFICATION, (LOSS,), ODD])
def test_the_tables_are_those_of_the_tasks_metrics(folder: Path, metrics: Any) -> None:
    columns = columns_of(metrics)
    values = dict.fromkeys(columns, 0.25)
    epochs = [{"epoch": e, "learning_rate": 0.1, **values} for e in range(2)]
    with Store(folder) as store:
        assert store.task is None
        store.record_task("mine", metrics)
        store.record_dense("s", "", "trained", 1.0, values, epochs)
        store.record_candidates(CANDIDATES)
        store.record_retrained([Retrained("aa", 0, False, 1.0, epochs)])
        store.record_task("mine", metrics)  # again: it stays
    with Store(folder, read_only=True) as store:
        assert store.task is not None
        assert (store.task.name, store.task.metrics) == ("mine", metrics)
        expected = ["candidate", "seed", "epoch", "learning_rate", *columns]
        assert list(store.frame("outcomes").columns) == expected
        assert (store.dense() or {})[columns[-1]] == 0.25
        store.check()


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_values_lie_between_a_metrics_bounds(folder: Path, value: float) -> None:
    metrics = (LOSS, MIOU)
    own = {**dict.fromkeys(columns_of(metrics), 0.5), "test_mean_iou": value}
    bad = Retrained("aa", 0, False, 1.0, [{"epoch": 0, "learning_rate": 0.1, **own}])
    with Store(folder) as store:
        store.record_task("segmentation", metrics)
        store.record_candidates(CANDIDATES)
        with pytest.raises(ValueError, match=r"test_mean_iou is float .* from 0 to 1, or nothing"):
            store.record_retrained([bad])
        assert store.retrained() == set()


def test_a_task_that_measures_something_else_is_refused(folder: Path) -> None:
    fill(folder)
    worse = Metric("accuracy", "accuracy")
    renamed = Metric("accuracy", "share of hits", better="higher", low=0.0, high=1.0)
    with Store(folder) as store:
        store.record_task("classification", (LOSS, renamed))
        assert store.task is not None
        assert store.task.metrics == (LOSS, ACCURACY)  # as it was recorded
        for metrics in ((LOSS,), (LOSS, worse), (LOSS, ACCURACY, worse)):
            with pytest.raises(InputError):
                store.record_task("classification", metrics)
        with pytest.raises(
            InputError, match=r"records loss \(lower is better\), accuracy \(higher"
        ):
            store.record_task("classification", (LOSS, MIOU))


def test_what_is_measured_comes_after_the_task(folder: Path) -> None:
    with Store(folder) as store:
        store.record_candidates(CANDIDATES)
        with pytest.raises(ValueError, match="record_task"):
            store.record_retrained([retrained("aa")])


def test_labels_of_scores_are_recorded(folder: Path) -> None:
    fill(folder)
    with Store(folder) as store:
        assert store.labels() == {}
        assert store.record_criterion("l1", "a paper", "f1", "sum of weights")
        assert store.scored("l1") == {"aa", "bb"}  # a label is no other number
    with Store(folder, read_only=True) as store:
        assert store.labels() == {"l1": "sum of weights"}


def test_records_of_other_metrics_are_not_adopted(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours-1", tmp_path / "theirs-2"
    for made in (ours, theirs):
        made.mkdir()
    with Store(theirs) as store:
        store.record_task("classification", CLASSIFICATION)
        store.record_candidates(CANDIDATES)
        store.record_retrained([retrained("aa")])
    with Store(ours) as store, Store(theirs, read_only=True) as other:
        store.record_task("segmentation", (LOSS, MIOU))
        store.record_candidates(CANDIDATES)
        assert store.offered(other, criteria={}, seeds=[0]) == []


def test_another_record_is_adopted_for_our_candidates_only(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours-1", tmp_path / "theirs-2"
    for made in (ours, theirs):
        made.mkdir()
    with Store(theirs) as store:
        store.record_task("classification", CLASSIFICATION)
        store.record_candidates([*CANDIDATES, ("cc", {"conv1": [1, 2]})])
        for name in ("l1", "l2"):
            store.record_criterion(name, "", "f1")
            store.record_scores(name, [("aa", 1.0), ("cc", 3.0)])
        store.record_retrained([retrained(c, seed) for c in ("aa", "cc") for seed in (0, 1)])
    with Store(ours) as store:
        store.record_task("classification", CLASSIFICATION)
        store.record_candidates(CANDIDATES)
        store.record_retrained([Retrained("aa", 0, False, 7.0, [epoch(0, loss=7.0)])])
        with Store(theirs, read_only=True) as other:
            marks = {"l1": "f1", "l2": "other"}
            offered = store.offered(other, criteria=marks, seeds=[0, 1])
            assert store.adopt(offered) == 2  # the l1 score of aa, and its retraining with seed 1
        assert store.scored("l1") == {"aa"}
        assert store.scored("l2") == set()
        assert store.retrained() == {(0, "aa"), (1, "aa")}
        with Store(theirs, read_only=True) as other:
            assert store.offered(other, criteria=marks, seeds=[0, 1]) == []
        first = store.frame("outcomes").query("seed == 0")
        assert first["test_loss"].tolist() == [7.0]


def test_nothing_recorded_is_said(folder: Path) -> None:
    with pytest.raises(StoreError, match="nothing is recorded"):
        Store(folder, read_only=True)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 10, 1000, 9000])
def test_a_truncated_database_is_named_and_left_as_it_is(folder: Path, keep: int) -> None:
    fill(folder)
    (folder / "dense.safetensors").write_bytes(b"")  # as every study has once it has begun
    path = folder / DATABASE
    whole = path.read_bytes()
    assert len(whole) > 9000
    path.write_bytes(whole[:keep])
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"study\.sqlite is damaged .*it is left as it is"):
            Store(folder, read_only=read_only)
    assert path.read_bytes() == whole[:keep]


def test_a_database_with_wrong_bytes_is_named(folder: Path) -> None:
    fill(folder)
    path = folder / DATABASE
    content = bytearray(path.read_bytes())
    content[4096 : 4096 + 300] = b"\xff" * 300
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        Store(folder)


BLOCKS = {
    "validation_loss": (0.5, 0.25),
    "validation_accuracy": (1.0, 2.0),
    "test_loss": (0.1, 0.2, 0.7),
    "test_accuracy": (3.0, 4.0, 0.0),
}


def test_sums_over_blocks_are_read_back_by_network_and_column(folder: Path) -> None:
    fill(folder)
    with Store(folder) as store:
        assert store.blocks() == {}
        assert store.block_sums().empty
        store.record_blocks({"test": [4, 4, 3], "validation": [2, 2], "train": []})
        store.record_blocks({"validation": [2, 2], "test": [4, 4, 3]})
        with pytest.raises(InputError, match="other blocks of examples than the study records"):
            store.record_blocks({"test": [4, 4, 4], "validation": [2, 2]})
        dense = dict.fromkeys(columns_of(CLASSIFICATION), 0.5)
        store.record_dense("s", "", "trained", 1.0, dense, [], blocks=BLOCKS)
        twice = {name: [2 * one for one in sums] for name, sums in BLOCKS.items()}
        store.record_retrained([Retrained("bb", 1, False, 1.5, [epoch(0)], twice)])
    with Store(folder, read_only=True) as store:
        assert store.blocks() == {"validation": [2, 2], "test": [4, 4, 3]}
        found = store.block_sums()
        assert found.index.tolist() == [("bb", 1), ("", -1)]  # networks without any are left out
        for name, sums in BLOCKS.items():
            expected = [twice[name], sums]
            assert found[name].to_numpy().tolist() == [pytest.approx(own) for own in expected]
        assert "blocks" not in (store.dense() or {})
        assert "blocks" not in store.frame("retrainings")


def test_sums_of_other_blocks_are_not_taken_over(folder: Path, tmp_path: Path) -> None:
    for name, sizes in (("ours", [4, 4, 3]), ("like", [4, 4, 3]), ("other", [3, 4, 4])):
        (tmp_path / name).mkdir()
        with Store(tmp_path / name) as store:
            store.record_task("classification", CLASSIFICATION)
            store.record_blocks({"validation": [2, 2], "test": sizes})
            store.record_candidates(CANDIDATES)
            if name != "ours":
                store.record_retrained([Retrained("aa", 0, False, 1.5, [epoch(0)], BLOCKS)])
    for name, count in (("other", 0), ("like", 1)):
        copy = shutil.copytree(tmp_path / "ours", tmp_path / f"ours-{name}")
        with Store(copy) as store, Store(tmp_path / name, read_only=True) as other:
            assert store.adopt(store.offered(other, criteria={}, seeds=[0])) == 1
            assert len(store.block_sums()) == count


def test_another_format_is_refused(folder: Path) -> None:
    fill(folder)
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="has format 99, and this trueoracle reads 6"):
        Store(folder)


def test_a_full_disk_is_said_and_keeps_what_was_committed(folder: Path) -> None:
    fill(folder)
    with Store(folder) as store:
        (pages,) = store._rows("PRAGMA page_count")[0]
        store._rows(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"full; what was committed is kept, so make room"):
            store.record_retrained([retrained("aa", seed, epochs=500) for seed in range(1, 9)])
        assert store.retrained() == {(0, "aa"), (0, "bb")}
        store._rows("PRAGMA max_page_count = 100000")
        store.record_retrained([retrained("aa", seed=1)])
    with Store(folder) as store:
        assert store.retrained() == {(0, "aa"), (0, "bb"), (1, "aa")}


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.record.test_store import retrained
from trueoracle.errors import StoreError
from trueoracle.record.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store(Path(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    try:
        for seed in range(1, 100):
            store.record_retrained([retrained("aa", seed, epochs=50)])
    except StoreError as error:
        print(len(store.retrained()), error)
"""


def test_a_file_that_cannot_grow_is_said_too(folder: Path) -> None:
    # A limit of the operating system: the write itself fails, as on a full disk.
    fill(folder)
    ended = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(folder)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    count, _, message = ended.stdout.partition(" ")
    assert "what was committed is kept" in message
    with Store(folder) as store:
        assert len(store.retrained()) == int(count) > 2


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write in"), locked(tmp_path / "file" / "study"):
        pass


def test_only_one_process_holds_a_study(folder: Path) -> None:
    assert not is_locked(folder)
    hold = (
        "import sys; from pathlib import Path; from trueoracle.record.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyError, match="another process is working on study-0123"),
            locked(folder),
        ):
            pass
        assert is_locked(folder)
        other.kill()
        other.wait()
    # The lock goes with the process, however it ended.
    with locked(folder):
        pass
