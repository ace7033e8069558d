"""Outputs that are closed, full, without a reader, or of few characters; hostile text in them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from trueoracle.cli.console import BarProgress, PlainConsole
from trueoracle.run.progress import PlainProgress, one_line, printable

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "trueoracle", *words], text=True, **given
    )


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    path.write_text("τ,accuracy\n1,8\n2,9\n3,7\n4,5\n")
    return path


@pytest.mark.slow
def test_an_output_of_ascii_gets_plainer_characters(points: Path) -> None:
    words = ("analyse", str(points), "--x", "τ", "--y", "accuracy")
    ended = run(*words, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()
    assert "tau" in ended.stdout
    assert "-0.67" in ended.stdout  # a minus sign elsewhere
    ended = run("status", "--runs", "naïve→", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "in naive\\u2192:" in ended.stdout


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("words", ["status", "status --json", "--help", "--version", "criteria"])
def test_a_full_output_is_one_line(words: str) -> None:
    with FULL.open("w") as full:
        ended = run(*words.split(), stdout=full)
    assert ended.returncode == 4
    assert ended.stderr.startswith("error: cannot ")
    assert ended.stderr.endswith("No space left on device\n")
    assert ended.stderr.count("\n") == 1


@needs_full
def test_a_full_standard_error_leaves_the_exit_code() -> None:
    with FULL.open("w") as full:
        assert run("report", "nothing", stderr=full).returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="descriptors are POSIX's")
def test_closed_outputs_swallow_what_is_written() -> None:
    def closed() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    assert run("status", preexec_fn=closed).returncode == 0
    assert run("report", "nothing", preexec_fn=closed).returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_a_reader_that_went_away_is_one_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        ended = run("status", stdout=pipe)
    assert ended.returncode == 4
    assert ended.stderr == "error: the reader of the output went away\n"


def test_what_a_terminal_would_obey_is_printed_as_text(tmp_path: Path) -> None:
    hostile = "\x1b[31mred\x9b2J\x07"
    points = tmp_path / "points.csv"
    points.write_text(f"{hostile},c\n1,2\n2,3\n,4\n", encoding="utf-8")
    called = call("analyse", points, "--x", hostile, "--y", "c")
    assert called.code == 0
    assert r"\x1b[31mred\x9b2J\x07" in called.out
    assert not {"\x1b", "\x9b", "\x07"} & set(called.out)
    unknown = call("analyse", points, "--x", "c", "--y", "d").err
    assert "\x1b" not in unknown
    assert r"\x1b[31mred" in unknown
    written = call("analyse", points, "--x", hostile, "--y", "c", "--json").out
    assert "\x1b" not in written
    assert json.loads(written)["x"] == hostile


def test_progress_shows_names_as_text() -> None:
    hostile = "[bold]a\x1b]0;title\x07\n:smile:"
    shown = r"[bold]a\x1b]0;title\x07\n:smile:"
    stream = io.StringIO()
    plain = PlainProgress(stream)
    plain.message(hostile)
    plain.stage(hostile, 2, 0, "networks")
    assert stream.getvalue() == f"{shown}\n{shown}: 2 networks\n"
    with BarProgress() as bars:
        bars._bars.console.file = stream = io.StringIO()
        bars.stage(hostile, 2, 0, "networks")
        bars.advance(note=hostile)
        bars.message(hostile)
    assert shown in stream.getvalue()
    assert "\x1b]0" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain τ − 5 %\tand\nmore", "plain τ − 5 %\tand\nmore"),
        ("\x1b[2J\x9b\x7f\r", r"\x1b[2J\x9b\x7f\r"),
        ("\u202eturned\u2028round", r"\u202eturned\u2028round"),
        ("latin\udcff", r"latin\udcff"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert one_line(text) == expected.replace("\n", r"\n")


def test_a_console_takes_no_markup_from_what_it_prints() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, width=80)
    console.print("[red]:smile: \x1b[31m[/red]")
    assert stream.getvalue() == "[red]:smile: \\x1b[31m[/red]\n"
