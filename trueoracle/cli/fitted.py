"""The one table of the command line: it fits the terminal, and nothing in it is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from trueoracle.analysis.numbers import ABSENT
from trueoracle.run.progress import one_line

__all__ = ["FittedTable"]

_GAP = 2
"""Spaces between two columns."""

_LEAST = 22
"""The fewest cells that a column of prose is wrapped to."""

_HARD = "\N{NO-BREAK SPACE}"


@dataclass
class FittedTable:
    """Headings and rows of text, shown as the width of the terminal allows.

    - Columns of ``prose`` are wrapped.
    - Where that is not enough, columns are left out in the order of ``drops``, and a line below the
      table names them.
    - Where that is not enough either, each row becomes a few lines: its first cell, and below it
      every other cell after its heading.

    Output that is no terminal (a file, a pipe) has every column, in lines of any length. Columns
    named in ``right`` hold numbers.
    """

    headings: tuple[str, ...]
    right: frozenset[str] = frozenset()
    prose: frozenset[str] = frozenset()
    drops: tuple[str, ...] = ()
    title: str = ""
    rows: list[tuple[tuple[str, ...], bool]] = field(default_factory=list)

    def add_row(self, *cells: str, bold: bool = False) -> None:
        """Add a row with one cell per heading."""
        self.rows.append((tuple(map(one_line, cells)), bold))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, and what is said above and below it."""
        if self.title:
            yield Text(one_line(self.title), style="italic")
        width, shown = options.max_width, list(range(len(self.headings)))
        if not console.is_terminal:
            widths = {column: self._natural(column) for column in shown}
            yield from self._printed(console, shown, widths)
            return
        left_out = []
        going = [self.headings.index(name) for name in self.drops if name in self.headings]
        while self._least(shown) > width and going:
            shown.remove(gone := going.pop(0))
            left_out.append(self.headings[gone])
        if self._least(shown) > width:
            yield from self._stacked(width)
            return
        yield from self._printed(console, shown, self._widths(shown, width))
        if left_out:
            names = ", ".join(name for name in self.headings if name in left_out)
            yield Text(f"left out for want of width: {names}", style="dim")

    def _natural(self, column: int) -> int:
        return max(
            cell_len(text) for text in (self.headings[column], *(r[column] for r, _ in self.rows))
        )

    def _narrowest(self, column: int) -> int:
        natural = self._natural(column)
        return min(natural, _LEAST) if self.headings[column] in self.prose else natural

    def _least(self, shown: Sequence[int]) -> int:
        """The width that the table needs at least, its prose wrapped."""
        return sum(map(self._narrowest, shown)) + _GAP * (len(shown) - 1)

    def _widths(self, shown: Sequence[int], width: int) -> dict[int, int]:
        """The width of each column; prose shares what the other columns leave it."""
        widths = {column: self._natural(column) for column in shown}
        prose = sorted(
            (column for column in shown if self.headings[column] in self.prose),
            key=widths.__getitem__,
        )
        room = width - _GAP * (len(shown) - 1) - sum(widths[c] for c in shown if c not in prose)
        for place, column in enumerate(prose):  # the narrowest first: it may need less than a share
            share = max(room // (len(prose) - place), self._narrowest(column))
            widths[column] = min(widths[column], share)
            room -= widths[column]
        return widths

    def _printed(
        self, console: Console, shown: Sequence[int], widths: dict[int, int]
    ) -> RenderResult:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
        for column in shown:
            name = self.headings[column]
            table.add_column(
                Text(name),
                justify="right" if name in self.right else "left",
                no_wrap=name not in self.prose,
                overflow="fold",
                width=widths[column],
            )
        for cells, bold in self.rows:
            table.add_row(*(Text(cells[c]) for c in shown), style="bold" if bold else None)
        whole = sum(widths.values()) + _GAP * len(widths)
        yield from console.render(table, console.options.update(width=whole))

    def _stacked(self, width: int) -> RenderResult:
        for cells, bold in self.rows:
            yield Text(cells[0], style="bold" if bold else "")
            named = list(zip(self.headings, cells, strict=True))[1:]
            # Lines are not broken at hard spaces, so that a number stays beside its heading.
            said = f"{_HARD}· ".join(
                f"{name} ".replace(" ", _HARD)
                + (cell if name in self.prose else cell.replace(" ", _HARD))
                for name, cell in named
                if cell not in ("", ABSENT)
            )
            for line in wrap(said, max(width - 2, 1), break_on_hyphens=False):
                yield Text(f"  {line.strip(_HARD).replace(_HARD, ' ')}")
