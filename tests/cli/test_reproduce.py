from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import TINY, call
from tests.record.records import stopped_early
from trueoracle.data import datasets
from trueoracle.run import retrain as driver
from trueoracle.run.chunks import Chunk, retrain_chunk
from trueoracle.spec.published import all_settings

STUDY = """
criteria = ["oracle"]
[arms.short.retraining]
epochs = 1
milestones = []
[arms.small]
data = { name = "absent" }
dense.epochs = 1
pruning.candidates = 5
"""

PUBLISHED = """
["pruned train loss"."paper/conv1"]
study = "tiny-study"
n = 10
kendall_tau = -0.5
p_value = 0.0
anomaly_ratio = 0.1
["short retraining"."direction/conv1"]
study = "tiny-study"
n = 10
kendall_tau = 0.7
p_value = 1e-9
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dataset: str) -> str:
    """A shipped study of two settings, whose data set is at hand only at full scale."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "tiny-study.toml").write_text(
        STUDY.partition("\n[arms")[0] + TINY.replace("epochs = 1\nseeds", "epochs = 2\nseeds")
        + "\n[arms" + STUDY.partition("\n[arms")[2]
    )  # fmt: skip
    monkeypatch.setattr("trueoracle.spec.file.SHIPPED", folder)
    (tmp_path / "published.toml").write_text(PUBLISHED)
    monkeypatch.setattr("trueoracle.spec.published.PUBLISHED", tmp_path / "published.toml")
    monkeypatch.setitem(datasets.DATASETS, "absent", datasets.DATASETS["kmnist"])
    monkeypatch.setattr(datasets, "at_hand", lambda name: name != "absent", raising=False)
    monkeypatch.setattr("trueoracle.reproduce.comparison.STAND_IN", tiny_dataset)
    return "tiny-study"


@pytest.mark.slow
def test_all_published_settings_are_listed(runs: Path) -> None:
    called = call("reproduce", "--runs", runs)
    assert (called.code, called.err) == (0, "")
    assert all(one.setting in called.out for one in all_settings())
    rows = json.loads(call("reproduce", "--runs", runs, "--json").out)
    assert len(rows) == len(all_settings())
    by_setting = {row["setting"]: row for row in rows}
    assert by_setting["lenet5/conv105"] == {
        "setting": "lenet5/conv105",
        "study": "lenet5-mini-conv1-0.5",
        "x": "pruned train loss",
        "y": "test accuracy",
        "source": all_settings()[0].source.replace("diff/d6_conv105", "lenet5/conv105"),
        "published": {"n": 252, "kendall_tau": -0.51, "p_value": 0.0, "anomaly_ratio": 0.0437},
        "ours": None,
        "scale": "full",
        "networks": 756,
        "seconds": None,
        "engine": None,
    }
    assert by_setting["direction/conv105"]["networks"] == 2 * 756
    assert by_setting["direction/conv105"]["published"]["anomaly_ratio"] is None
    small = json.loads(call("reproduce", "--runs", runs, "--json", "--scale", "small").out)
    assert sum(row["networks"] for row in small) < sum(row["networks"] for row in rows) / 2
    assert call("reproduce", "--quiet", "--runs", runs).out == ""


@pytest.mark.slow
def test_a_setting_is_run_and_ours_put_beside_it(shipped: str, runs: Path) -> None:
    called = call("reproduce", "paper/conv1", "--runs", runs)
    assert called.code == 0
    assert "retrain: 10/10 networks" in called.err
    shown = " ".join(called.out.split())
    assert "paper/conv1 published pruned train loss 10 −0.50 <5e−06 10.0%" in shown
    assert "paper/conv1 ours, exact pruned train loss 10 " in shown
    assert "small" not in called.out
    direction = json.loads(call("reproduce", "direction/conv1", "--runs", runs, "--json").out)
    (one,) = direction["comparisons"]
    assert one["published"]["kendall_tau"] == 0.7
    assert one["ours"]["study"] == shipped
    assert (one["ours"]["retrained"], one["ours"]["to_retrain"]) == (20, 20)
    short = direction["summary"]["short_retraining"]
    assert one["ours"]["kendall_tau"] == short["relations"][0]["kendall_tau"]

    rows = json.loads(call("reproduce", "--times", "--runs", runs, "--json", "-q").out)
    assert [row["setting"] for row in rows] == ["direction/conv1", "paper/conv1"]
    assert rows[0]["ours"] == one["ours"]
    assert (rows[1]["ours"]["scale"], rows[1]["ours"]["outcome"]) == ("full", "last")
    assert (rows[1]["networks"], rows[1]["seconds"]) == (10, None)  # of no known size
    best = call("reproduce", "--runs", runs, "--json", "--outcome", "best-on-test")
    assert json.loads(best.out)[1]["ours"]["outcome"] == "best-on-test"
    other = call("reproduce", "--runs", runs, "--json", "--surgery", "as-released")
    assert [row["ours"] for row in json.loads(other.out)] == [None, None]
    assert [row["ours"] for row in _small(runs)] == [None, None]


def test_failures_of_the_short_retraining_count(
    shipped: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad: list[str] = []

    def chunk_or_error(chunk: Chunk, *args: Any) -> Any:
        names = [name for _, name in chunk.members]
        if chunk.spec.has_role("short") and (bad or names)[0] in names:
            bad.extend(names[:1] if not bad else [])
            raise RuntimeError("broken")
        return retrain_chunk(chunk, *args)

    monkeypatch.setattr(driver, "retrain_chunk", chunk_or_error)
    few = ["--set", "pruning.candidates=4", "--engine", "loop"]
    called = call("reproduce", "direction/conv1", "--runs", runs, "--json", "-q", *few)
    assert called.code == 6, called.err
    found = json.loads(called.out)
    assert (found["failed"], found["summary"]["failed"]) == (1, 0)
    assert "1 retraining failed" in called.err


def _small(runs: Path) -> list[dict[str, object]]:
    called = call("reproduce", "--runs", runs, "--json", "--scale", "small")
    rows: list[dict[str, object]] = json.loads(called.out)
    return rows


def test_small_scale_takes_what_is_at_hand_and_says_so(shipped: str, runs: Path) -> None:
    called = call("reproduce", shipped, "--scale", "small", "--runs", runs)
    assert called.code == 0
    assert "data set absent is not at hand: tiny stands in for it" in called.err
    assert "tiny-study@small (small scale)" in called.out
    assert "not to be read as the paper's experiment" in called.out
    again = call("reproduce", "paper/conv1", "--scale", "small", "--runs", runs, "--json", "-q")
    results = json.loads(again.out)
    assert again.err == ""
    assert (results["scale"], results["replaced_data"]) == ("small", "absent")
    assert results["summary"]["scale"] == "small"
    assert results["summary"]["data"] == "tiny"
    row = next(row for row in _small(runs) if row["setting"] == "paper/conv1")
    assert row["ours"] == results["comparisons"][0]["ours"]
    listed = json.loads(call("reproduce", "--runs", runs, "--json").out)
    assert listed[1]["ours"]["scale"] == "small"
    assert "small" in call("reproduce", "--runs", runs).out


def test_the_name_says_the_scale(shipped: str, runs: Path) -> None:
    results = json.loads(call("reproduce", f"{shipped}@small", "--runs", runs, "--json", "-q").out)
    assert (results["scale"], results["summary"]["study"]) == ("small", f"{shipped}@small")
    refused = call("reproduce", f"{shipped}@small", "--scale", "full", "--runs", runs)
    assert refused.code == 2
    assert f"'{shipped}@small' is at small scale, so that it takes no --scale full" in refused.err


@pytest.mark.slow
def test_the_list_follows_the_scale_that_is_finished(shipped: str, runs: Path) -> None:
    name = "paper/conv1"
    call("reproduce", name, "--runs", runs, "-q")
    full = next(runs.iterdir())
    call("reproduce", name, "--scale", "small", "--runs", runs, "-q")
    stopped_early(full)
    row = json.loads(call("reproduce", "--runs", runs, "--json").out)[1]
    assert (row["setting"], row["scale"], row["ours"]["scale"]) == (name, "small", "small")
    assert row["networks"] == row["ours"]["to_retrain"] == 5
    shown = json.loads(call("reproduce", "--runs", runs, "--json", "--scale", "full").out)[1]
    assert (shown["ours"]["retrained"], shown["ours"]["to_retrain"]) == (1, 10)
    assert "1/10 of full" in call("reproduce", "--runs", runs, "--scale", "full").out


@pytest.mark.slow
def test_what_was_changed_is_said(shipped: str, runs: Path) -> None:
    arguments = (
        "reproduce",
        "paper/conv1",
        "--runs",
        runs,
        "--set",
        "retraining.learning_rate=0.1",
    )
    called = call(*arguments)
    assert "full" not in called.out
    words = "changed: retraining.learning_rate 0.1: not to be read as the paper's experiment"
    assert words in called.out
    results = json.loads(call(*arguments, "--json").out)
    ours = results["comparisons"][0]["ours"]
    assert ours["changed"] == {"retraining.learning_rate": 0.1}
    assert (results["scale"], ours["scale"], results["summary"]["scale"]) == ("changed",) * 3


def test_a_short_retraining_has_no_published_values(shipped: str, runs: Path) -> None:
    called = call("reproduce", f"{shipped}@short", "--runs", runs)
    assert called.code == 0
    assert "no value of this study is published" in called.out
    assert "paper/conv1" not in called.out


@pytest.mark.parametrize(
    "setting", ["retraining.epochs=6", "retraining.milestones=[1]", "retraining={epochs=2}"]
)
def test_a_direction_takes_no_epochs(shipped: str, runs: Path, setting: str) -> None:
    called = call("reproduce", "direction/conv1", "--runs", runs, "--set", setting)
    assert called.code == 2
    assert called.err.count("\n") == 1
    assert f"{shipped} is compared with its short retraining" in called.err
    assert not runs.exists()


def test_a_short_arm_has_to_be_shorter(shipped: str, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "studies" / f"{shipped}.toml"
    path.write_text(path.read_text().replace("epochs = 1\nmilestones", "epochs = 2\nmilestones"))
    called = call("reproduce", "direction/conv1", "--runs", runs)
    assert called.code == 2
    assert f"{shipped}@short retrains for 2 epochs, no fewer than {shipped} with 2" in called.err


@pytest.mark.slow
def test_the_released_wiring_is_an_arm(shipped: str, runs: Path) -> None:
    arguments = ("--runs", runs, "--json", "-q", "--set", "retraining.epochs=1")
    for name in (["paper/conv1", "--surgery", "as-released"], [f"{shipped}@as-released"]):
        results = json.loads(call("reproduce", *name, *arguments).out)
        assert results["summary"]["study"] == "tiny-study@as-released"
        assert results["comparisons"][0]["ours"]["surgery"] == "as-released"
    assert len(list(runs.iterdir())) == 1


@pytest.mark.slow
def test_a_study_of_ones_own_and_a_point_are_put_beside_what_was_published(
    shipped: str, runs: Path, tmp_path: Path
) -> None:
    arguments = ("--runs", runs, "--json", "-q")
    studies = tmp_path / "studies"
    (studies / "grids").mkdir()
    (studies / "grids" / "tiny-grid.toml").write_text(
        f'extends = "{shipped}"\n[grid]\n"retraining.epochs" = [1, 2]\n'
    )
    point = json.loads(call("reproduce", "tiny-grid+epochs-2", *arguments).out)
    assert point["summary"]["study"] == "tiny-grid+epochs-2"
    (one,) = point["comparisons"]
    assert (one["setting"], one["ours"]["retrained"]) == ("paper/conv1", 10)
    other = json.loads(call("reproduce", "tiny-grid+epochs-1", *arguments).out)
    assert other["comparisons"] == []

    own = tmp_path / "own.toml"
    values = "n = 10\nkendall_tau = 0.5\np_value = 0.1\n"
    own.write_text(
        f'extends = "{shipped}"\n[[published]]\nsetting = "a"\n{values}'
        f'[[published]]\nsetting = "b"\nx = "short retraining"\n{values}'
    )
    found = json.loads(call("reproduce", own, *arguments).out)
    assert [one["setting"] for one in found["comparisons"]] == ["a", "b"]
    assert [one["ours"]["to_retrain"] for one in found["comparisons"]] == [10, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet5/conv10.5"], "unknown published setting or study 'lenet5/conv10.5': did you mean"),
        (["digits-conv1-0.2", "--scale", "small"], "unknown arm of 'digits-conv1-0.2' 'small'"),
        (["--times", "--device", "foo"], "device 'foo' cannot be used"),
        (["lenet5-mini-width@small"], "here: lenet5-mini-width+width-10@small"),
        (["--outcome", "lst"], "unknown outcome rule 'lst'"),
        (["--set", "dense.epochs=1"], "--set and --weights change the study that is run"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, runs: Path) -> None:
    called = call("reproduce", *arguments, "--runs", runs)
    assert called.code == 2
    assert message in called.err
    assert called.err.count("\n") == 1
