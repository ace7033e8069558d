"""What a study's record holds: its tables, what their columns may hold, and their checksums.

This list is the only one: tables are made from it, what is read is checked against it, and a
checksum covers the columns in the list's order. The task's metrics decide the columns of what is
measured.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from trueoracle.errors import InputError
from trueoracle.files import parse_json
from trueoracle.tasks.metric import SPLITS, Metric, check_metrics

__all__ = [
    "BLOCKS",
    "CHECKSUMS",
    "CHUNK_THREADS",
    "COSTS",
    "COUNTED",
    "LATENCY",
    "MEASURED",
    "METRICS",
    "MOST_AT_ONCE",
    "NOISE",
    "UNTOLD",
    "Column",
    "Columns",
    "Seal",
    "Table",
    "Task",
    "facts_fault",
    "json_object",
    "packed",
    "pruned_fault",
    "tables",
    "task_of",
    "unpacked",
]

Columns = dict[str, Any]
"""Rows by column: numbers as ``float64 [R]``, NaN where one is missing; all else as lists."""

_MOST_WHOLE = 2**31 - 1
_MOST_COST = 2**63 - 1  # what SQLite holds
_DEEPEST_JSON = 32
_MOST_FILTERS = 2**20
_MOST_CELLS = 2**33  # candidates times filters; the statistics hold a table of this size
_Kind = Literal["text", "whole", "number", "object", "packed"]
_SQL_TYPES = {
    "text": "TEXT",
    "object": "TEXT",
    "whole": "INTEGER",
    "number": "REAL",
    "packed": "BLOB",
}
_PACKED = "<f4"


@dataclass(frozen=True)
class Column:
    """One column: what its values may be.

    The kind ``number`` may always be absent, which stands for NaN. ``object`` is text that is a
    JSON object. ``packed`` is any count of numbers, a float32 each, which :func:`unpacked` reads.
    ``least`` and ``most`` bound whole numbers and numbers; ``since`` is the first format that has
    the column.
    """

    name: str
    kind: _Kind
    optional: bool = False
    least: float = 0
    most: float = _MOST_WHOLE
    since: int = 1

    @property
    def sql(self) -> str:
        return f"{self.name} {_SQL_TYPES[self.kind]}"

    @property
    def expected(self) -> str:
        """What the column's values may be, in words."""
        words = {
            "text": "text",
            "object": "a JSON object",
            "whole": f"a whole number from {self.least:.0f} to {self.most:.0f}",
            "number": f"a number from {self.least:g} to {self.most:g}",
            "packed": "numbers of four bytes each",
        }[self.kind]
        return f"{words}, or nothing" if self.optional or self.kind == "number" else words

    def plain(self, values: Iterable[Any]) -> list[str | int | float | bytes | None]:
        """Values as SQLite returns them."""
        if self.kind == "number":
            # NaN becomes None; adding zero turns a negative zero positive, as SQLite does.
            return [None if v is None or v != v else float(v) + 0.0 for v in values]
        kind = {"whole": int, "packed": bytes}.get(self.kind, str)
        return [None if v is None or v != v else kind(v) for v in values]

    def array(self, values: Sequence[Any]) -> Any:
        """The values for :data:`Columns`; raises :class:`ValueError` naming one not allowed."""
        kinds: dict[str, set[type]] = {"whole": {int}, "number": {int, float}, "packed": {bytes}}
        allowed = kinds.get(self.kind, {str})
        if self.optional or self.kind == "number":
            allowed = allowed | {type(None)}
        if set(map(type, values)) - allowed:
            raise self._wrong(next(v for v in values if type(v) not in allowed))
        if self.kind == "number":
            numbers = np.array(values, dtype=np.float64) + 0.0
            outside = (numbers < self.least) | (numbers > self.most)
            if outside.any():
                raise self._wrong(values[int(np.argmax(outside))])
            return numbers
        if self.kind == "whole":
            for value in (v for v in _extremes(values) if not self.least <= v <= self.most):
                raise self._wrong(value)
        if self.kind == "object":
            for value in values:
                if value is not None and json_object(value) is None:
                    raise self._wrong(value)
        if self.kind == "packed":
            for value in values:
                if value is not None and len(value) % np.dtype(_PACKED).itemsize:
                    raise self._wrong(value)
        return list(values)

    def _wrong(self, value: object) -> ValueError:
        shown = f"{type(value).__name__} {str(value)[:40]!r}"
        return ValueError(f"{self.name} is {shown}, expected {self.expected}")

    def bytes(self, values: Any) -> bytes:
        """The bytes that a checksum covers: those of the values and nothing else."""
        if self.kind == "number":
            numbers = np.asarray(values, dtype="<f8")
            return np.where(np.isnan(numbers), np.nan, numbers).astype("<f8").tobytes()
        if self.kind == "packed":
            values = [None if value is None else value.hex() for value in values]
        return json.dumps(list(values)).encode()


def packed(numbers: Sequence[float] | np.ndarray) -> bytes:
    """Numbers as a column of kind ``packed`` holds them."""
    with np.errstate(over="ignore"):  # a number that is too large becomes infinite
        return np.asarray(numbers, dtype=np.float64).astype(_PACKED).tobytes()


def unpacked(content: bytes) -> np.ndarray:
    """The numbers that :func:`packed` was given, as float64 with the precision of float32."""
    return np.frombuffer(content, dtype=_PACKED).astype(np.float64)


def _extremes(values: Sequence[Any]) -> list[int]:
    present = [value for value in values if value is not None]
    return [min(present), max(present)] if present else []


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text holds; None for anything else, and for one nested too deep."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and _is_plain(value, _DEEPEST_JSON) else None


def _is_plain(value: object, depth: int) -> bool:
    """Whether a value is nested no deeper than ``depth``, and its numbers are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_plain(one, depth - 1) for one in inner)


UNTOLD: dict[str, Any] = {
    **dict.fromkeys(("trueoracle", "torch", "python", "device", "threads"), "unknown"),
    "git_commit": None,
}
"""The facts that every sitting notes, as they are given where a record of others lacks them."""

NOISE = "noise"
"""The fact that :func:`trueoracle.criteria.noise.loss_noise` gives."""


LATENCY = "latency"
"""The fact that :func:`trueoracle.run.latency.latencies` gives."""


CHUNK_THREADS = "chunk_threads"
"""The fact that says on how many threads an executor retrained each chunk of networks."""

MOST_AT_ONCE = "most_at_once"
"""The fact that says how many networks memory held at once, where more were tried."""


def facts_fault(facts: Mapping[str, Any]) -> str:
    """What is wrong with a sitting's facts, as far as they are read back; empty where nothing is.

    ``skipped`` has reasons by criterion, ``adopted`` has rows by folder, and ``engine`` is a name.
    ``chance`` is the headline metric without any learning, ``data`` what a report says of text and
    questions, ``noise`` how far pruned losses differ by the choice of examples alone, and
    ``latency`` how long networks take.
    """
    if not isinstance(facts.get("git_commit"), str | None):
        return f"facts.git_commit is {str(facts['git_commit'])[:40]!r}, expected a text"
    if not isinstance(facts.get("data", {}), dict):
        return f"facts.data is {str(facts['data'])[:40]!r}, expected an object"
    for name, kind, inner in (("skipped", dict, str), ("adopted", dict, int)):
        value = facts.get(name, {})
        if not isinstance(value, kind) or not all(isinstance(v, inner) for v in value.values()):
            return f"facts.{name} is {str(value)[:40]!r}, expected an object of {inner.__name__}"
    noise = facts.get(NOISE, {})
    if not isinstance(noise, dict) or any(type(v) not in (int, float) for v in noise.values()):
        return f"facts.{NOISE} is {str(noise)[:40]!r}, expected an object of numbers"
    if LATENCY in facts and not _are_latencies(facts[LATENCY]):
        return f"facts.{LATENCY} is {str(facts[LATENCY])[:40]!r}, expected lists of equal length"
    if not isinstance(facts.get("engine", ""), str):
        return f"facts.engine is {str(facts['engine'])[:40]!r}, expected a name"
    if type(facts.get("chance", 0.0)) not in (int, float):
        return f"facts.chance is {str(facts['chance'])[:40]!r}, expected a number"
    return ""


_LATENCIES = ("batch", "repeats", "dense", "pruned")


def _are_latencies(value: object) -> bool:
    """Whether a fact has the lists of latencies, of finite numbers from zero on."""
    if not isinstance(value, dict) or set(value) != set(_LATENCIES):
        return False
    if not all(isinstance(one, list | tuple) for one in value.values()):
        return False
    numbers = [number for one in value.values() for number in one]
    return len({len(one) for one in value.values()}) == 1 and all(
        type(one) in (int, float) and 0 <= one < math.inf for one in numbers
    )


COUNTED = {"structured": "filters by group", "depth": "layers by list"}
"""The kinds of pruning whose candidates name numbers, and what these numbers stand for."""


def pruned_fault(kind: str, pruned: Sequence[Mapping[str, Any]], parameters: int | None) -> str:
    """What is wrong with what the candidates prune; empty where nothing is.

    Candidates that prune filters name the same groups, and as many different filters of each, by
    numbers from 0 that are below the network's ``parameters``. For whole layers, the same holds by
    list. For single weights, a candidate has the number of the ``mask`` and the ``sparsity`` by
    layer.
    """
    groups = (
        {name: len(v) for name, v in pruned[0].items() if isinstance(v, list)} if pruned else {}
    )
    most = min(parameters or _MOST_FILTERS, _MOST_FILTERS, _MOST_CELLS // max(len(pruned), 1))
    for one in pruned:
        if kind in COUNTED:
            is_right = {n: len(v) for n, v in one.items() if isinstance(v, list)} == groups
            is_right = is_right and len(one) == len(groups) > 0
            is_right = is_right and all(_are_filters(v, most) for v in one.values())
        else:
            sparsity = one.get("sparsity")
            is_right = set(one) == {"mask", "sparsity"} and isinstance(one["mask"], str)
            is_right = (
                is_right
                and isinstance(sparsity, dict)
                and all(type(v) in (int, float) and 0 <= v <= 1 for v in sparsity.values())
            )
        if not is_right:
            what = COUNTED.get(kind) or "a mask and its sparsity"
            return f"pruned is {json.dumps(one)[:60]}, expected {what}"
    return ""


def _are_filters(numbers: Sequence[Any], most: int) -> bool:
    whole = all(type(n) is int and 0 <= n < most for n in numbers)
    return whole and 0 < len(set(numbers)) == len(numbers)


@dataclass(frozen=True)
class Table:
    """One table: ``key`` is unique and sorts its rows.

    ``apart`` is the column whose value all rows of one checksum share, which are written, dropped
    and made again together. ``costs`` says that the table has parameters and MACs, of which a row
    has both or neither. ``first`` is the first format that has the table.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    apart: str | None = None
    costs: bool = False
    first: int = 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def sql(self) -> str:
        """The statement that makes the table."""
        chunk = () if "chunk" in self.names else (_CHUNK,)
        columns = [column.sql for column in (*self.columns, *chunk)]
        by_row = self.key == ("id",)
        if by_row:  # numbered by SQLite
            columns[0] += " PRIMARY KEY"
        elif self.key:
            columns.append(f"PRIMARY KEY ({', '.join(self.key)})")
        without = " WITHOUT ROWID" if self.key and not by_row else ""
        return f"CREATE TABLE {self.name} ({', '.join(columns)}){without}"

    def since(self, version: int) -> tuple[Column, ...]:
        """The columns that a record of this format has."""
        return tuple(column for column in self.columns if column.since <= version)

    def plain(self, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Rows as SQLite returns them, sorted by their key."""
        columns = zip(self.columns, zip(*rows, strict=True), strict=True) if rows else ()
        made = list(zip(*(column.plain(values) for column, values in columns), strict=True))
        places = [self.names.index(name) for name in self.key]
        return sorted(made, key=itemgetter(*places)) if places else made

    def read(self, rows: Sequence[Sequence[Any]], columns: Sequence[Column]) -> Columns:
        """Rows by column; columns that an older format lacks are empty.

        Raises :class:`ValueError` naming a column, what it holds, and what it should hold.
        """
        by_column = list(zip(*rows, strict=True)) or [()] * len(columns)
        read = {c.name: c.array(values) for c, values in zip(columns, by_column, strict=True)}
        made = {name: read.get(name, [None] * len(rows)) for name in self.names}
        if self.costs:
            for parameters, macs in zip(made["parameters"], made["macs"], strict=True):
                if (parameters is None) != (macs is None):
                    raise ValueError(
                        f"parameters is {parameters} and macs is {macs}, expected both or neither"
                    )
        return made


@dataclass(frozen=True)
class Seal:
    """The checksum of the rows of one table that one commit wrote (its ``chunk``).

    ``network`` is the SHA-256 of the dense network that was recorded at that time, to which the
    rows' scores and outcomes belong. ``later`` says that the rows were recorded before checksums
    were kept.
    """

    chunk: int
    table: str
    rows: int
    network: str | None
    later: int
    sha256: str

    @classmethod
    def of(
        cls,
        table: Table,
        version: int,
        chunk: int,
        network: str | None,
        later: int,
        columns: Columns,
    ) -> Seal:
        """The seal of rows in a record of this format; the rows are sorted by the table's key."""
        count = len(next(iter(columns.values())))
        own = table.since(version)
        said = [table.name, [column.name for column in own], chunk, count, network, later]
        digest = hashlib.sha256(json.dumps(said).encode())
        for column in own:
            digest.update(column.bytes(columns[column.name]))
        return cls(chunk, table.name, count, network, later, digest.hexdigest())


_CHUNK = Column("chunk", "whole", most=_MOST_COST)

_SECONDS = Column("seconds", "number", most=np.inf)
COSTS = ("parameters", "macs")
"""The columns of what a network costs."""

_COSTS = (
    Column("parameters", "whole", optional=True, least=1, most=_MOST_COST, since=2),
    Column("macs", "whole", optional=True, most=_MOST_COST, since=2),
)
_CANDIDATE, _SEED = Column("candidate", "text"), Column("seed", "whole")


def _any_number(name: str) -> Column:
    return Column(name, "number", least=-np.inf, most=np.inf)


METRICS = Table(
    "metrics",
    (
        Column("position", "whole"),
        Column("task", "text"),
        Column("name", "text"),
        Column("label", "text"),
        Column("unit", "text"),
        Column("better", "text"),
        _any_number("low"),
        _any_number("high"),
        Column("exponential", "text"),
    ),
    ("position",),
    first=4,
)
"""The task's name and what the task measures: one row per metric, the loss first."""


BLOCKS = Table(
    "blocks",
    (
        Column("split", "text"),
        Column("position", "whole"),
        Column("examples", "whole", least=1),
    ),
    ("split", "position"),
    first=5,
)
"""The blocks of examples, each with its split and its number of examples.

The columns ``blocks`` of other tables have the sums over each block: split by split in the order of
:data:`SPLITS`, within a split metric by metric, and within a metric block by block.
"""

_SUMS = Column("blocks", "packed", optional=True, since=5)


@dataclass(frozen=True)
class Task:
    """What a record says of a study's task: its name, and what it measures of a network."""

    name: str
    metrics: tuple[Metric, ...]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows of :data:`METRICS`."""
        return [
            (place, self.name, m.name, m.label, m.unit, m.better, m.low, m.high, m.exponential)
            for place, m in enumerate(self.metrics)
        ]


def task_of(columns: Columns) -> Task | None:
    """The task that the table of metrics names; None where the table is empty.

    Raises :class:`ValueError` for rows that make no task.
    """
    names = set(columns["task"])
    if not names:
        return None
    fields = [columns[column.name] for column in METRICS.columns[2:]]
    try:
        metrics = check_metrics([Metric(*row) for row in zip(*fields, strict=True)])
    except InputError as fault:
        raise ValueError(str(fault)) from fault
    if len(names) > 1:
        raise ValueError(f"it names the tasks {', '.join(sorted(names))}, expected one")
    return Task(names.pop(), metrics)


@cache
def tables(metrics: tuple[Metric, ...]) -> Mapping[str, Table]:
    """The tables of a study whose task measures these metrics, by name.

    Durations are in seconds, times in ISO 8601; each metric has its own unit and bounds.
    """
    measured = tuple(
        Column(f"{split}_{metric.name}", "number", least=metric.low, most=metric.high)
        for split in SPLITS
        for metric in metrics
    )
    epoch = (Column("epoch", "whole"), Column("learning_rate", "number", most=np.inf), *measured)
    every = (
        METRICS,
        BLOCKS,
        Table(
            "provenance",
            (
                Column("id", "whole"),
                Column("started", "text"),
                Column("ended", "text", optional=True),
                Column("spec", "object"),
                Column("facts", "object"),
            ),
            ("id",),
            "id",
        ),
        Table(
            "dense",
            (
                Column("sha256", "text"),
                Column("architecture", "text"),
                Column("origin", "text"),
                _SECONDS,
                *measured,
                *_COSTS,
                Column("file_sha256", "text", optional=True, since=3),
                _SUMS,
            ),
            (),
            costs=True,
        ),
        Table("dense_epochs", epoch, ("epoch",)),
        Table(
            "candidates",
            (
                Column("position", "whole"),
                Column("id", "text"),
                Column("pruned", "object"),
                *_COSTS,
            ),
            ("position",),
            costs=True,
        ),
        Table(
            "criteria",
            (
                Column("name", "text"),
                Column("source", "text"),
                Column("fingerprint", "text"),
                Column("label", "text", optional=True, since=4),
            ),
            ("name",),
            "name",
        ),
        Table(
            "scores",
            (_CANDIDATE, Column("criterion", "text"), _any_number("score")),
            ("criterion", "candidate"),
            "criterion",
        ),
        Table(
            "retrainings",
            (_CANDIDATE, _SEED, Column("diverged", "whole", most=1), _SECONDS, _SUMS),
            ("seed", "candidate"),
            "seed",
        ),
        Table("outcomes", (_CANDIDATE, _SEED, *epoch), ("seed", "candidate", "epoch"), "seed"),
        Table(
            "failures",
            (_CANDIDATE, _SEED, Column("error", "text")),
            ("seed", "candidate"),
            "candidate",
            first=6,
        ),
    )
    return {table.name: table for table in every}


MEASURED = ("dense", "dense_epochs", "outcomes")
"""The tables that have a column for each metric and split."""

CHECKSUMS = Table(
    "checksums",
    (
        Column("chunk", "whole", most=_MOST_COST),
        Column("of", "text"),
        Column("rows", "whole", most=_MOST_COST),
        Column("network", "text", optional=True),
        Column("later", "whole", most=1),
        Column("sha256", "text"),
    ),
    ("chunk", "of"),
    first=3,
)
