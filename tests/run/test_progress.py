from __future__ import annotations

import io
import sys

import pytest

from trueoracle.cli.console import BarProgress, shown_progress
from trueoracle.run import progress as module
from trueoracle.run.progress import PlainProgress, Rate, SilentProgress, about, duration


class Clock:
    """A monotonic clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "less than 1 s"),
        (1, "1 s"),
        (42, "42 s"),
        (60, "1 min"),
        (250, "4 min 10 s"),
        (11100, "3 h 5 min"),
    ],
)
def test_durations_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_rate_counts_only_what_was_done_now(clock: Clock) -> None:
    rate = Rate(total=100, done=40)
    assert rate.text("networks") == ""
    clock.now = 60
    rate.done = 60
    assert rate.text("networks") == "1,200 networks/h, 2 min left"
    clock.now, rate.done = 180, 100
    assert rate.text("networks") == "1,200 networks/h, took 3 min"


def test_no_rate_is_told_of_hardly_any_time(clock: Clock) -> None:
    rate = Rate(total=252, done=0)
    rate.add(126)
    assert rate.text("candidates") == ""  # at the same moment
    clock.now = 0.06
    assert rate.text("candidates") == ""
    rate.add(126)
    assert rate.text("candidates") == "took less than 1 s"
    clock.now = 2
    assert rate.text("candidates") == "453,600 candidates/h, took 2 s"
    stream = io.StringIO()
    shown = PlainProgress(stream, interval=10)
    shown.stage("score by l1", 252, 0, "candidates")
    clock.now += 0.01
    shown.advance(252)
    assert stream.getvalue().splitlines()[-1] == (
        "score by l1: 252/252 candidates, took less than 1 s"
    )


def test_plain_lines_come_at_the_start_the_end_and_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    shown = PlainProgress(stream, interval=10)
    shown.stage("retrain", 5, 1, "networks")
    for now in (1, 2, 12, 13):
        clock.now = now
        shown.advance(note="diverged" if now == 12 else "")
    shown.message("done")
    assert stream.getvalue().splitlines() == [
        "retrain: 5 networks, 1 recorded already",
        "retrain: 4/5 networks, 900 networks/h, 4 s left, diverged",
        "retrain: 5/5 networks, 1,108 networks/h, took 13 s",
        "done",
    ]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with shown_progress(quiet=False) as shown:
        assert isinstance(shown, BarProgress)
        shown.stage("retrain", 4, 1, "networks")
        shown.advance(2, note="one diverged")
        clock.now = 30
        shown.advance()
        shown.message("a line [not markup]")
    text = stream.getvalue()
    assert "retrain" in text
    assert "4/4" in text
    assert "360 networks/h, took 30 s" in text
    assert "a line [not markup]" in text


def test_quiet_shows_nothing() -> None:
    with shown_progress(quiet=True) as shown:
        assert isinstance(shown, SilentProgress)
        shown.stage("retrain", 4, 1, "networks")
        shown.advance()
        shown.message("nothing")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (42, "42 s"), (94, "1 min 30 s"), (683, "11 min"), (8500, "2 h 20 min")],
)
def test_an_estimate_is_coarse(seconds: float, text: str) -> None:
    assert about(seconds) == f"about {text}"
