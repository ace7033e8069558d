"""Cells of CSV files that a spreadsheet would compute, written so that it shows them.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, which may
run programs or send what is in other cells away; names from files of others may be such cells. In
CSV files such a text has an apostrophe in front, as spreadsheets themselves mark a text, and so has
a text that begins with apostrophes before such a sign: so that taking one apostrophe away gives
every text back. Numbers stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

__all__ = ["plain_cells", "plain_text", "shown_cells"]

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_MARKED = re.compile(r"'+[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]inf")


def shown_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for a CSV file, in whose texts and names of columns nothing is a formula."""
    return _with_texts(frame, lambda text: f"'{text}" if _is_formula(text) else text)


def plain_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The table that :func:`shown_cells` was given, as read from a CSV file."""
    return _with_texts(frame, plain_text)


def plain_text(text: str) -> str:
    """One text that :func:`shown_cells` has written, as it was."""
    return text[1:] if _MARKED.match(text) else text


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)


def _with_texts(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    made = frame.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for place, dtype in enumerate(frame.dtypes):
        if dtype == object or isinstance(dtype, pd.StringDtype):
            column = frame.iloc[:, place]
            texts = column.map(lambda cell: change(cell) if isinstance(cell, str) else cell)
            made.isetitem(place, texts.astype(dtype))
    return made
