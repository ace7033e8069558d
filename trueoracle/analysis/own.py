"""Tables of a user's own, from CSV files, as the statistics read them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError, first_line, shown, unknown

__all__ = ["read_tables"]

MOST_FILTERS = 100_000
"""Of a group: no layer has more."""


def read_tables(
    path: Path,
    x: Sequence[str],
    y: Sequence[str],
    *,
    higher_is_better: bool,
    exhaustive: bool = False,
    candidate: str | None = None,
    seed: str | None = None,
    network: str | None = None,
    kind: str | None = None,
    pruned: str | None = None,
) -> dict[str, CandidateTable]:
    """The candidates in a CSV file: a table per dense network and kind, by their names ("": one).

    - ``x``: columns of scores;
    - ``y``: several columns of outcomes, one per retraining seed, or a single one, whose rows are
      told apart by the columns ``candidate`` and ``seed``;
    - ``higher_is_better``: of the outcomes;
    - ``network``: the column that tells dense networks apart;
    - ``kind``: the column that tells kinds of pruning apart;
    - ``pruned``: the column of the filters that a candidate prunes: ``"0 3 7"``, or JSON that names
      them by group, ``{"conv1": [0, 3]}``;
    - ``exhaustive``: the rows are all ways to prune.

    Raises :class:`InputError`, in one line, for a file or column that cannot be read so.
    """
    identifying = [name for name in (candidate, seed, network, kind, pruned) if name is not None]
    named = [*x, *y, *identifying]
    frame = _read(path, named)
    for name in named:
        if name not in frame.columns:
            raise unknown(f"column of {path}", name, map(str, frame.columns))
    if (candidate is None) != (seed is None):
        raise InputError("--candidate and --seed go together: one row per candidate and seed")
    if seed is not None and len(y) > 1:
        raise InputError(f"with --seed there is one --y, got {len(y)}")
    for name in dict.fromkeys([*x, *y]):
        frame[name] = _numeric(frame, name, path)
    for column in identifying:
        if frame[column].isna().any():
            row = int(np.flatnonzero(frame[column].isna())[0]) + 2  # the header is line 1
            raise InputError(f"column {column!r} of {path} is empty in line {row}")
    apart = [name for name in (network, kind) if name is not None]
    parts = {"": frame}
    if apart:
        parts = {" ".join(map(str, label)): part for label, part in frame.groupby(apart)}
    parts = dict(sorted(parts.items(), key=lambda part: _as_counted(str(part[0]))))
    made = {}
    for label, part in parts.items():
        rows = part.reset_index(drop=True)
        outcomes = rows[list(y)].to_numpy(dtype=np.float64)
        if candidate is not None and seed is not None:
            rows, outcomes = _by_seed(rows, x, y[0], candidate, seed, path)
        which: np.ndarray | None = None
        groups: tuple[int, ...] = ()
        if pruned is not None:
            which, groups = _pruned_filters(rows[pruned].tolist(), path, pruned)
        made[str(label)] = CandidateTable(
            outcomes=outcomes,
            scores={name: rows[name].to_numpy(dtype=np.float64) for name in x},
            higher_is_better=higher_is_better,
            sampled=not exhaustive,
            pruned=which,
            groups=groups,
            kind="" if kind is None else str(rows[kind].iloc[0]),
        )
    return made


def _read(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """The file as text: "1e2", "100" and "0100" name different candidates."""
    try:
        frame = pd.read_csv(path, dtype=str)
        header = pd.read_csv(path, dtype=str, header=None, nrows=1).iloc[0].tolist()
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except Exception as error:  # of the file system, a compression, an encoding, the parser
        raise InputError(f"{path} is not a CSV table: {first_line(error)}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path} is not a CSV table: its rows have more fields than its header")
    if frame.empty:
        raise InputError(f"{path} has no rows")
    for name in wanted:
        if header.count(name) > 1:  # pandas would rename the others
            raise InputError(f"{path} has {header.count(name)} columns named {name!r}")
    return frame


def _numeric(frame: pd.DataFrame, name: str, path: Path) -> pd.Series[Any]:
    try:
        return pd.Series([_number(cell) for cell in frame[name]], dtype=np.float64)
    except ValueError as error:
        raise InputError(f"column {name!r} of {path} is not numeric: {error}") from error


def _as_counted(name: str) -> tuple[float, str]:
    """The order of names: numbers as they are counted, before all others."""
    try:
        return _number(name), name
    except ValueError:
        return math.inf, name


def _number(cell: object) -> float:
    """A cell's number, NaN where it is empty; raises ValueError for what float64 does not hold."""
    if not isinstance(cell, str):
        return float("nan")
    text, number = cell.strip(), float(cell)
    if "_" in text:  # Python's own way to write thousands
        raise ValueError(f"could not convert string to float: {cell!r}")
    if text.lstrip("+-").isdecimal() and (np.isinf(number) or int(number) != int(text)):
        raise ValueError(f"{text[:40]} has the same float64 as {number:.17g}: scale it first")
    return number


def _by_seed(
    rows: pd.DataFrame, x: Sequence[str], y: str, candidate: str, seed: str, path: Path
) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per candidate, and its outcomes by seed."""
    twice = rows.duplicated([candidate, seed])
    if twice.any():
        first = rows[twice].iloc[0]
        raise InputError(
            f"{path} has two rows of candidate {first[candidate]!r} with seed {first[seed]!r}"
        )
    for name in x:
        if (rows.groupby(candidate)[name].nunique(dropna=False) > 1).any():
            raise InputError(f"{path}: the score {name!r} of a candidate differs between its seeds")
    wide = rows.pivot(index=candidate, columns=seed, values=y)
    one_each = rows.drop_duplicates(candidate).reset_index(drop=True)
    return one_each, wide.reindex(one_each[candidate]).to_numpy(dtype=np.float64)


def _pruned_filters(
    cells: Sequence[object], path: Path, column: str
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which filters ``[P, F]`` each row prunes, and how many each group has, as far as named."""
    ways = [_way(cell, path, column) for cell in cells]
    names = list(dict.fromkeys(name for way in ways for name in way))
    sizes = {name: 1 + max(max(way.get(name, [0]), default=0) for way in ways) for name in names}
    pruned = np.zeros((len(ways), sum(sizes.values())), dtype=bool)
    for row, way in enumerate(ways):
        start = 0
        for name, size in sizes.items():
            pruned[row, [start + filter_ for filter_ in way.get(name, [])]] = True
            start += size
    return pruned, tuple(sizes.values())


def _way(cell: object, path: Path, column: str) -> dict[str, list[int]]:
    text = str(cell).strip()
    try:
        read = json.loads(text) if text[:1] in "{[" else re.split(r"[,;\s]+", text)
        groups = read if isinstance(read, dict) else {"": read}
        way = {str(name): [_filter(one) for one in which] for name, which in groups.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"column {column!r} of {path} takes pruned filters such as '0 3 7' or "
            f'{{"conv1": [0, 3]}}, got {shown(text)}'
        ) from error
    if any(not 0 <= one < MOST_FILTERS for which in way.values() for one in which):
        raise InputError(
            f"column {column!r} of {path} has a filter that is not from 0 to {MOST_FILTERS - 1:,}: "
            f"{shown(text)}"
        )
    return way


def _filter(given: object) -> int:
    """A filter's number; raises ValueError for what is no whole number."""
    number = int(str(given))
    if isinstance(given, bool):
        raise ValueError(given)
    return number
