"""Several studies in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import trueoracle
from tests.cli.test_cli import TINY, call
from tests.conftest import Writer
from trueoracle.errors import InputError
from trueoracle.grid import Grid

GRID = '[grid]\n"pruning.layers.conv1" = [0.1, 0.9]\n'


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def grid(write_study: Writer, tiny_dataset: str) -> Path:
    return write_study(TINY + GRID, "grid.toml")


@pytest.mark.slow
def test_a_grid_is_scored_run_and_reported(grid: Path, runs: Path) -> None:
    made = Grid(grid, overrides={"criteria": ["l1"]}, runs=runs)
    assert (made.name, made.is_whole) == ("grid", True)
    assert made.results() == {}
    with pytest.raises(InputError, match="no point of grid is recorded in"):
        made.report()
    scored = made.score(progress=False)
    assert list(scored) == ["conv1-0.1", "conv1-0.9"]
    assert {one.status()["state"] for one in scored.values()} == {"scored"}
    found = made.run(progress=False, engine="loop")
    assert {one.status()["state"] for one in found.values()} == {"finished"}
    assert list(made.results()) == list(made.folders()) == list(found)
    written = made.report()
    assert made.summary() == written.summary
    assert written.page.is_relative_to(runs)
    assert json.loads(written.summary_path.read_text())["axes"] == {
        "pruning ratio of conv1": [0.1, 0.9]
    }
    elsewhere = made.report(runs / "out", outcome="best-on-test")
    assert elsewhere.summary["outcome"] == "best-on-test"
    # The command finds what Python recorded.
    again = call("report", grid, "--runs", runs, "--set", 'criteria=["l1"]', "--json")
    assert json.loads(again.out) == written.summary


@pytest.mark.slow
def test_a_plain_study_is_a_grid_of_one(
    write_study: Writer, tiny_dataset: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(TINY)
    made = trueoracle.Grid(trueoracle.variants(str(path)), runs=runs)
    assert (made.name, made.is_whole) == ("mine", False)
    assert list(made.score(progress=True)) == ["mine"]
    assert "1 of 1" not in capsys.readouterr().err
    with pytest.raises(InputError, match=r"mine is one study, not a grid: use Study\(…\)\.report"):
        made.report()
    assert made.summary()["state"] == "scored"
    with pytest.raises(InputError, match=r"mine is not recorded in .* with these settings"):
        Grid(path, overrides={"dense.seed": 3}, runs=runs).summary()
    study = trueoracle.Study(made.variants[0].spec, runs=runs)
    study.run(progress=False)
    assert study.report().page == study.folder / "report" / "report.html"
    assert study.report(runs / "out", "best-on-test").summaries[0]["outcome"] == "best-on-test"


def test_a_point_that_cannot_work_is_named_before_the_first_runs(
    write_study: Writer, tiny_dataset: str, runs: Path
) -> None:
    path = write_study(f'{TINY}[grid]\n"network.arguments.width" = [10, 0]\n', "grid.toml")
    with pytest.raises(InputError, match=r"^grid\+width-0: "):
        Grid(path, runs=runs).run(progress=False)
    assert not runs.exists()


def test_a_grid_is_resolved_without_torch() -> None:
    code = (
        "import sys, trueoracle; trueoracle.Grid('lenet5-mini-width@small').results(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
