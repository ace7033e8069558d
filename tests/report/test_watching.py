"""A study that runs, watched in a real browser."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trueoracle.errors import StoreError
from trueoracle.record.results import Results
from trueoracle.record.runs import recorded_runs

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

STUDY = """
extends = "digits-conv1-0.2"
criteria = ["oracle", "l1"]
data.train_images = 200
data.test_images = 200
data.validation_images = 50
dense.epochs = 1

[retraining]
procedure = "held:train"
epochs = 1
milestones = []
seeds = [0]
"""

# It trains really, but begins, and goes on after some networks, only when the test says so.
HELD = """
import time
from pathlib import Path

import torch
from torch.nn import functional

trained = 0


def train(network, data, recipe, seed, report):
    global trained
    gate = "begin" if trained < 12 else "go on"
    while not Path(gate).exists():
        time.sleep(0.05)
    trained += 1
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    x, y = data.train.inputs, data.train.targets
    for rows in torch.randperm(len(x)).split(50):
        optimizer.zero_grad()
        functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    report(0)
"""


def scores(run: Path) -> int:
    with suppress(StoreError):  # it has just begun
        return int(Results(run).counts["scores"])
    return 0


def wait_for(happened: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "trueoracle", *map(str, words)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.communicate()


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_outcomes_arrive_without_a_reload_and_the_study_is_left_alone(
    start: Callable[..., subprocess.Popen[str]], page: Any, tmp_path: Path
) -> None:
    (tmp_path / "held.py").write_text(HELD, encoding="utf-8")
    (tmp_path / "watched.toml").write_text(STUDY, encoding="utf-8")
    study = start("run", "watched.toml", "--engine", "loop")
    runs = tmp_path / "runs"
    (run,) = wait_for(lambda: recorded_runs(runs))
    wait_for(lambda: scores(run) == 90)
    server = start("watch", "watched.toml")
    assert server.stdout is not None
    page.goto(server.stdout.readline().partition("  ")[0])
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.evaluate("window.same = true")
    assert page.inner_text("#found").count("No network has been retrained yet") == 1
    assert page.locator(".mark").count() == 0

    (tmp_path / "begin").touch()  # the first twelve
    page.locator("#scatter .mark").first.wait_for(timeout=120_000)
    page.select_option("#control-criterion", "l1")
    page.select_option("#control-outcome", "test_loss")
    page.locator("#numbers summary:visible").first.click()
    page.locator("#ladder .mark").first.focus()
    focused = "document.activeElement.getAttribute('aria-label').split(':')[0]"
    before = page.evaluate(focused)
    page.get_by_text("so far 12 of 45 networks are retrained").wait_for(timeout=120_000)
    assert page.locator("#scatter .mark").count() == 12
    assert page.locator("#candidate-table tbody tr").count() == 45
    assert page.input_value("#control-criterion") == "l1"
    assert page.evaluate(focused) == before
    assert page.locator("#numbers details[open]").count() == 1
    assert (page.evaluate("window.same"), wrong) == (True, [])

    server.send_signal(signal.SIGINT)
    server.wait(timeout=60)
    page.get_by_text("No longer watched: this is how far it had come.").wait_for(timeout=60_000)
    assert study.poll() is None
    (tmp_path / "go on").touch()
    assert study.wait(timeout=300) == 0
    assert Results(run).finished
    assert Results(run).counts["retrainings"] == 45
