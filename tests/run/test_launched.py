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
from trueoracle.training.team import Team, find_team

pytest.importorskip("accelerate")
pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return str(own.getsockname()[1])


def launch(*arguments: str, **said: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine's processor, as ``accelerate launch`` starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **said},
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
    done = launch("-m", "tests.run.launched", str(tmp_path), "auto")
    assert done.returncode == 0, done.stderr
    compare(tmp_path, alone)
    (folder,) = tmp_path.glob("plain-*")
    (sitting,) = Results(folder).provenance  # the other process wrote nothing
    assert sitting["engine"] == "devices"


@pytest.mark.slow
def test_two_processes_that_share_the_weights_end_as_one(alone: Path, tmp_path: Path) -> None:
    done = launch("-m", "tests.run.launched", str(tmp_path), "auto", ACCELERATE_USE_FSDP="true")
    assert "launch without --use_fsdp" in done.stderr  # the last one, which cannot be
    compare(tmp_path, alone, [name for name in STUDIES if name != "masked"])


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
