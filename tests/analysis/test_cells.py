"""Cells that a spreadsheet would compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.analysis.cells import plain_cells, plain_text, shown_cells
from trueoracle.analysis.own import read_tables


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("'=1", "''=1"),
        ("-1.5", "-1.5"),
        ("+1e-7", "+1e-7"),
        ("conv1=3", "conv1=3"),
        ("'quoted'", "'quoted'"),
        ("", ""),
    ],
)
def test_a_formula_is_shown_and_read_back(text: str, shown: str) -> None:
    frame = pd.DataFrame({text: [text, None], "x": [-1.0, np.nan]})
    made = shown_cells(frame)
    assert list(made.columns) == [shown, "x"]
    assert made.iloc[0, 0] == shown
    assert made["x"].equals(frame["x"])
    pd.testing.assert_frame_equal(plain_cells(made), frame)


@given(st.text(st.sampled_from("'=+-@\t\r\na1.e"), max_size=8))
def test_every_text_comes_back(text: str) -> None:
    shown = shown_cells(pd.DataFrame({"a": [text]}))["a"].iloc[0]
    assert plain_text(shown) == text


def test_a_table_with_such_names_is_analysed(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    frame = pd.DataFrame({"id": [f"=a{i}" for i in range(9)], "=x": range(9), "@y": range(9)})
    shown_cells(frame).to_csv(path, index=False)
    assert path.read_text().startswith("id,'=x,'@y\n'=a0,0,0\n")
    (found,) = read_tables(path, ["=x"], ["@y"], higher_is_better=True).values()
    assert list(found.scores) == ["=x"]
