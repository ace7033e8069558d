"""Commands on a study over several dense networks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.test_cli import TINY, call
from tests.conftest import Writer
from trueoracle.record.pooled import PooledResults


@pytest.mark.slow
def test_run_status_report_and_export_take_it_as_one(
    write_study: Writer, tiny_dataset: str, tmp_path: Path
) -> None:
    text = TINY.replace("[dense]", "[dense]\nseeds = [0, 1, 2]")
    study, runs = write_study(f'criteria = ["l1"]\n{text}'), tmp_path / "r"
    scored = call("score", study, "--runs", runs, "--sample", 4)
    assert scored.code == 0
    assert "exact surgery, dense network 2" in scored.out
    ranked = json.loads(call("score", study, "--runs", runs, "--json", "-q").out)
    assert [one["dense_seeds"] for one in ranked] == [[0], [1], [2]]
    called = call("run", study, "--runs", runs)
    assert called.code == 0
    assert "mine, dense network 3 of 3 (dense.seed = 2)" in called.err
    assert "exact surgery, 3 dense networks" in called.out
    assert re.search(r"final test loss +2 +l1", called.out)
    assert "after retraining over 3 dense networks" in " ".join(called.out.split())
    report = shlex.split(called.out.partition("the figures: ")[2])
    assert report[:2] == ["trueoracle", "report"]
    (summary,) = json.loads(call(*report[1:], "--json").out)
    again = json.loads(call("run", study, "--runs", runs, "--json", "-q").out)
    assert again["relations"] == summary["relations"]
    # The last changed study is this one, not its last network.
    (found,) = json.loads(call("report", "--runs", runs, "--json").out)
    assert found["relations"] == summary["relations"]
    (row,) = json.loads(call("status", "--runs", runs, "--json").out)
    assert (row["state"], row["retrained"], row["dense_seeds"]) == ("finished", 30, [0, 1, 2])
    assert "mine, 3 dense networks" in call("status", "--runs", runs).out
    assert call("export", study, "--runs", runs, "--out", tmp_path / "t").code == 0
    scores = pd.read_csv(tmp_path / "t" / "scores.csv")
    assert scores.groupby("dense_seed").size().tolist() == [10, 10, 10]
    whole, *each = json.loads(call("verify", study, "--runs", runs, "--json").out)
    assert [part["name"] for part in whole["parts"]] == ["networks.json"]
    assert [one["state"] for one in each] == ["whole"] * 3
    # One of its networks is a study by itself.
    (alone,) = json.loads(
        call("report", study, "--set", "dense.seeds=[1]", "--runs", runs, "--json").out
    )
    assert (alone["networks"], alone["dense_seeds"]) == ([], [1])
    assert alone["digest"] == row["networks"][1]["digest"]


@pytest.mark.parametrize("command", [["search", "--replay"], ["search"], ["reproduce"]])
def test_what_is_of_one_network_says_so(
    three_networks: PooledResults, write_study: Writer, command: list[str]
) -> None:
    published = '[[published]]\nsetting = "a"\nn = 10\nkendall_tau = 0.1\np_value = 0.5\n'
    study = write_study(
        TINY.replace("[dense]", "[dense]\nseeds = [0, 1, 2]") + published, "tiny.toml"
    )
    runs = three_networks.folder.parent
    reference = three_networks.folder if "--replay" in command else study
    called = call(command[0], reference, *command[1:], "--runs", runs)
    assert called.code == 2
    assert "3 dense networks" in called.err
    assert called.err.count("\n") == 1


def test_its_folder_with_a_seed_is_the_run_of_that_network(
    three_networks: PooledResults, tmp_path: Path
) -> None:
    folder = three_networks.folder
    one = ["--set", "dense.seeds=[2]"]
    replay = call("search", folder, "--replay", "--json", *one)
    assert replay.code == 0, replay.err
    assert {row["searches"] for row in json.loads(replay.out)} == {2}
    (verified,) = json.loads(call("verify", folder, "--json", *one).out)
    assert verified["folder"] == str(three_networks.networks[2].folder)
    for command in (
        ["export", "--out", tmp_path / "x"],
        ["figures", "--out", tmp_path / "x"],
        ["verify"],
        ["report"],
        ["watch"],
        ["search", "--replay"],
    ):
        called = call(command[0], folder, *command[1:], "--set", "retraining.epochs=99")
        assert (called.code, called.out) == (2, "")
        assert "--set retraining.epochs: " in called.err
        assert called.err.count("\n") == 1
    assert not (tmp_path / "x").exists()
