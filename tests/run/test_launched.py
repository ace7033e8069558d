"""One network trained by two processes together ends as one process leaves it, up to rounding."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.run.launched import STUDIES, study
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.run.retrain import launched
from trueoracle.study import Study
from trueoracle.training.team import Team, find_team

pytest.importorskip("accelerate")
pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]

TINY = """
criteria = ["oracle"]
[network]
name = "mlp"
arguments = { hidden = [12, 10] }
[data]
name = "mnist-5k"
train_images = 80
test_images = 20
validation_images = 16
[dense]
epochs = 1
batch_size = 32
[pruning]
layers = { fc2 = 0.1 }
candidates = 2
[retraining]
epochs = 2
batch_size = 32
seeds = [0]
"""


def free_port() -> str:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return str(own.getsockname()[1])


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine's processor, started by ``accelerate launch``.

    Its ``--multi_gpu`` means several processes; without it there would be one.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    return subprocess.run(
        [*command, "--main_process_port", free_port(), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(runs: Path, name: str) -> pd.DataFrame:
    (folder,) = runs.glob(f"{name}-*")
    return Results(folder).outcomes.drop(columns="seconds", errors="ignore")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("alone")
    for name in STUDIES:
        study(name, str(runs)).run(progress=False, engine="loop")
    return runs


def compare(runs: Path, alone: Path, names: Iterable[str] = STUDIES) -> None:
    for name in names:
        found, wanted = outcomes(runs, name), outcomes(alone, name)
        assert len(found) == len(wanted) == 4
        # Weights of 8 bits round the difference of two sums up.
        tolerance = 0.02 if name == "rounded" else 1e-5
        pd.testing.assert_frame_equal(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_two_processes_end_as_one(alone: Path, tmp_path: Path) -> None:
    done = launch("--multi_gpu", "-m", "tests.run.launched", str(tmp_path), "auto")
    assert done.returncode == 0, done.stderr
    compare(tmp_path, alone)
    (folder,) = tmp_path.glob("plain-*")
    (sitting,) = Results(folder).provenance  # the other process wrote nothing
    assert sitting["engine"] == "devices"


@pytest.mark.slow
def test_two_processes_that_share_the_weights_end_as_one(alone: Path, tmp_path: Path) -> None:
    options = ("--use_fsdp", "--fsdp_version", "2")
    done = launch(*options, "-m", "tests.run.launched", str(tmp_path), "auto")
    assert "launch without --use_fsdp" in done.stderr  # the last one, which cannot be
    compare(tmp_path, alone, [name for name in STUDIES if name != "masked"])


@pytest.mark.slow
def test_the_command_is_launched(tmp_path: Path) -> None:
    """As ``accelerate launch -m trueoracle run STUDY``, and by one process."""
    torch.set_num_threads(1)
    (tmp_path / "tiny.toml").write_text(TINY)
    words = ("-m", "trueoracle", "run", str(tmp_path / "tiny.toml"), "--quiet", "--runs")
    done = launch("--multi_gpu", *words, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    Study(tmp_path / "tiny.toml", runs=tmp_path / "one").run(progress=False, engine="loop")
    found, wanted = outcomes(tmp_path / "two", "tiny"), outcomes(tmp_path / "one", "tiny")
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5, atol=1e-5)
    (folder,) = (tmp_path / "two").glob("tiny-*")
    assert Results(folder).provenance[-1]["engine"] == "devices"


def test_a_process_alone_is_no_team() -> None:
    assert find_team() is None
    assert launched("wide") == "wide"


def test_what_uses_one_device_is_not_launched_on_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    team = Team(rank=1, size=2, device=torch.device("cpu"), is_sharded=False)
    monkeypatch.setattr("trueoracle.run.sitting.find_team", lambda: team)
    with pytest.raises(InputError, match="only 'trueoracle run' uses them: start this alone"):
        study("plain", str(tmp_path)).score(progress=False)


def test_all_get_as_many_parts() -> None:
    teams = [Team(rank, 3, torch.device("cpu"), False) for rank in range(3)]
    own = [list(team.own("abcd")) for team in teams]
    assert own[0] == [(0, "a", True), (3, "d", True)]
    assert own[1] == [(1, "b", True), (3, "d", False)]
    assert own[2] == [(2, "c", True), (3, "d", False)]


def test_several_devices_are_launched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'devices' cannot train this network: this process was s"):
        study("plain", str(tmp_path)).run(progress=False, engine="devices")
