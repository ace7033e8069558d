"""The record of one study: what is written to it, and what is read from it. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trueoracle.errors import InputError
from trueoracle.record.database import JUDGED, Database
from trueoracle.record.layout import (
    COSTS,
    UNTOLD,
    Columns,
    facts_fault,
    json_object,
    packed,
    pruned_fault,
    unpacked,
)
from trueoracle.record.older import with_chance
from trueoracle.tasks.metric import SPLITS

__all__ = ["Failed", "Retrained", "Store"]

Rows = Mapping[str, Sequence[Sequence[Any]]]
"""Rows by table, each in the order of the table's columns."""


@dataclass(frozen=True)
class Retrained:
    """One finished retraining: a candidate, a seed, and one mapping of values per epoch.

    ``blocks`` has the sums over each block of examples after the last epoch, by column
    (``test_loss``).
    """

    candidate: str
    seed: int
    diverged: bool
    seconds: float
    epochs: Sequence[Mapping[str, Any]]
    blocks: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A retraining that raised an error, which is given in one line; it has no outcome."""

    candidate: str
    seed: int
    error: str


class Store(Database):
    """Reads and writes the record of one study; use as a context manager."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the record in ``folder``, making it where it is absent (unless ``read_only``).

        Raises :class:`StoreError` for a missing, damaged or newer file.
        """
        self._listed: Columns | None = None
        """The candidates as they were read; None before the first reading and after a change."""
        super().__init__(folder, read_only=read_only)

    def check(self) -> None:
        """Read all that is recorded; raises :class:`StoreError` where some of it is damaged."""
        for name in ("provenance", "blocks", "dense", "dense_epochs", "candidates", "criteria"):
            self._columns(name)
        for name in JUDGED:
            self._of_candidates(name)

    def network(self) -> str | None:
        """The SHA-256 of the dense network whose scores and outcomes are recorded.

        None where there are none, or where they were recorded before the SHA-256 was kept.
        """
        seals = chain.from_iterable(of_table.values() for of_table in self._seals.values())
        return next((seal.network for seal in seals if seal.network), None)

    # Provenance

    def begin(self, started: str, spec: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
        """Record the start of one sitting; returns its id for :meth:`end`."""
        with self._transaction():
            (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM provenance").fetchone()
            row = (last + 1, started, None, json.dumps(spec), json.dumps(facts))
            self._insert("provenance", self._new_chunk(), [row])
            return int(last + 1)

    def note(self, sitting: int, name: str, value: object) -> None:
        """Add one fact to a sitting."""
        self._change(
            sitting, "facts = json_set(facts, ?, json(?))", (f"$.{name}", json.dumps(value))
        )

    def noted(self, name: str) -> Any:
        """The named fact, from the latest sitting that noted it; None where no sitting did."""
        said = [sitting[name] for sitting in self.provenance() if name in sitting]
        return said[-1] if said else None

    def end(self, sitting: int, ended: str) -> None:
        self._change(sitting, "ended = ?", (ended,))

    def _change(self, sitting: int, change: str, values: Sequence[object]) -> None:
        with self._transaction():
            self._db.execute(f"UPDATE provenance SET {change} WHERE id = ?", (*values, sitting))
            query = "SELECT chunk FROM provenance WHERE id = ?"
            for (chunk,) in self._db.execute(query, (sitting,)).fetchall():
                self._seal("provenance", chunk)

    def spec(self) -> dict[str, Any] | None:
        """The fields of the recorded study; None before anything was recorded."""
        specs = self._columns("provenance")["spec"]
        return json_object(specs[-1]) if specs else None

    def provenance(self) -> list[dict[str, Any]]:
        """All sittings, oldest first: start, end, and the facts of package and machine."""
        columns, sittings = self._columns("provenance"), []
        for started, ended, text in zip(
            columns["started"], columns["ended"], columns["facts"], strict=True
        ):
            facts = with_chance(json_object(text) or {})
            if fault := facts_fault(facts):
                raise self._damaged(f"table provenance: {fault}")
            sittings.append(UNTOLD | facts | {"started": started, "ended": ended})
        return sittings

    # Dense network

    def record_dense(
        self,
        sha256: str,
        architecture: str,
        origin: str,
        seconds: float,
        metrics: Mapping[str, float],
        epochs: Iterable[Mapping[str, Any]],
        file_sha256: str | None = None,
        blocks: Mapping[str, Sequence[float]] | None = None,
        *,
        is_same: bool = False,
    ) -> None:
        """Record the dense network: hashes, metrics, and the epochs where it was trained.

        ``sha256`` is that of the network's weights, ``file_sha256`` that of the file that holds
        them; ``blocks`` are as those of :class:`Retrained`. ``is_same`` says that it is the network
        whose failures are recorded: these stay.
        """
        self._check_task()
        with self._transaction():
            self._drop("dense")
            self._drop("dense_epochs")
            if not is_same:
                self._drop("failures")
            chunk = self._new_chunk()
            values: dict[str, Any] = {name: metrics[name] for name in self._measured}
            values |= {"sha256": sha256, "architecture": architecture, "origin": origin}
            values |= {"seconds": seconds, "file_sha256": file_sha256}
            (values["blocks"],) = self._in_blocks([blocks or {}])
            names = self._tables["dense"].names
            self._insert("dense", chunk, [[values.get(name) for name in names]])
            self._insert(
                "dense_epochs", chunk, [[one[name] for name in self._of_epoch] for one in epochs]
            )

    def record_dense_file(self, file_sha256: str) -> None:
        """Record the SHA-256 of the dense network's file after it was written anew."""
        self._change_dense("file_sha256 = ?", (file_sha256,))

    def has_dense_blocks(self) -> bool:
        """Whether the dense network's metrics are recorded by blocks of examples."""
        return any(sums is not None for sums in self._columns("dense")["blocks"])

    def record_dense_blocks(self, blocks: Mapping[str, Sequence[float]]) -> None:
        """Record the dense network's sums over blocks of examples, which older records lack."""
        self._change_dense("blocks = ?", self._in_blocks([blocks]))

    def _change_dense(self, change: str, values: Sequence[object]) -> None:
        with self._transaction():
            self._db.execute(f"UPDATE dense SET {change}", values)
            for (chunk,) in self._db.execute("SELECT chunk FROM dense").fetchall():
                self._seal("dense", chunk)

    def dense(self) -> dict[str, Any] | None:
        """The dense network's hashes, origin, seconds, metrics and cost; None if not recorded.

        ``parameters``, ``macs`` and ``file_sha256`` are None where the record was made before they
        were kept; metrics are None where they are NaN.
        """
        columns = self._columns("dense")
        count = len(columns["sha256"])
        if count > 1:
            raise self._damaged(f"table dense has {count} rows, expected one")
        if not count:
            return None
        found = {name: values[0] for name, values in columns.items() if name != "blocks"}
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, float)}
        return found | {k: None if v != v else v for k, v in numbers.items()}

    # Blocks of examples

    def record_blocks(self, examples: Mapping[str, Sequence[int]]) -> None:
        """Record the blocks of each split by their numbers of examples, before any sums.

        Raises :class:`InputError` where other blocks are recorded.
        """
        made = {split: list(counts) for split, counts in examples.items() if len(counts)}
        recorded = self.blocks()
        if recorded and recorded != made:
            raise InputError(
                "the data has other blocks of examples than the study records: give the study "
                "another name to start anew with it"
            )
        rows = [
            (split, position, count)
            for split, counts in made.items()
            for position, count in enumerate(counts)
        ]
        with self._transaction():
            self._insert("blocks", self._new_chunk(), [] if recorded else rows)

    def blocks(self) -> dict[str, list[int]]:
        """The numbers of examples of the blocks of each split; empty where none are recorded."""
        columns, found = self._columns("blocks"), dict[str, list[int]]()
        for split, count in zip(columns["split"], columns["examples"], strict=True):
            found.setdefault(split, []).append(count)
        return {split: found[split] for split in SPLITS if split in found}

    def block_sums(self) -> pd.DataFrame:
        """The recorded sums over blocks: one row per network, one column per metric and block.

        Rows are (candidate, seed), and ("", -1) for the dense network; columns are (metric's
        column, block), such as (``test_loss``, 0).
        """
        dense, columns = self._columns("dense"), self._of_candidates("retrainings")
        keys = [*zip(columns["candidate"], columns["seed"], strict=True)]
        keys += [("", -1) for _ in dense["blocks"]]
        contents = [*columns["blocks"], *dense["blocks"]]
        names = self._block_columns()  # empty where the blocks are to be recorded again
        known = [place for place, one in enumerate(contents) if one is not None and names]
        sums = [unpacked(contents[place]) for place in known]
        if any(len(one) != len(names) for one in sums):
            raise self._damaged(f"sums over blocks of examples are not {len(names)}")
        return pd.DataFrame(
            np.array(sums).reshape(len(known), len(names)),
            index=pd.MultiIndex.from_tuples(
                [keys[place] for place in known] or [("", -1)][:0], names=["candidate", "seed"]
            ),
            columns=pd.MultiIndex.from_tuples(names, names=["metric", "block"]),
        )

    def without_blocks(self) -> int:
        """How many retrained networks that did not diverge are recorded without blocks."""
        columns = self._columns("retrainings")
        both = zip(columns["blocks"], columns["diverged"], strict=True)
        return sum(sums is None and not diverged for sums, diverged in both)

    def _block_columns(self) -> list[tuple[str, int]]:
        """The column and block of each of the packed sums, in their order."""
        metrics = () if self.task is None else self.task.metrics
        return [
            (f"{split}_{metric.name}", block)
            for split, counts in self.blocks().items()
            for metric in metrics
            for block in range(len(counts))
        ]

    def _in_blocks(self, all_blocks: Iterable[Mapping[str, Sequence[float]]]) -> list[bytes | None]:
        """Sums over blocks of several networks as they are recorded; None where there are none."""
        names = self._block_columns()
        return [
            packed([blocks[column][block] for column, block in names]) if blocks else None
            for blocks in all_blocks
        ]

    # Candidates and scores

    def record_candidates(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Record (id, what is pruned) in order; rows that are there already stay."""
        with self._transaction():
            known = self._candidates()
            there = set(known["position"]), set(known["id"])
            new = [
                (place, name, json.dumps(pruned), None, None)
                for place, (name, pruned) in enumerate(rows)
                if place not in there[0] and name not in there[1]
            ]
            self._insert("candidates", self._new_chunk(), new)
            self._listed = None

    def _candidates(self) -> Columns:
        """The table of candidates, in which each id and each position occurs once."""
        if self._listed is not None:
            return self._listed
        columns = self._columns("candidates")
        for name in ("id", "position"):
            if len(set(columns[name])) != len(columns[name]):
                raise self._damaged(f"table candidates: a value of {name} is there twice")
        pruning = (self.spec() or {}).get("pruning")
        kind = pruning.get("kind") if isinstance(pruning, dict) else None
        if kind in ("structured", "unstructured", "n:m", "depth"):
            pruned = [json_object(text) or {} for text in columns["pruned"]]
            parameters = (self.dense() or {}).get("parameters")
            if fault := pruned_fault(kind, pruned, parameters):
                raise self._damaged(f"table candidates: {fault}")
        self._listed = columns
        return columns

    def candidate_ids(self) -> list[str]:
        """The ids of the recorded candidates, in order."""
        columns = self._candidates()
        order = sorted(zip(columns["position"], columns["id"], strict=True))
        return [name for _, name in order]

    def has_costs(self) -> bool:
        """Whether the costs of every candidate and of the dense network are recorded."""
        (left,) = self._rows(
            "SELECT (SELECT count(*) FROM candidates WHERE macs IS NULL) + "
            "(SELECT count(*) FROM dense WHERE macs IS NULL)"
        )[0]
        return bool(left == 0)

    def record_costs(
        self, dense: tuple[int, int], candidates: Iterable[tuple[str, int, int]]
    ) -> None:
        """Record parameters and MACs of the dense network, and of candidates by id."""
        self._change_dense("parameters = ?, macs = ?", dense)
        with self._transaction():
            costs = {name: (int(parameters), int(macs)) for name, parameters, macs in candidates}
            self._db.executemany(
                "UPDATE candidates SET parameters = ?, macs = ? WHERE id = ?",
                [(*cost, name) for name, cost in costs.items()],
            )
            for (chunk,) in self._db.execute("SELECT DISTINCT chunk FROM candidates").fetchall():
                self._seal("candidates", chunk)
            self._listed = None

    def record_criterion(
        self, name: str, source: str, fingerprint: str, label: str | None = None
    ) -> bool:
        """Record a criterion; returns False, dropping its scores, where its code may have changed.

        An empty fingerprint says that the code cannot be read, so that it may have changed at any
        time. ``label`` is the name of the criterion's score in figures and sentences.
        """
        rows = list(zip(*self._columns("criteria").values(), strict=True))
        old = next((row for row in rows if row[0] == name), None)
        changed = old is not None and (old[2] != fingerprint or not fingerprint)
        new = (name, source, fingerprint, label)
        with self._transaction():
            if old != new:
                self._drop("criteria", "name = ?", (name,))
                self._insert("criteria", self._new_chunk(), [new])
            if changed:
                self._drop("scores", "criterion = ?", (name,))
        return not changed

    def labels(self) -> dict[str, str]:
        """The labels of scores by criterion, where they are recorded."""
        columns = self._columns("criteria")
        both = zip(columns["name"], columns["label"], strict=True)
        return {name: label for name, label in both if label}

    def record_scores(self, criterion: str, rows: Iterable[tuple[str, float]]) -> None:
        """Record (candidate id, score) of one criterion; scores that are there already stay."""
        there = self._scored(criterion)
        new = {name: value for name, value in rows if name not in there}
        with self._transaction():
            self._insert(
                "scores", self._new_chunk(), [(name, criterion, v) for name, v in new.items()]
            )

    def scored(self, criterion: str) -> set[str]:
        """The ids of the candidates that a criterion has scored."""
        columns = self._of_candidates("scores")
        both = zip(columns["candidate"], columns["criterion"], strict=True)
        return {candidate for candidate, name in both if name == criterion}

    def _scored(self, criterion: str) -> set[str]:
        rows = self._rows("SELECT candidate FROM scores WHERE criterion = ?", (criterion,))
        return {row[0] for row in rows}

    # Outcomes

    def record_retrained(self, finished: Iterable[Retrained]) -> None:
        """Record finished retrainings, each with all its epochs, in one transaction.

        Retrainings that are there already stay.
        """
        self._check_task()
        there = "SELECT 1 FROM retrainings WHERE seed = ? AND candidate = ?"
        new = {(one.seed, one.candidate): one for one in finished}
        new = {key: one for key, one in new.items() if not self._rows(there, key)}
        sums = self._in_blocks(one.blocks for one in new.values())
        retrainings = [
            (one.candidate, one.seed, one.diverged, one.seconds, own)
            for one, own in zip(new.values(), sums, strict=True)
        ]
        outcomes = [
            (one.candidate, one.seed, *(epoch[name] for name in self._of_epoch))
            for one in new.values()
            for epoch in one.epochs
        ]
        with self._transaction():
            chunk = self._new_chunk()
            self._insert("retrainings", chunk, retrainings)
            self._insert("outcomes", chunk, outcomes)
            self._forget_failures(new)

    def record_failed(self, failed: Iterable[Failed]) -> None:
        """Record retrainings that failed, instead of earlier failures of the same networks."""
        rows = [(one.candidate, one.seed, one.error) for one in failed]
        with self._transaction():
            self._forget_failures((seed, candidate) for candidate, seed, _ in rows)
            for row in rows:  # a chunk each, so that each can be dropped alone
                self._insert("failures", self._new_chunk(), [row])

    def _forget_failures(self, keys: Iterable[tuple[int, str]]) -> None:
        for key in keys:
            self._drop("failures", "seed = ? AND candidate = ?", key)

    def failed(self) -> dict[tuple[int, str], str]:
        """The retrainings that failed, as (seed, candidate id), each with its error in one line."""
        columns = self._of_candidates("failures")
        keys = zip(columns["seed"], columns["candidate"], strict=True)
        return dict(zip(keys, columns["error"], strict=True))

    def _check_task(self) -> None:
        if self.task is None:
            raise ValueError("record_task says what is measured, and comes first")

    def retrained(self) -> set[tuple[int, str]]:
        """The finished retrainings, as (seed, candidate id)."""
        columns = self._of_candidates("retrainings")
        return set(zip(columns["seed"], columns["candidate"], strict=True))

    def _retrained(self) -> set[tuple[int, str]]:
        return {(seed, c) for seed, c in self._rows("SELECT seed, candidate FROM retrainings")}

    def counts(self, skipped: Collection[str] = ()) -> dict[str, int]:
        """How many candidates, scores, and finished, diverged and failed retrainings there are.

        Scores of ``skipped`` criteria do not count.
        """
        out = ", ".join("?" * len(skipped))
        (row,) = self._rows(
            "SELECT (SELECT count(*) FROM candidates), "
            f"(SELECT count(*) FROM scores WHERE criterion NOT IN ({out})), "
            "(SELECT count(*) FROM retrainings), "
            "(SELECT count(*) FROM retrainings WHERE diverged)",
            tuple(skipped),
        )
        names = ("candidates", "scores", "retrainings", "diverged")
        return dict(zip(names, row, strict=True)) | {"failed": len(self.failed())}

    # Copies and tables

    def offered(
        self, other: Store, *, criteria: Mapping[str, str], seeds: Sequence[int]
    ) -> list[Rows]:
        """The rows of another record about this record's candidates that this record lacks.

        ``criteria`` maps the criteria whose scores to take to their fingerprints; ``seeds`` are
        those of the retrainings to take. The caller makes sure that both studies would compute the
        same numbers.
        Raises :class:`StoreError` where the other record is damaged.
        """
        ours, found = set(self.candidate_ids()), list[Rows]()
        known = other._columns("criteria")
        theirs = dict(zip(known["name"], known["fingerprint"], strict=True))
        for name, fingerprint in criteria.items():
            new = (other._scored(name) & ours) - self._scored(name)
            if new and theirs.get(name) == fingerprint:
                found.append({"scores": other._some("scores", new, "criterion", name)})
        mine, others = self._retrained(), other._retrained()
        for seed in seeds if self._measured == other._measured else ():
            new = {candidate for one, candidate in others - mine if one == seed} & ours
            tables = ("retrainings", "outcomes") if new else ()
            if rows := {table: other._some(table, new, "seed", seed) for table in tables}:
                if self.blocks() != other.blocks():
                    rows["retrainings"] = [(*row[:-1], None) for row in rows["retrainings"]]
                found.append(rows)
        return found

    def _some(
        self, name: str, candidates: set[str], column: str, value: object
    ) -> list[tuple[Any, ...]]:
        """The rows of a table that are about some candidates and have ``value`` in ``column``."""
        columns = self._of_candidates(name)
        table = list(columns)
        at, other = table.index("candidate"), table.index(column)
        rows = zip(*columns.values(), strict=True)
        return [row for row in rows if row[at] in candidates and row[other] == value]

    def adopt(self, offered: Sequence[Rows]) -> int:
        """Record what :meth:`offered` found; returns the number of scores and retrainings."""
        with self._transaction():
            for tables in offered:
                chunk = self._new_chunk()
                for name, rows in tables.items():
                    self._insert(name, chunk, rows)
                self._forget_failures((row[1], row[0]) for row in tables.get("retrainings", ()))
        return sum(len(one.get("scores", one.get("retrainings", ()))) for one in offered)

    def _of_candidates(self, name: str) -> Columns:
        """A table whose rows are about candidates; checks that all of these are listed."""
        columns, listed = self._columns(name), set(self._candidates()["id"])
        if listed and (strange := set(columns["candidate"]) - listed):
            raise self._damaged(f"table {name}: {min(strange)!r} is no candidate of the study")
        return columns

    def frame(self, table: str) -> pd.DataFrame:
        """One table, whole: candidates, scores, outcomes, retrainings, failures or dense_epochs."""
        if table == "candidates":
            columns = self._candidates()
            frame = pd.DataFrame(columns).sort_values("position", ignore_index=True)
            # The type is whole numbers also where an older record has no costs.
            return frame.astype(dict.fromkeys(COSTS, "Int64"))
        if table == "dense_epochs":
            return pd.DataFrame(self._columns(table)).sort_values("epoch", ignore_index=True)
        frame = pd.DataFrame(self._of_candidates(table)).drop(columns="blocks", errors="ignore")
        place = {name: i for i, name in enumerate(self.candidate_ids())}
        frame["position"] = frame["candidate"].map(place)
        frame = frame.dropna(subset="position")  # a record whose candidates are to be listed anew
        order = [name for name in ("criterion", "seed", "position", "epoch") if name in frame]
        frame = frame.sort_values(order, kind="stable", ignore_index=True)
        return frame.drop(columns="position")
