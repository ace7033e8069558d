"""What a run shows of its progress."""

from __future__ import annotations

import re
import sys
import time
from html import escape
from typing import Any, Protocol, TextIO

__all__ = [
    "NotebookProgress",
    "PlainProgress",
    "Progress",
    "Rate",
    "SilentProgress",
    "about",
    "as_progress",
    "duration",
    "one_line",
    "printable",
]

# Control characters but for tab and new line, marks that change the direction of writing, line
# separators, and the parts of a file's name that are no text.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Text that is safe to show in a terminal: names from files may hold escape sequences."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Text as :func:`printable` gives it, in one line."""
    return printable(text).replace("\n", "\\n")


class Progress(Protocol):
    """Receives the course of a run; an implementation only shows it."""

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        """A stage begins, of which ``done`` of ``total`` units are recorded already."""

    def advance(self, count: float = 1, note: str = "") -> None:
        """``count`` more units of the stage are done; a fraction is of a unit under way."""

    def message(self, text: str) -> None:
        """Show a text that is worth a line of its own."""


class SilentProgress:
    """Shows nothing."""

    def stage(self, name: str, total: int, done: int, unit: str) -> None: ...

    def advance(self, count: float = 1, note: str = "") -> None: ...

    def message(self, text: str) -> None: ...


def as_progress(progress: bool | Progress) -> Progress:
    """For True, bars in a notebook and plain lines on standard error elsewhere; none for False."""
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return SilentProgress()
    return NotebookProgress() if _in_notebook() else PlainProgress()


def _in_notebook() -> bool:
    """Whether this is a notebook's kernel, rather than a terminal."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


LEAST_SECONDS = 1.0
"""The fewest seconds to measure a rate over: in less, the clock's error outweighs the work."""


class Rate:
    """Units per hour and seconds left, from the units done since the stage began."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.began_with = total, done
        self.done: float = done
        self.started = time.monotonic()

    def add(self, count: float) -> None:
        """Count more units as done; fractions may stand for work that is not recorded yet."""
        self.done += count
        if abs(self.done - self.total) < 1e-6:  # fractions need not add up to the last digit
            self.done = self.total

    def text(self, unit: str) -> str:
        """The rate, such as ``"620 networks/h, 4 min left"``; empty before the first unit is done.

        The rate is left out before a second has passed.
        """
        fresh = self.done - self.began_with
        seconds = time.monotonic() - self.started
        if fresh == 0:
            return ""
        if seconds < LEAST_SECONDS:
            return f"took {duration(seconds)}" if self.done >= self.total else ""
        rate = f"{fresh / seconds * 3600:,.0f} {unit}/h"
        if self.done >= self.total:
            return f"{rate}, took {duration(seconds)}"
        return f"{rate}, {duration((self.total - self.done) * seconds / fresh)} left"


class PlainProgress:
    """Prints a line at a stage's start, at its end, and every ``interval`` seconds between."""

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval
        self._name, self._unit = "", ""
        self._rate = Rate(0, 0)
        self._last = 0.0

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self._name, self._unit = name, unit
        self._rate = Rate(total, done)
        self._last = time.monotonic()
        recorded = f", {done:,} recorded already" if done else ""
        self._print(f"{name}: {total:,} {unit}{recorded}")

    def advance(self, count: float = 1, note: str = "") -> None:
        self._rate.add(count)
        finished = self._rate.done == self._rate.total
        if finished or time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            parts = [self._rate.text(self._unit), note]
            self._print(
                f"{self._name}: {int(self._rate.done):,}/{self._rate.total:,} {self._unit}"
                + "".join(f", {part}" for part in parts if part)
            )

    def message(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        print(one_line(text), file=self._stream, flush=True)


class NotebookProgress:
    """Shows a bar for each stage below a notebook's cell, with the rate and the time left."""

    def __init__(self, interval: float = 0.3) -> None:
        self._interval = interval
        self._name, self._unit, self._note = "", "", ""
        self._rate = Rate(0, 0)
        self._last = 0.0
        self._shown: Any = None

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        from IPython.display import HTML, display

        self._name, self._unit, self._note = name, unit, ""
        self._rate = Rate(total, done)
        self._last = time.monotonic()
        self._shown = display(HTML(self._html()), display_id=True)

    def advance(self, count: float = 1, note: str = "") -> None:
        from IPython.display import HTML

        self._rate.add(count)
        self._note = note or self._note
        finished = self._rate.done == self._rate.total
        if self._shown is not None and (
            finished or time.monotonic() - self._last >= self._interval
        ):
            self._last = time.monotonic()
            self._shown.update(HTML(self._html()))

    def message(self, text: str) -> None:
        print(one_line(text), flush=True)

    def _html(self) -> str:
        rate = self._rate
        parts = [f"{int(rate.done):,}/{rate.total:,} {self._unit}", rate.text(self._unit)]
        words = ", ".join(part for part in [*parts, self._note] if part)
        return (
            f'<div><span style="display: inline-block; min-width: 14em">'
            f"{escape(one_line(self._name))}</span> "
            f'<progress value="{rate.done:.4g}" max="{max(rate.total, 1)}"></progress> '
            f"{escape(one_line(words))}</div>"
        )


def duration(seconds: float) -> str:
    """A time span in the two units that matter: ``"42 s"``, ``"4 min 10 s"``, ``"3 h 5 min"``.

    A span of less than a second is called that, never ``"0 s"``.
    """
    if 0 < seconds < 1:
        return "less than 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def about(seconds: float) -> str:
    """An estimated time span: ``"about 11 min"``, ``"about 2 h 20 min"``."""
    coarse = next(
        unit for span, unit in ((60, 1), (600, 10), (7200, 60), (1e99, 600)) if seconds < span
    )
    return f"about {duration(max(1, round(seconds / coarse) * coarse))}"
