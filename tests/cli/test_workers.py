"""The options that say where chunks run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trueoracle.cli.app import app
from trueoracle.cli.options import Workers, command_line
from trueoracle.errors import InputError


@pytest.mark.parametrize("command", ["run", "search"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "--address does nothing with --executor local"),
        (["--at-once", "3"], "--at-once does nothing with --executor local"),
        (["--executor", "ray", "--slurm", "time=5"], "--slurm does nothing with --executor ray"),
        (["--executor", "slurm", "--address", "auto"], "--address does nothing with --executor sl"),
        (["--executor", "slurm", "--slurm", "time"], "--slurm time: expected KEY=VALUE, as part"),
        (["--executor", "dask"], "'dask' is not one of 'local', 'ray', 'slurm'"),
    ],
)
def test_options_that_do_nothing_are_refused(
    command: str, words: list[str], said: str, tmp_path: Path
) -> None:
    found = CliRunner().invoke(app, [command, "digits-conv1-0.2", "--runs", str(tmp_path), *words])
    assert found.exit_code == 2
    assert said in " ".join(found.output.replace("│", " ").split())
    assert not [*tmp_path.iterdir()]


def test_a_command_to_be_typed_again_has_them_all() -> None:
    workers = Workers(executor="slurm", slurm=["time=5", "partition=a b"], at_once=3)
    again = command_line("search", "it", **workers.as_given())
    assert again == (
        "trueoracle search it --executor slurm --slurm time=5 --slurm 'partition=a b' --at-once 3"
    )
    assert command_line("search", "it", **Workers().as_given()) == "trueoracle search it"
    again = command_line("run", Path("-odd/it"), ["a=1"], Path("-odd"), allow_code=True, seed=0)
    assert again == "trueoracle run ./-odd/it --allow-code --seed 0 --set a=1 --runs -odd"
    assert command_line("report", "it", allow_code=False) == "trueoracle report it"


def test_this_process_is_the_default(tmp_path: Path) -> None:
    with Workers().opened(tmp_path) as executor:
        assert executor is None


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_missing_extra_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = {"ray": "ray", "slurm": "submitit"}[name]
    monkeypatch.setitem(sys.modules, library, None)
    workers = Workers(executor="ray" if name == "ray" else "slurm")
    with (
        pytest.raises(InputError, match=rf"pip install '\.\[{name}\]'"),
        workers.opened(tmp_path),
    ):
        pass


def test_slurm_has_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with (
        pytest.raises(InputError, match="there is no command 'sbatch' here"),
        Workers(executor="slurm").opened(tmp_path),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"a job of Slurm has whole GPUs, got 0.5"),
        Workers(executor="slurm", gpus=0.5).opened(tmp_path),
    ):
        pass
