"""Tables of a user's own, from CSV or Parquet files, as the statistics read them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trueoracle.analysis.cells import plain_cells, plain_text
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError, first_line, shown, unknown
from trueoracle.files import parse_json

__all__ = ["read_tables"]

_XZ = b"\xfd7zXZ"
_PACKED: dict[bytes, Callable[[io.BytesIO], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    _XZ: lzma.LZMAFile,
}
"""What reads packed files, by how they begin."""

MOST_BYTES, MOST_CELLS = 2**28, 2**26
"""The most that a packed table comes to: thousands of times what 37 thousand networks take."""

_TOGETHER = 4096
"""How many rows of a Parquet table are unpacked at a time."""

MOST_FILTERS = 100_000
"""The most filters of a group: no layer has more."""

CANDIDATE_NAMES = ("candidate", "candidate_id", "id", "mask", "network_id")
SEED_NAMES = ("seed", "retraining_seed", "run", "repeat", "replicate", "trial")
"""Names by which the columns of candidates and of retrainings are found where none is named."""


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
    """The candidates in a file: a table per dense network and kind, by name ("" if there is one).

    The file is a CSV table (commas, semicolons or tabs between cells; a point or a comma in
    numbers; UTF-8, or UTF-16 with its mark; compressed or not) or a Parquet table.

    - ``x``: columns of scores;
    - ``y``: several columns of outcomes, one per retraining seed, or a single column, whose rows
      are told apart by the columns ``candidate`` and ``seed``. Where these two are not given, they
      are found by usual names, such as ``id`` and ``seed``. An infinite outcome is that of a
      network that diverged;
    - ``higher_is_better``: whether higher outcomes are better;
    - ``network``: the column that tells dense networks apart;
    - ``kind``: the column that tells kinds of pruning apart;
    - ``pruned``: the column of the filters that a candidate prunes: ``"0 3 7"``, or JSON that names
      them by group, ``{"conv1": [0, 3]}``;
    - ``exhaustive``: the rows are all ways to prune.

    Raises :class:`InputError`, in one line, for a file or column that cannot be read so, and where
    the same candidate has several rows and no column tells its retrainings apart.
    """
    for name in (*x, *y):
        if [*x, *y].count(name) > 1:
            raise InputError(f"the column {name!r} is named twice: each is one score, or one seed")
    identifying = [name for name in (candidate, seed, network, kind, pruned) if name is not None]
    named = [*x, *y, *identifying]
    frame = _read(path, named, [*x, *y])
    for name in named:
        if name not in frame.columns:
            raise unknown(f"column of {path}", name, map(str, frame.columns))
    if len(y) == 1:
        candidate, seed = _identified(frame, candidate, seed)
    if seed is not None and seed == candidate:
        raise InputError(f"{seed!r} cannot be both --candidate and --seed")
    if seed is not None and candidate is None:
        raise InputError("--seed needs --candidate: one row per candidate and seed")
    if seed is not None and len(y) > 1:
        raise InputError(f"with --seed there is one --y, got {len(y)}")
    for name in dict.fromkeys([*x, *y]):
        frame[name] = _numeric(frame, name, path)
    for column in {*identifying, *filter(None, (candidate, seed))}:
        if frame[column].isna().any():
            row = int(np.flatnonzero(frame[column].isna())[0]) + 2  # the header is line 1
            raise InputError(f"column {column!r} of {path} is empty in line {row}")
    apart = [name for name in (network, kind) if name is not None]
    parts = {"": frame}
    if apart:
        groups_of_rows = list(frame.groupby(apart))
        parts = {" ".join(map(str, label)): part for label, part in groups_of_rows}
        if len(parts) < len(groups_of_rows):
            raise InputError(f"{path}: two networks and kinds have one name together: rename them")
    parts = dict(sorted(parts.items(), key=lambda part: _as_counted(str(part[0]))))
    made = {}
    for label, part in parts.items():
        rows = part.reset_index(drop=True)
        outcomes = rows[list(y)].to_numpy(dtype=np.float64)
        if candidate is not None and seed is not None:
            rows, outcomes = _by_seed(rows, x, y[0], candidate, seed, path)
        else:
            _check_once(rows, x, candidate or pruned, path, named=candidate is not None)
        which: np.ndarray | None = None
        groups: tuple[int, ...] = ()
        if pruned is not None:
            which, groups = _pruned_filters(rows[pruned].tolist(), path, pruned)
            if not groups:
                raise InputError(f"column {pruned!r} of {path} names no filter in any row")
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


def _identified(
    frame: pd.DataFrame, candidate: str | None, seed: str | None
) -> tuple[str | None, str | None]:
    """The columns that tell candidates and seeds apart: those named, or else those found.

    They are found only together, and only where candidates do repeat, since a column of such a name
    may mean something else.
    """
    found = {str(name).strip().lower().replace(" ", "_"): str(name) for name in frame.columns}
    who = candidate or next((found[name] for name in CANDIDATE_NAMES if name in found), None)
    when = seed or next((found[name] for name in SEED_NAMES if name in found), None)
    if who is None or when is None or not frame[who].duplicated().any():
        return candidate, seed
    tells_apart = frame[when].nunique() > 1 and (seed or frame[when].duplicated().any())
    return (who, when) if tells_apart else (candidate, seed)


def _check_once(
    rows: pd.DataFrame, x: Sequence[str], column: str | None, path: Path, *, named: bool
) -> None:
    """Raise where a candidate has several rows, as where retrainings are taken for candidates."""
    names = {str(name).strip().lower().replace(" ", "_"): str(name) for name in rows.columns}
    column = column or next((names[name] for name in CANDIDATE_NAMES if name in names), None)
    if column is not None:
        counts = rows[column].value_counts()
        if len(counts) and counts.iloc[0] > 1:
            raise InputError(
                f"{path}: the same candidate appears {counts.iloc[0]} times ({column} "
                f"{counts.index[0]!r}): name the column of retraining seeds with --seed, and that "
                "of candidates with --candidate"
            )
    if named or len(rows) < 6:
        return
    times = rows[list(x)].value_counts(dropna=False)
    if times.iloc[0] > 1 and (times == times.iloc[0]).all() and len(times) > 1:
        raise InputError(
            f"{path}: the same candidate appears {times.iloc[0]} times, if its scores tell it: "
            "name the columns of candidates and of retraining seeds with --candidate and --seed, "
            "or the first alone if each row is a candidate of its own"
        )


def _read(path: Path, wanted: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """The file's cells as text, since "1e2", "100" and "0100" name different candidates.

    ``numbers`` are those of the ``wanted`` columns that may have decimal commas.
    """
    try:
        data = _bytes(path)
        if data[:4] == b"PAR1":
            return _checked(_as_text(_parquet(data)), path)
        text = _decoded(data)
        separator = _separator(text, wanted)
        frame = plain_cells(pd.read_csv(io.StringIO(text), dtype=str, sep=separator))
        header = _header(text, separator)
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except Exception as error:  # from file system, decompression, encoding or parser
        raise InputError(f"{path} is not a CSV table: {first_line(error)}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path} is not a CSV table: its rows have more fields than its header")
    for name in wanted:
        if header.count(name) > 1:  # pandas would rename the others
            raise InputError(f"{path} has {header.count(name)} columns named {name!r}")
    if separator != ",":
        for name in {*numbers} & {*frame.columns}:
            frame[name] = _with_points(frame[name])
    return _checked(frame, path)


def _checked(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    if frame.empty:
        raise InputError(f"{path} has no rows")
    return frame


def _bytes(path: Path) -> bytes:
    """The file's content, decompressed; raises ValueError where it is too much.

    A few bytes may come to more than there is memory for.
    """
    data = path.read_bytes()
    if data.startswith(_XZ):  # its dictionary may be too large
        lzma.LZMADecompressor(memlimit=MOST_BYTES).decompress(data, max_length=1)
    opener = next((opener for mark, opener in _PACKED.items() if data.startswith(mark)), None)
    if opener is None:
        return data
    with opener(io.BytesIO(data)) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes: unpack it first")
    return content


def _parquet(data: bytes) -> pd.DataFrame:
    """A Parquet table; raises ValueError where its few bytes come to far too much."""
    import pyarrow as pa
    from pyarrow import parquet

    about = parquet.read_metadata(io.BytesIO(data))
    leaves = [about.schema.column(place) for place in range(about.num_columns)]
    # A text that many cells share is held once.
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    file = parquet.ParquetFile(io.BytesIO(data), read_dictionary=texts)
    cells = about.num_rows * about.num_columns
    if cells > MOST_CELLS:
        raise ValueError(f"it says that it has {cells:,} cells, more than {MOST_CELLS:,}")
    size, parts = 0, []
    for part in file.iter_batches(batch_size=_TOGETHER):
        size += part.nbytes
        if size > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
        parts.append(part)
    made: pd.DataFrame = pa.Table.from_batches(parts, file.schema_arrow).to_pandas()
    return made


def _decoded(data: bytes) -> str:
    """UTF-16 where its mark says so, else UTF-8."""
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def _header(text: str, separator: str) -> list[str]:
    first = next(csv.reader(io.StringIO(text), delimiter=separator), [])
    return [plain_text(name) for name in first]


def _separator(text: str, wanted: Sequence[str]) -> str:
    """The separator of cells: the one by which the header has the most of the wanted columns."""

    def fields(separator: str) -> tuple[int, int]:
        header = _header(text, separator)
        return len({*header} & {*wanted}), len(header)

    return max((",", ";", "\t"), key=fields)


_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")


def _with_points(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column with decimal points for decimal commas; any column without these as it is."""
    cells = column.dropna()
    commas = cells.str.contains(",", regex=False)
    if not commas.any() or cells.str.contains(".", regex=False).any():
        return column
    if not cells[commas].map(lambda cell: bool(_COMMA.fullmatch(cell))).all():
        return column
    return column.str.replace(",", ".", regex=False)


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells as a CSV file would hold them: numbers in full, lists and mappings as JSON."""
    size = 0

    def text(cell: Any) -> str | None:
        if isinstance(cell, np.ndarray):
            cell = cell.tolist()
        if isinstance(cell, list | dict):
            cell = json.dumps(cell)
        elif pd.isna(cell):
            return None
        nonlocal size
        size += len(said := str(cell))
        if size > MOST_BYTES:  # many cells may share a long text
            raise ValueError(f"its cells come to more than {MOST_BYTES:,} characters")
        return said

    made: pd.DataFrame = frame.astype(object).map(text)
    made.columns = [str(name) for name in frame.columns]
    return made.reset_index(drop=True)


def _numeric(frame: pd.DataFrame, name: str, path: Path) -> pd.Series[Any]:
    try:
        return pd.Series([_number(cell) for cell in frame[name]], dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"column {name!r} of {path} is not numeric: {first_line(error)}"
        ) from error


def _as_counted(name: str) -> tuple[float, str]:
    """The key that sorts names: numbers by their value, before all other names."""
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
    """Which filters ``[P, F]`` each row prunes, and how many filters each group has.

    A group is taken to end with the largest filter that some row names.
    """
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
        read = parse_json(text) if text[:1] in "{[" else re.split(r"[,;\s]+", text)
        groups = read if isinstance(read, dict) else {"": read}
        if any(isinstance(which, str) for which in groups.values()):
            raise ValueError(text)
        way = {str(name): [_filter(one) for one in which] for name, which in groups.items()}
    except (ValueError, TypeError, AttributeError) as error:
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
    """A filter's number; raises ValueError for anything that is no whole number."""
    if isinstance(given, bool) or not re.fullmatch("-?[0-9]+", str(given)):
        raise ValueError(given)
    return int(str(given))
