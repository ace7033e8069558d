from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from trueoracle.cli.app import app
from trueoracle.cli.console import PlainConsole, table
from trueoracle.cli.fitted import FittedTable
from trueoracle.record.results import Results


def shown(made: FittedTable, width: int, *, terminal: bool = True) -> str:
    stream = io.StringIO()
    PlainConsole(file=stream, force_terminal=terminal, width=width, color_system=None).print(made)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


@pytest.fixture
def made() -> FittedTable:
    made = table(
        "name", "tau", "n", "what it is for", "rank",
        right=["tau", "n", "rank"], prose=["what it is for"], drops=["rank", "n"],
    )  # fmt: skip
    made.add_row("a-long-name", "−0.27", "32", "one line of words that can be broken", "1")
    made.add_row("other", "0.5", "1,000", "short", "–")
    return made


def test_a_wide_table_is_a_table(made: FittedTable) -> None:
    assert shown(made, 90).splitlines() == [
        "name           tau      n  what it is for                        rank",
        "a-long-name  −0.27     32  one line of words that can be broken     1",
        "other          0.5  1,000  short                                    –",
    ]


def test_prose_is_wrapped_first(made: FittedTable) -> None:
    text = shown(made, 65)
    assert re.search(
        "^a-long-name  −0.27     32  one line of words that can be +1$", text, re.MULTILINE
    )
    assert re.search("^ +broken *$", text, re.MULTILINE)
    assert "left out" not in text


def test_then_columns_are_left_out_and_named(made: FittedTable) -> None:
    text = shown(made, 46)
    assert text.splitlines()[0].split() == ["name", "tau", "what", "it", "is", "for"]
    assert text.endswith("left out for want of width: n, rank\n")
    assert shown(made, 53).endswith("left out for want of width: rank\n")


def test_then_rows_are_stacked_with_every_column(made: FittedTable) -> None:
    assert shown(made, 30).splitlines() == [
        "a-long-name",
        "  tau −0.27 · n 32 ·",
        "  what it is for one line of",
        "  words that can be broken ·",
        "  rank 1",
        "other",
        "  tau 0.5 · n 1,000 ·",
        "  what it is for short",
    ]


@pytest.mark.parametrize("width", [1, 7, 20, 38, 39, 45, 61, 200])
def test_nothing_is_cut_at_any_width(made: FittedTable, width: int) -> None:
    made.add_row("", "", "", "", "")
    made.title = "a title\x1b[31m of words"
    text = shown(made, width)
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    assert "\x1b" not in text
    whole = re.sub(r"\s", "", text)
    for cell in ("a-long-name", "−0.27", "onelineofwordsthatcanbebroken", "0.5", "atitle"):
        assert cell in whole or width in (38, 39, 45, 61, 200)


def test_a_file_gets_every_column_in_one_line(made: FittedTable) -> None:
    made.add_row("n" * 300, "", "", "", "")
    lines = shown(made, 100_000, terminal=False).splitlines()
    assert len(lines) == 4
    assert lines[0].split()[-1] == "rank"
    assert lines[3].rstrip() == "n" * 300


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "report",
        pytest.param("studies", marks=pytest.mark.slow),
        "criteria",
        pytest.param("reproduce", marks=pytest.mark.slow),
        pytest.param("inspect resnet20", marks=pytest.mark.slow),
        "search tiny --replay",
        pytest.param("bench", marks=pytest.mark.slow),
    ],
)
def test_no_command_cuts_anything_at_80_columns(
    words: str, finished: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TRUEORACLE_RUNS", "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    app(
        ["search", finished.folder.name, "--replay"] if "tiny" in words else words.split(),
        standalone_mode=False,
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert len(lines) > 1
    assert not [line for line in lines if re.search("…(?! )", line)]
    assert not [line for line in lines if cell_len(line.rstrip()) > 80]
