"""A search among networks in training, rung by rung, kept in a folder, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trueoracle.analysis.outcomes import find_outcome
from trueoracle.engines.choose import Plan
from trueoracle.engines.memory import available_memory, readable_bytes
from trueoracle.errors import FailedError, InputError, StoreError, TrainingError, first_line
from trueoracle.executors.base import ChunkExecutor, Parcel
from trueoracle.files import (
    checked_json,
    make_folder,
    read_checked_json,
    remove_drafts,
    sha256_of,
    write_bytes,
)
from trueoracle.networks.weights import load_state, state_tensors, write_tensors
from trueoracle.pruning.candidates import CandidateList
from trueoracle.record.paths import RETRAINING
from trueoracle.run.chunks import Chunk, InTraining, Shared, train_chunk, under_way
from trueoracle.run.drive import Queue, cut, drive
from trueoracle.run.faults import error_in_words
from trueoracle.search.schedule import Schedule, to_the_end
from trueoracle.search.strategies import begin, survivors
from trueoracle.training.loop import EpochRecord

__all__ = ["Search", "SearchRecord", "check_memory"]

RECORD = "search.json"

PART_SECONDS = 15.0
"""The most seconds of training in a rung that a kill can cost, besides what is in training."""


def _cannot_train(chunk: Chunk, error: Exception) -> None:
    """End a search whose chunk of one network fails: to choose without it would be another one."""
    ((_, name),) = chunk.members
    raise FailedError(
        f"candidate {name} cannot be trained: {error_in_words(error)}; what the search has trained "
        "is kept, and the same command goes on from it"
    ) from error


@dataclass
class SearchRecord:
    """What is recorded of a search: each rung's candidates (ids), their epochs, and the engine.

    ``epochs[id]`` are the records of one candidate, from the first epoch to its last. ``part`` has
    the candidates that were trained so far in the current rung. ``files`` has the SHA-256 of each
    file of weights that belongs to the record.
    """

    settings: dict[str, Any]
    rungs: list[list[str]] = field(default_factory=list)
    part: list[str] = field(default_factory=list)
    epochs: dict[str, list[EpochRecord]] = field(default_factory=dict)
    seconds: float = 0.0
    engine: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the record, whole or not at all; raises :class:`StoreError` where that fails."""
        fields = asdict(self)
        fields["epochs"] = {
            name: [_plain(one.as_row()) for one in own] for name, own in self.epochs.items()
        }
        write_bytes(folder / RECORD, checked_json(fields).encode())

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> SearchRecord:
        """The record in ``folder``, or an empty one; :class:`StoreError` where it is damaged."""
        path = folder / RECORD
        try:
            fields = read_checked_json(path.read_text(encoding="utf-8"))
            fields["epochs"] = {
                name: [EpochRecord.from_row(one) for one in own]
                for name, own in fields["epochs"].items()
            }
            return TypeAdapter(cls).validate_python(fields)
        except FileNotFoundError:
            return cls(settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise _unreadable(path, f"{where}: {first['msg']}") from error
        except (
            OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError
        ) as error:  # fmt: skip
            missing = f"{error} is missing" if isinstance(error, KeyError) else ""
            raise _unreadable(path, missing or first_line(error)) from error


@dataclass(frozen=True, eq=False)
class _Continued:
    """A candidate after the epochs of a rung: their records, its state, and its seconds."""

    name: str
    records: list[EpochRecord]
    state: InTraining
    seconds: float


def train_rung(
    chunk: Chunk,
    shared: Shared | Parcel | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> list[_Continued]:
    """Train a chunk's candidates for the epochs of a rung, where the executor has it done."""
    return [
        _Continued(one.member[1], one.records, InTraining.of(one.network, one.state), one.seconds)
        for one in train_chunk(chunk, shared, on_epoch)
    ]


@dataclass(frozen=True, eq=False)
class _Part:
    """How far a rung has come.

    ``done`` are the candidates that were trained, in the order in which they began; ``kept`` are
    the best of them, which may go on; ``epochs`` are those of all candidates.
    """

    done: list[int]
    kept: dict[int, InTraining]
    epochs: dict[str, list[EpochRecord]]


@dataclass(frozen=True, eq=False)
class Search:
    """All that a search needs, before it begins; :meth:`run` carries it out.

    - ``shared``: candidates, data and dense network, whose weights are in the file ``dense``;
    - ``order``: the candidates' numbers in the order in which they begin; with ``pruned``
      ``[P, F]`` (which filters each of them prunes), the order in which the first batch begins;
    - ``by``: the metric that is compared; ``seed``: that of retraining;
    - ``folder``: keeps the record, and weights and optimiser states after the last two rungs and
      after each population of the current rung. Those of dropped candidates are deleted.
    """

    schedule: Schedule
    order: Sequence[int]
    shared: Shared
    dense: Path
    by: str
    seed: int
    settings: Mapping[str, Any]
    folder: Path
    pruned: np.ndarray | None = None

    def run(
        self,
        plan: Callable[[int, str], Plan],
        executor: ChunkExecutor,
        *,
        on_rung: Callable[[int, int, str], None],
        on_epoch: Callable[[float], None],
        say: Callable[[str], None],
    ) -> tuple[SearchRecord, str, nn.Module]:
        """The record, the id of the chosen candidate, and its retrained network.

        - ``plan`` says how to train so many networks, given the engine of an earlier sitting (or
          ``""``);
        - ``executor`` trains the candidates of a rung; only this process records them;
        - ``on_rung`` is called before a rung begins or goes on, with its number, how many of its
          candidates have been trained, and the plan;
        - ``on_epoch`` is called after training, with how many epochs of one candidate were done;
        - ``say`` is called with a line of text where kept weights are damaged (the search then goes
          on from the last rung whose weights are whole), and where memory is too small for as many
          networks at once as planned (half of them are then trained at once).

        Raises :class:`TrainingError` where every network diverged.
        """
        remove_drafts(self.folder)
        record = SearchRecord.load(self.folder, dict(self.settings))
        if damage := self._damage(record):
            raise _unreadable(self.folder / RECORD, damage)
        if damaged := self._back_to_whole(record):
            say(f"{damaged}: trained again from rung {len(record.rungs) + 1}")
        going, members = self._resumed(record)
        for number in range(len(record.rungs), len(self.schedule.rungs)):
            rung = self.schedule.rungs[number]
            chosen = plan(rung.candidates, record.engine)
            on_rung(number, len(record.part), str(chosen))
            record.engine = chosen.engine
            going, members = self._rung(
                number, going, members, chosen, record, executor, on_epoch, say
            )
            self._keep(self._checkpoint(number), self._checkpoint(number - 1), members, record)
        (name,) = (self.candidates.ids[index] for index in going)
        self.check_chosen(record, name)
        for path in self.folder.glob(RETRAINING):  # of another engine, or of an interrupted sitting
            path.unlink(missing_ok=True)
        network = self.candidates.prune(self.shared.dense, going[0])
        try:
            load_state(network, members[going[0]].weights, self.folder)
        except InputError as error:
            reason = " ".join(str(error).split())
            raise _unreadable(self.folder, f"weights in it do not fit: {reason[:120]}") from error
        return record, name, network.eval()

    @property
    def has_begun(self) -> bool:
        """Whether a search with these settings has left a record of its own."""
        return (self.folder / RECORD).exists()

    def of_one(self, index: int, epochs: int) -> Search:
        """A search among one candidate: its retraining, kept in a folder beside this one's."""
        alone = {"rungs": [[1, epochs]], "candidate": self.candidates.ids[index]}
        settings = {**self.settings, **alone}
        return replace(
            self,
            schedule=to_the_end(1, epochs, epochs),
            order=[index],
            settings=settings,
            folder=self.folder.parent / folder_name(settings),
            pruned=None,
        )

    @staticmethod
    def check_chosen(record: SearchRecord, name: str) -> None:
        """Raise :class:`TrainingError` where the chosen candidate, and so every one, diverged."""
        if record.epochs[name][-1].diverged:
            raise TrainingError(
                "every network of the search diverged: lower retraining.learning_rate, or set "
                "retraining.gradient_clip"
            )

    @property
    def candidates(self) -> CandidateList:
        """The candidates to choose among."""
        return self.shared.candidates

    def _rung(
        self,
        number: int,
        going: Sequence[int],
        members: dict[int, InTraining],
        chosen: Plan,
        record: SearchRecord,
        executor: ChunkExecutor,
        on_epoch: Callable[[float], None],
        say: Callable[[str], None],
    ) -> tuple[list[int], dict[int, InTraining]]:
        """Train the candidates of a rung; returns those that go on, with weights and states.

        Each member is taken out of ``members`` when its chunk is made, so that memory holds no
        more networks than go on. Where training is interrupted, what came is kept.
        """
        rung, start = self.schedule.rungs[number], self.schedule.starts[number]
        done, kept = self._resumed_part(record)
        part = on_disk = _Part(done, kept, dict(record.epochs))
        for index in done:
            members.pop(index, None)
        begun: list[int] = []
        saved = time.perf_counter()

        def keep() -> None:
            nonlocal saved, on_disk
            record.epochs, record.part = part.epochs, [self.candidates.ids[i] for i in part.done]
            path = self._checkpoint(number, len(part.done))
            self._keep(path, self._checkpoint(number - 1), part.kept, record)
            saved, on_disk = time.perf_counter(), part

        def train(some: Sequence[int]) -> None:
            nonlocal part
            cut_up = self._chunks(number, some, members, chosen, executor)
            queue = Queue(cut_up, say, on_failed=_cannot_train)
            work = drive(train_rung, queue, self.shared, executor, on_epoch)
            with closing(work) as finished:
                for chunk, found, shown in finished:
                    part = self._with(part, found, begun, self._left(number))
                    for path in under_way(chunk):
                        path.unlink(missing_ok=True)
                    record.seconds += sum(one.seconds for one in found)
                    on_epoch(len(found) * (rung.epochs - start) - shown)
                    late = time.perf_counter() - saved > PART_SECONDS
                    if late and len(part.done) < rung.candidates:
                        keep()

        def trained(some: Sequence[int]) -> list[float]:
            begun.extend(some)
            try:
                train([index for index in some if index not in part.done])
            except BaseException:
                if part is not on_disk:
                    with suppress(StoreError):
                        keep()
                raise
            return [self.value(part.epochs[self.candidates.ids[index]]) for index in some]

        if number:
            trained(going)
            order = list(going)
        else:
            order, _ = begin(self.order, rung.candidates, trained, self.pruned)
        record.epochs, record.part = part.epochs, []
        record.rungs.append([self.candidates.ids[index] for index in order])
        return [index for index in order if index in part.kept], part.kept

    def _chunks(
        self,
        number: int,
        some: Sequence[int],
        members: dict[int, InTraining],
        chosen: Plan,
        executor: ChunkExecutor,
    ) -> list[Chunk]:
        """The chunks of some candidates of a rung, with what those that go on go on from."""
        epochs = range(self.schedule.starts[number], self.schedule.rungs[number].epochs)
        if chosen.seconds_a_network is not None:
            share = len(epochs) / self.shared.spec.retraining.epochs
            chosen = replace(chosen, seconds_a_network=chosen.seconds_a_network * share)
        make_folder(self.folder)
        number_of = {name: index for index, name in enumerate(self.candidates.ids)}
        return [
            replace(
                chunk,
                epochs=epochs,
                begun=tuple(members.pop(number_of[n]) for _, n in chunk.members) if number else (),
                folder=self.folder.absolute(),
            )
            for chunk in cut(self.shared, self.dense, {self.seed: some}, chosen, executor)
        ]

    def _with(
        self, part: _Part, found: Sequence[_Continued], begun: Sequence[int], left: int
    ) -> _Part:
        """A part with more candidates; those that can no longer go on are not kept.

        Chunks end in any order; equal candidates go on in the order in which they began.
        """
        ids = self.candidates.ids
        epochs = {**part.epochs}
        for one in found:
            epochs[one.name] = epochs.get(one.name, []) + one.records
        new = {one.name: one.state for one in found}
        done = {*part.done, *(i for i in begun if ids[i] in new)}
        ordered = [index for index in begun if index in done]
        best = survivors(ordered, [self.value(epochs[ids[i]]) for i in ordered], left)
        kept = {i: part.kept[i] if i in part.kept else new[ids[i]] for i in best}
        return _Part(ordered, kept, epochs)

    def _left(self, rung: int) -> int:
        """How many candidates go on after a rung."""
        last = rung + 1 == len(self.schedule.rungs)
        return 1 if last else self.schedule.rungs[rung + 1].candidates

    def value(self, own: Sequence[EpochRecord]) -> float:
        """What is compared of a candidate after the last of its epochs: lower is better."""
        if own[-1].diverged:
            return math.nan
        value = own[-1].values[self.by]
        outcome = find_outcome(tuple(self.shared.data.task.metrics), self.by)
        return -value if outcome.higher_is_better else value

    # The folder

    def _damage(self, record: SearchRecord) -> str:
        """Why this search cannot have written a record; empty where it may have written it."""
        if _text(record.settings) != _text(self.settings):
            return "its settings are those of another search"
        if len(record.rungs) > len(self.schedule.rungs):
            return f"it has {len(record.rungs)} rungs, expected {len(self.schedule.rungs)} at most"
        known = set(self.candidates.ids)
        for number, (names, rung) in enumerate(
            zip(record.rungs, self.schedule.rungs, strict=False), start=1
        ):
            if other := sorted(set(names) - known):
                return f"candidate {other[0]!r} of rung {number} did not come so far"
            if not len(set(names)) == len(names) == rung.candidates:
                return f"rung {number} has {len(names)} candidates, expected {rung.candidates}"
            for name in names:
                own = record.epochs.get(name, [])
                whole = len(own) >= rung.epochs or (own and own[-1].diverged)
                if not whole or [one.epoch for one in own] != list(range(len(own))):
                    return f"candidate {name} lacks epochs of rung {number}"
            known = set(names)
        if record.part:
            if len(record.rungs) == len(self.schedule.rungs):
                return "it has begun a rung after the last"
            rung = self.schedule.rungs[len(record.rungs)]
            begun = set(record.part)
            if not (begun <= known and len(begun) == len(record.part) <= rung.candidates):
                return f"its part of rung {len(record.rungs) + 1} is no part of that rung"
            for name in record.part:
                own = record.epochs.get(name, [])
                if not (len(own) >= rung.epochs or (own and own[-1].diverged)):
                    return f"candidate {name} lacks epochs of rung {len(record.rungs) + 1}"
        return ""

    def _resumed(self, record: SearchRecord) -> tuple[list[int], dict[int, InTraining]]:
        """The candidates that go on after the last finished rung, with weights and states."""
        ids = self.candidates.ids
        begun = self._begun(record)
        names = [ids[index] for index in begun]
        if not (record.rungs[0] == names if record.rungs else set(record.part) <= set(names)):
            raise InputError(
                f"the candidates that begin are others than {self.folder / RECORD} says, since the "
                "criterion's code changed: move its folder away to search anew"
            )
        if not record.rungs:
            return [], {}
        rung = len(record.rungs) - 1
        members = self._kept(self._checkpoint(rung), record.rungs[rung], rung)
        # The order in which candidates began decides between equal ones.
        going = [index for index in begun if index in members]
        if not set(record.part) <= {ids[index] for index in going}:
            path = self.folder / RECORD
            raise _unreadable(path, f"its part of rung {rung + 2} is no part of that rung")
        return going, members

    def _resumed_part(self, record: SearchRecord) -> tuple[list[int], dict[int, InTraining]]:
        """The candidates that the current rung has trained, and the best of them."""
        if not record.part:
            return [], {}
        rung = len(record.rungs)
        kept = self._kept(self._checkpoint(rung, len(record.part)), record.part, rung)
        return [self.candidates.ids.index(name) for name in record.part], kept

    def _kept(self, path: Path, names: Sequence[str], rung: int) -> dict[int, InTraining]:
        """The best of the named candidates, with their weights after a rung or a part of it."""
        number = {name: self.candidates.ids.index(name) for name in names}
        own: dict[int, dict[str, Tensor]] = {}
        try:
            for key, value in load_file(path).items():
                name, _, rest = key.partition("/")
                own.setdefault(number[name], {})[rest] = value
            members = {index: InTraining.read(tensors) for index, tensors in own.items()}
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, str(error)) from error
        except (KeyError, ValueError) as error:
            raise _unreadable(path, f"{key!r} is nothing of rung {rung + 1}") from error
        expected = min(self._left(rung), len(names))
        if len(members) != expected:
            raise _unreadable(path, f"it holds {len(members)} networks, expected {expected}")
        return members

    def _begun(self, record: SearchRecord) -> list[int]:
        """The candidates that begin, batch by batch as far as recorded values determine them."""
        first, ids = self.schedule.rungs[0], self.candidates.ids
        asked: list[int] = []

        def recorded(some: Sequence[int]) -> list[float]:
            asked.extend(some)
            own = [record.epochs.get(ids[index], [])[: first.epochs] for index in some]
            if not all(own):
                raise _NotRecordedError
            return [self.value(one) for one in own]

        with suppress(_NotRecordedError):
            begin(self.order, first.candidates, recorded, self.pruned)
        return asked

    def _back_to_whole(self, record: SearchRecord) -> str:
        """Drop from the record the rungs whose weights are missing or damaged; returns why, or "".

        The compared values stay as they were recorded, so that the same candidates go on.
        """
        why = ""
        if record.part:
            why = self._file_fault(self._checkpoint(len(record.rungs), len(record.part)), record)
            if why:
                record.part = []
        while record.rungs and (
            fault := self._file_fault(self._checkpoint(len(record.rungs) - 1), record)
        ):
            why, record.part = why or fault, []
            record.rungs.pop()
        if why:
            done = self.schedule.rungs[len(record.rungs) - 1].epochs if record.rungs else 0
            record.epochs = {n: own[:done] for n, own in record.epochs.items() if own[:done]}
        return why

    def _file_fault(self, path: Path, record: SearchRecord) -> str:
        """What is wrong with a file of weights; empty where nothing is known to be wrong."""
        expected = record.files.get(path.name)
        try:
            if expected in (None, sha256_of(path)):
                return ""
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return f"{path} is damaged"

    def _keep(
        self, path: Path, before: Path, members: Mapping[int, InTraining], record: SearchRecord
    ) -> None:
        """Write weights, then the record that names them; delete all others but those ``before``.

        With the weights from ``before``, a search survives damage to the last rung's weights.
        """
        tensors: dict[str, Tensor] = {}
        for index, member in members.items():
            name = self.candidates.ids[index]
            tensors |= {f"{name}/{key}": value for key, value in member.as_tensors().items()}
        make_folder(self.folder)
        kept = {name: own for name, own in record.files.items() if name == before.name}
        record.files = kept | {path.name: write_tensors(tensors, path)}
        record.save(self.folder)
        for other in self.folder.glob("after-rung-*.safetensors"):
            if other.name not in record.files:
                other.unlink(missing_ok=True)

    def _checkpoint(self, rung: int, trained: int = 0) -> Path:
        """The file of weights after a rung, or after so many of its candidates."""
        part = f"-part-{trained}" if trained else ""
        return self.folder / f"after-rung-{rung + 1}{part}.safetensors"


class _NotRecordedError(Exception):
    """A candidate has not been trained."""


def folder_name(settings: Mapping[str, Any]) -> str:
    """The name of a search's folder within its run's; other settings have another folder."""
    digest = hashlib.sha256(_text(settings).encode()).hexdigest()
    return f"{settings['strategy']}-{digest[:8]}"


def check_memory(example: nn.Module, schedule: Schedule, device: torch.device) -> None:
    """Refuse a search whose survivors memory cannot hold, by :class:`InputError`."""
    # Candidates of the previous rung leave memory while those that go on enter it.
    most = max((rung.candidates for rung in schedule.rungs[1:]), default=1)
    # Weights, and up to two numbers per weight that the optimiser remembers.
    each = 3 * sum(v.numel() * v.element_size() for v in state_tensors(example).values())
    free = available_memory(torch.device("cpu"))
    if most * each > free:
        raise InputError(
            f"{most:,} networks in training need {readable_bytes(most * each)} at once, and "
            f"{readable_bytes(free)} are free: lower --budget"
        )


def _unreadable(path: Path, why: str) -> StoreError:
    return StoreError(f"cannot read {path}: {why}; move its folder away to search anew")


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v if math.isfinite(v) else None for k, v in fields.items()}
