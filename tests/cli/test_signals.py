"""Ctrl-C and SIGTERM at any moment: one line, exit code 130 or 143, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Writer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")

MODULE = [sys.executable, "-m", "trueoracle"]
SCRIPT = [sys.executable, "-c", "from trueoracle.cli.main import main; main()"]
"""What ``python -m trueoracle`` and the installed ``trueoracle`` run."""

INTERRUPTED = "interrupted: what was committed is kept; the same command goes on"
TERMINATED = "terminated: what was committed is kept; the same command goes on"

SMALL = """
[network]
name = "lenet5-mini"
[data]
train_images = 400
test_images = 100
validation_images = 100
[dense]
epochs = 2
batch_size = 32
[pruning]
layers = { conv1 = 0.1 }
[retraining]
epochs = 2
seeds = [0]
"""


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    def as_a_shell_does() -> None:  # the tests may run where signals are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return subprocess.Popen(
        words,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_a_shell_does,
    )


def wait_for_the_front_door(process: subprocess.Popen[str]) -> None:
    """Before its first line of ours, Python answers a signal by itself."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(0.5)
    while process.poll() is None and status.exists():
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def check_ended(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """That it ended by the signal in one line, or else before it as ever; its exit code."""
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert "rror" not in errors
    assert process.returncode in (0, 128 + number), errors
    if process.returncode:
        line = INTERRUPTED if number == signal.SIGINT else TERMINATED
        assert errors.splitlines()[-1] == line
        assert errors.count("what was committed") == 1
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("entry", [MODULE, SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize(
    ("command", "moments"),
    [
        ("status", (0, 0.05, 0.2)),
        ("analyse points.csv --x x --y y", (0.1, 0.4, 0.8)),
        ("inspect resnet18", (0.3, 1.0, 2.0)),
        ("run small.toml", (0.6, 1.5, 3.0)),
    ],
)
def test_a_signal_at_any_moment_is_one_line(
    entry: list[str], command: str, moments: tuple[float, ...], tmp_path: Path
) -> None:
    (tmp_path / "points.csv").write_text("x,y\n" + "".join(f"{i},{i % 7}\n" for i in range(200000)))
    (tmp_path / "small.toml").write_text(SMALL)
    for place, moment in enumerate(moments):
        number = signal.SIGTERM if place == 1 else signal.SIGINT
        process = start([*entry, *command.split()], tmp_path)
        wait_for_the_front_door(process)
        time.sleep(moment)
        process.send_signal(number)
        code = check_ended(process, number)
        if moment == 0:
            assert code == 130


PRELUDE = """
import os, signal, sys, time
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
def read(*_, **__):
    {reads}
import pandas
pandas.read_csv = read
sys.argv = "trueoracle analyse points.csv --x x --y y".split()
from trueoracle.cli.main import main
main()
"""
TRANSLATED = """
    try:
        interrupt()
    except BaseException:
        raise pandas.errors.ParserError("a parser's own words") from None
"""
SWALLOWED = """
    try:
        interrupt()
    except BaseException:
        time.sleep(60)
"""
UNRAISABLE = """
    class Fragile:
        def __del__(self):
            interrupt()
    Fragile()
    time.sleep(60)
"""
TWICE = """
    try:
        interrupt()
    finally:
        interrupt()
"""


@pytest.mark.slow
@pytest.mark.parametrize("reads", [TRANSLATED, SWALLOWED, UNRAISABLE, TWICE, "interrupt()"])
def test_whatever_code_makes_of_an_interrupt(reads: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("x,y\n1,2\n2,3\n")
    process = start([sys.executable, "-c", PRELUDE.format(reads=reads)], tmp_path)
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, output, errors) == (130, "", f"{INTERRUPTED}\n")


def test_an_interrupt_within_an_import_that_becomes_an_import_error(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "except BaseException:\n"
        "    raise ImportError('half made') from None\n"
    )
    process = start(SCRIPT, tmp_path)
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (130, f"{INTERRUPTED}\n")


def test_an_import_ends_before_an_interrupt_is_raised(tmp_path: Path) -> None:
    # Raised within it, the interrupt may pass through C++ code of a library, which aborts.
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(0.3)\n"
        "print('imported', flush=True)\n"
        "class Typer: ...\n"
    )
    process = start(SCRIPT, tmp_path)
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, output, errors) == (143, "imported\n", f"{TERMINATED}\n")


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    # As under nohup, or behind an & in a script.
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from trueoracle.cli import signals\n"
        "signals.listen()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('went on')\n"
    )
    process = start([sys.executable, "-c", code], tmp_path)
    assert process.communicate(timeout=50)[0] == "went on\n"


@pytest.mark.slow
def test_a_terminated_run_goes_on(write_study: Writer, tmp_path: Path) -> None:
    study = write_study(SMALL.replace("epochs = 2\nseeds", "epochs = 200\nseeds"), "small.toml")
    process = start([*MODULE, "run", str(study)], tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("score by l1: 10/10"):
            break
    process.send_signal(signal.SIGTERM)
    assert check_ended(process, signal.SIGTERM) == 143
    status = subprocess.run([*MODULE, "status", "--json"], cwd=tmp_path, capture_output=True)
    (row,) = json.loads(status.stdout)
    assert (row["state"], row["scored"]) == ("interrupted", 20)
