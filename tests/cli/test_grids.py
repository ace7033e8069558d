from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from tests.cli.test_cli import TINY, call
from tests.conftest import Writer
from trueoracle.record.results import Results
from trueoracle.report.grid import write_grid_report
from trueoracle.spec.grid import variants

GRID = """
[arms.small.dense]
epochs = 1
[grid]
"pruning.layers.conv1" = [0.1, 0.9]
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def grid(write_study: Writer, tiny_dataset: str) -> Path:
    return write_study(TINY + GRID, "grid.toml")


@pytest.mark.slow
def test_a_grid_is_scored_run_resumed_and_reported(grid: Path, runs: Path, tmp_path: Path) -> None:
    scored = json.loads(call("score", grid, "--runs", runs, "--json", "-q").out)
    assert [one["study"] for one in scored] == ["grid+conv1-0.1", "grid+conv1-0.9"]
    changes = ("--set", "purpose=two words")
    called = call("run", grid, "--runs", runs, *changes)
    assert called.code == 0
    again = shlex.split(called.out.partition("the figures: ")[2])
    assert again == ["trueoracle", "report", str(grid), *changes, "--runs", str(runs)]
    assert "1 of 2: grid+conv1-0.1" in called.err
    assert "2 of 2: grid+conv1-0.9" in called.err
    assert "grid+conv1-0.1" not in called.out
    assert "conv1-0.9  oracle" in called.out
    resumed = call("run", grid, "--runs", runs, "--json", "--quiet")
    assert resumed.err == ""
    summary = json.loads(resumed.out)
    assert summary["axes"] == {"pruning ratio of conv1": [0.1, 0.9]}
    assert [point["summary"]["retrained"] for point in summary["points"]] == [10, 10]
    first = summary["points"][0]["summary"]["relations"][0]
    # One seed and every way to prune: examples and filters are left out.
    assert first["interval_over"] == (
        "20 blocks of examples and 10 filters, given the dense network and the retraining seed"
    )
    assert first["kendall_low"] < first["kendall_tau"] < first["kendall_high"]
    # What is shown together is adjusted together: two points, two criteria, two outcomes.
    shown = [one for point in summary["points"] for one in point["summary"]["relations"]]
    raw = [one["permutation_p_value"] for one in shown]
    np.testing.assert_allclose(
        [one["adjusted_p_value"] for one in shown], multipletests(raw, method="holm")[1]
    )
    # Both points prune one dense network, and say nothing of another.
    assert {one["clusters"] for one in summary["meta"]} == {1}
    states = json.loads(call("status", "--runs", runs, "--json").out)
    assert {row["study"]: row["state"] for row in states} == {
        "grid+conv1-0.1": "finished",
        "grid+conv1-0.9": "finished",
    }

    out = tmp_path / "out"
    called = call("report", grid, "--runs", runs, "--out", out)
    assert called.code == 0
    assert str(out / "report.html") in called.out
    assert json.loads((out / "summary.json").read_text()) == summary
    names = {path.name for path in (out / "figures").iterdir()}
    # Trends, forests and panels; of each point ladder, curves, filters, scatter: in three forms.
    assert len(names) == 3 * (2 + 4 + 4 + 2 * 4)
    assert {"grid-tau-test_loss.svg", "grid-l1-test_accuracy.png"} <= names
    assert "grid-oracle-test_loss-forest.pdf" in names
    page = (out / "report.html").read_text()
    assert "small scale" not in page.lower()
    assert "95% over 20 blocks of examples and 10 filters, given the dense network" in page
    assert "with one dense network, nothing is said of another" in page
    one = json.loads(call("report", "grid+conv1-0.9", "--runs", runs, "--json").out)
    assert one[0]["layers"] == {"conv1": 0.9}


@pytest.mark.slow
def test_an_unfinished_grid_is_reported_and_small_scale_marked(
    grid: Path, runs: Path, tmp_path: Path
) -> None:
    points = variants(f"{grid}@small", {"criteria": ["l1"]})
    from trueoracle.study import Study

    results = Study(points[0].spec, runs=runs).run(progress=False)
    assert isinstance(results, Results)
    written = write_grid_report(points, {points[0].label: results}, tmp_path / "out")
    assert written.summary["scale"] == "small"
    assert written.summary["points"][1]["summary"] is None
    page = written.page.read_text()
    assert "grid@small (small scale)" in page
    assert "grid+conv1-0.9@small is not finished" in page
    svg = (tmp_path / "out" / "figures" / "grid@small-l1-test_loss.svg").read_text()
    assert "grid@small (small scale)" in svg


@pytest.mark.parametrize("command", ["run", "score"])
def test_a_point_that_cannot_work_ends_it_before_the_first_runs(
    write_study: Writer, tiny_dataset: str, runs: Path, command: str
) -> None:
    grid = write_study(f'{TINY}[grid]\n"network.arguments.width" = [10, 0]\n', "grid.toml")
    called = call(command, grid, "--runs", runs, "--quiet")
    assert called.code == 2
    assert called.err.startswith("error: grid+width-0: ")
    assert called.err.count("\n") == 1
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "GRID"], "no point of grid is recorded in"),
        (["run", "GRID", "--set", "pruning.layers.conv1=0.3"], "the grid 'grid' spans it"),
        (["run", "lenet5-mini-width+width-2"], "unknown point of the grid"),
        (["export", "lenet5-mini-width", "--out", "x"], "its points is meant here"),
        (["reproduce", "lenet5-mini-width"], "is a grid of studies: 'trueoracle run"),
    ],
)
def test_what_cannot_be_done_with_a_grid_is_one_line(
    grid: Path, runs: Path, arguments: list[str], message: str
) -> None:
    called = call(*[str(grid) if one == "GRID" else one for one in arguments], "--runs", runs)
    assert called.code == 2
    assert message in called.err
    assert called.err.count("\n") == 1
