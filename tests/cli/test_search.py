from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import trueoracle
from tests.conftest import Writer
from trueoracle import trust
from trueoracle.cli.app import app
from trueoracle.errors import InputError

TINY = """
[network]
name = "lenet5-mini"
[data]
name = "tiny"
train_images = 100
validation_images = 40
test_images = 50
[dense]
epochs = 1
batch_size = 32
[pruning]
layers = { conv1 = 0.1 }
[retraining]
epochs = 2
batch_size = 32
learning_rate = 0.01
seeds = [0]
"""


@pytest.fixture
def tiny(write_study: Writer, tiny_dataset: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_study(TINY)
    monkeypatch.chdir(path.parent)
    return path


@dataclass(frozen=True)
class Called:
    exit_code: int
    stdout: str
    stderr: str


def called(*words: object) -> Called:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Called(result.exit_code, result.stdout, result.stderr)


def test_a_search_writes_its_network(tiny: Path) -> None:
    result = called(
        "search", tiny, "--budget", "8", "--engine", "loop", "--export", "m.safetensors"
    )
    assert result.exit_code == 0, result.stderr
    assert "7 of the 20 epochs that retrain all (35.0%)" in result.stdout
    assert 'network = trueoracle.load("m.safetensors")' in result.stdout
    assert "chosen: candidate " in result.stdout
    assert re.search(r"^test accuracy +[\d.]+% +[\d.]+%", result.stdout, re.MULTILINE)
    assert re.search("^parameters +5,500 +5,224 +compression 1.05x", result.stdout, re.MULTILINE)
    assert re.search(
        "^MACs +448,700 +404,100 +theoretical speed-up 1.11x", result.stdout, re.MULTILINE
    )
    for size in ("1 example", "32 examples"):
        row = rf"^latency of {size} +([\d.]+) ms +([\d.]+) ms +measured speed-up ([\d.]+)x"
        (times,) = re.findall(row, result.stdout, re.MULTILINE)
        dense, pruned, ratio = map(float, times)
        assert dense / pruned == pytest.approx(ratio, rel=0.02)
    assert "candidate of median MACs in turn" in " ".join(result.stdout.split())
    assert trueoracle.load("m.safetensors")(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    again = called("search", tiny, "--budget", "40%", "--engine", "loop", "--json", "--quiet")
    assert again.exit_code == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["chosen"] in result.stdout
    assert found["export"] is None
    assert found["spent"] == 7
    assert again.stderr == ""


def test_the_command_to_write_the_network_repeats_the_search(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_allowed", False)
    options = [
        "--allow-code",
        "--budget",
        "60%",
        "--strategy",
        "random",
        "--seed",
        "5",
        "--by",
        "train_loss",
    ]
    options += ["--engine", "loop", "--set", "retraining.learning_rate=0.02"]
    result = called("search", tiny, *options)
    (line,) = [one for one in result.stdout.splitlines() if one.startswith("to write the network:")]
    words = shlex.split(line.partition(": ")[2])
    assert words[0] == "trueoracle"
    assert "--allow-code" in words
    again = called(*words[1:])
    assert again.exit_code == 0, again.stderr
    (chosen,) = [one for one in result.stdout.splitlines() if one.startswith("chosen:")]
    assert chosen in again.stdout
    assert Path("model.safetensors").is_file()
    assert len(list(Path("runs").glob("*/search/*"))) == 1
    assert json.loads(called("status", "--json").stdout)[0]["state"] == "searched"


def test_what_a_users_code_prints_is_no_json(tiny: Path) -> None:
    Path("loud.py").write_text(
        "print('imported')\n\n\ndef loud(dense, candidates, data):\n    print('called')\n"
        "    return [float(w[0][0]) for w in candidates]\n"
    )
    options = ["--set", 'criteria=["loud:loud"]', "--budget", "8", "--engine", "loop", "--json"]
    result = called("search", tiny, *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["criterion"] == "loud:loud"
    assert "called" in result.stderr


def test_the_result_is_shown_whatever_becomes_of_the_file(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> Path:
        raise InputError("cannot be exported")

    monkeypatch.setattr("trueoracle.search.search.export", refuses)
    options = ["--budget", "8", "--engine", "loop", "--export", "m.onnx"]
    result = called("search", tiny, *options)
    assert result.exit_code == 2
    assert "chosen: candidate " in result.stdout
    assert "error: cannot be exported" in result.stderr
    result = called("search", tiny, *options, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["export"] is None


def test_a_replay_prints_and_draws(tiny: Path) -> None:
    refused = called("search", tiny, "--replay")
    assert refused.exit_code == 2
    assert "no study is recorded" in refused.stderr
    assert called("run", tiny, "--engine", "loop", "--quiet").exit_code == 0
    result = called("search", tiny, "--replay", "--figure", "budget.png")
    assert result.exit_code == 0, result.stderr
    assert "ordered by oracle, 1 retraining seed" in result.stdout
    assert "random-halving" in result.stdout
    assert "budgets that finish no network are left out: 1%, 2%, 5%" in result.stdout
    lines = result.stdout.partition("\nregret: ")[0].splitlines()
    assert max(map(len, lines)) < 110
    assert Path("budget.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(called("search", tiny, "--replay", "--criterion", "l1", "--json").stdout)
    full = [row for row in rows if (row["strategy"], row["outcome"]) == ("full", "validation_loss")]
    assert full
    assert all(row["regret"] == 0 for row in full)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1"], "error: a budget of 1 epoch finishes no network"),
        (["--export", "model.bin"], "a network is exported as .safetensors, .onnx, .pt2"),
        (["--figure", "a.png"], "--figure draws a replay: give --replay too"),
        (["--replay", "--figure", "budget"], "--figure takes a .png, .svg or .pdf, got budget"),
        (["--replay", "--figure", "a.jpeg"], "--figure takes a .png, .svg or .pdf, got a.jpeg"),
        (["--replay", "--budget", "9"], "--budget does nothing with --replay"),
        (["--replay", "--strategy", "top"], "--strategy does nothing with --replay"),
        (["--replay", "--seed", "0"], "--seed does nothing with --replay"),
        (["--replay", "--engine", "loop"], "--engine does nothing with --replay"),
        (["--replay", "--memory", "1GB"], "--memory does nothing with --replay"),
        (["--replay", "--device", "cpu"], "--device does nothing with --replay"),
        (["--replay", "--executor", "ray"], "--executor does nothing with --replay"),
        (["--replay", "--at-once", "3"], "--at-once does nothing with --replay"),
        (["--strategy", "random", "--criterion", "l1"], "nothing with strategy 'random'"),
        (["--strategy", "full", "--budget", "4"], "takes all 20 epochs, and the budget is 4"),
        (["--strategy", "best"], "unknown strategy 'best'"),
    ],
)
def test_errors_are_one_line(tiny: Path, options: list[str], message: str) -> None:
    result = called("search", tiny, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("runs").exists()
