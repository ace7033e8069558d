from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.cli.test_cli import call
from tests.record.records import older_record
from trueoracle.record.lock import locked
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.study import Study


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def damage(folder: Path) -> None:
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute("UPDATE outcomes SET test_loss = test_loss + 1 WHERE seed = 1")
    database.close()


def test_a_whole_run_is_said_to_be_whole(runs: Path) -> None:
    folder = older_record(runs)
    assert call("verify", "--runs", runs).code == 0
    assert f"{folder.name}: unchecked" in call("verify", "--runs", runs).out
    with Store(folder):
        pass
    called = call("verify", folder, "--json")
    assert called.code == 0
    (one,) = json.loads(called.out)
    assert (one["folder"], one["repaired"]) == (str(folder), [])
    parts = {part["name"]: part["state"] for part in one["parts"]}
    assert parts["outcomes"] == parts["scores"] == "whole"
    assert parts["dense.safetensors"] == "unchecked"


def test_damage_is_named_and_exits_with_4(runs: Path) -> None:
    folder = older_record(runs)
    with Store(folder):
        pass
    damage(folder)
    called = call("verify", "tiny", "--runs", runs)
    assert called.code == 4
    assert called.out.startswith(f"{folder.name}: damaged")
    assert (
        "  damaged  outcomes (seed 1): 8 rows of it do not have the checksum of what was written; "
        "running retrains these candidates again\n"
    ) in called.out
    assert called.err == f"error: damaged: {folder}\n"
    (one,) = json.loads(call("verify", "--runs", runs, "--json").out)
    assert one["state"] == "damaged"
    for command in (["export", folder, "--out", runs / "x"], ["report", folder]):
        other = call(*command)
        assert other.code == 4
        assert "trueoracle verify" in other.err


@pytest.mark.slow
def test_repair_sets_aside_what_running_then_does_again(
    runs: Path, tiny_fields: dict[str, Any]
) -> None:
    folder = older_record(runs)
    study = Study(**tiny_fields, runs=runs)
    assert study.folder == folder
    whole = study.run(progress=False)
    assert whole.finished
    damage(folder)
    called = call("verify", folder, "--repair")
    assert called.code == 0
    assert "outcomes (seed 1): dropped; running retrains these candidates again" in called.err
    assert "what is damaged is kept in " in called.err
    left = Results(folder)
    assert set(left.outcomes["seed"]) == {0}
    again = study.run(progress=False)
    assert again.finished
    pd.testing.assert_frame_equal(again.outcomes, whole.outcomes, rtol=1e-4)
    pd.testing.assert_frame_equal(again.scores, whole.scores)
    assert call("verify", folder).code == 0


@pytest.mark.slow
def test_damaged_files_are_set_aside(runs: Path, tiny_fields: dict[str, Any]) -> None:
    study = Study(**tiny_fields | {"retraining": {"epochs": 1, "seeds": [0]}}, runs=runs)
    study.run(progress=False)
    folder = study.folder
    for name in ("dense.safetensors", "candidates.json"):
        content = bytearray((folder / name).read_bytes())
        content[-20] ^= 1
        (folder / name).write_bytes(content)
    (folder / "dense.partial.pt").write_bytes(b"half")
    called = call("verify", folder, "--repair")
    assert called.code == 4  # the dense network is missing now
    for name in ("dense.safetensors", "candidates.json", "dense.partial.pt"):
        assert f"damaged  {name}: " in called.out
        assert f"{name} was set aside" in called.err
        assert not (folder / name).exists()
    assert study.run(progress=False).finished
    assert call("verify", folder).code == 0


def test_what_cannot_be_repaired_stops_no_other_repair(runs: Path) -> None:
    folder = older_record(runs)
    with Store(folder):
        pass
    damage(folder)
    # These come first, since they were changed last.
    garbage, empty = runs / "garbage-1", runs / "empty-2"
    for bad, content in ((empty, b""), (garbage, b"garbage" * 1000)):
        bad.mkdir()
        (bad / DATABASE).write_bytes(content)
        (bad / "dense.safetensors").write_bytes(b"weights")
    said = call("verify", "--runs", runs)
    assert said.code == 4
    assert "put a backup in its place, which --repair cannot replace" in said.out
    assert "trueoracle verify" not in said.out
    called = call("verify", "--runs", runs, "--repair", "--json")
    assert called.code == 4
    found = {Path(one["folder"]): one for one in json.loads(called.out)}
    assert found[folder]["state"] != "damaged"
    assert any("outcomes (seed 1): dropped" in line for line in found[folder]["repaired"])
    assert found[folder]["error"] is None
    for bad in (garbage, empty):
        assert (found[bad]["state"], found[bad]["repaired"]) == ("damaged", [])
        assert f"{bad / DATABASE} cannot be repaired" in found[bad]["error"]
        assert f"{bad.name}: {found[bad]['error']}\n" in called.err
    assert f"{folder.name}: outcomes (seed 1): dropped" in called.err
    (last,) = [line for line in called.err.splitlines() if line.startswith("error: damaged: ")]
    assert str(garbage) in last
    assert str(empty) in last
    assert "it is missing or empty, though the study had begun" in found[empty]["error"]
    assert "trueoracle verify" not in found[empty]["error"]


def test_a_running_study_is_not_looked_at(runs: Path) -> None:
    folder = older_record(runs)
    with locked(folder):
        called = call("verify", "--runs", runs)
    assert (called.code, called.out) == (0, f"{folder.name}: running\n")


def test_nothing_recorded_is_said(runs: Path) -> None:
    called = call("verify", "--runs", runs)
    assert called.code == 0
    assert "no study is recorded" in called.out
    assert call("verify", "nothing", "--runs", runs).code == 2
