"""A search among networks in training, rung by rung, kept in a folder, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from trueoracle.data.splits import Splits
from trueoracle.engines.choose import Plan
from trueoracle.engines.memory import available_memory, readable_bytes
from trueoracle.engines.retrain import retrain, stream_of
from trueoracle.errors import (
    InputError,
    StoreError,
    TrainingError,
    first_line,
    is_out_of_memory,
)
from trueoracle.files import (
    checked_json,
    make_folder,
    read_checked_json,
    remove_drafts,
    sha256_of,
    write_bytes,
)
from trueoracle.networks.weights import (
    load_state,
    state_tensors,
    write_tensors,
)
from trueoracle.pruning.candidates import CandidateList
from trueoracle.search.schedule import Schedule, to_the_end
from trueoracle.search.strategies import begin, survivors
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import EpochRecord
from trueoracle.training.recipe import Retraining

__all__ = ["Search", "SearchRecord", "check_memory"]

RECORD = "search.json"

UNDER_WAY = "under-way.partial.pt"
"""Networks in training, until they are done."""

PART_SECONDS = 15.0
"""The most seconds of training in a rung that a kill can cost, besides the current population."""


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
class Search:
    """All that a search needs, before it begins; :meth:`run` carries it out.

    - ``order``: the candidates' numbers in the order in which they begin; with ``pruned``
      ``[P, F]`` (which filters each of them prunes), the order in which the first batch begins;
    - ``by``: the metric that is compared; ``seed``: that of retraining;
    - ``folder``: keeps the record, and weights and optimiser states after the last two rungs and
      after each population of the current rung. Those of dropped candidates are deleted.
    """

    schedule: Schedule
    order: Sequence[int]
    candidates: CandidateList
    dense: nn.Module
    data: Splits
    recipe: Retraining
    by: str
    seed: int
    settings: Mapping[str, Any]
    folder: Path
    pruned: np.ndarray | None = None

    def run(
        self,
        plan: Callable[[int, str], Plan],
        *,
        on_rung: Callable[[int, int, str], None],
        on_epoch: Callable[[float], None],
        say: Callable[[str], None],
    ) -> tuple[SearchRecord, str, nn.Module]:
        """The record, the id of the chosen candidate, and its retrained network.

        - ``plan`` says how to train so many networks, given the engine of an earlier sitting (or
          ``""``);
        - ``on_rung`` is called before a rung begins or goes on, with its number, how many of its
          candidates have been trained, and the plan;
        - ``on_epoch`` is called after training, with the epochs of one candidate that were done;
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
            going, members = self._rung(number, going, members, chosen, record, on_epoch, say)
            self._keep(self._checkpoint(number), self._checkpoint(number - 1), members, record)
        (name,) = (self.candidates.ids[index] for index in going)
        self.check_chosen(record, name)
        network = self._network(going[0])
        self._give(network, members[going[0]])
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

    def _rung(
        self,
        number: int,
        going: Sequence[int],
        members: dict[int, _Member],
        chosen: Plan,
        record: SearchRecord,
        on_epoch: Callable[[float], None],
        say: Callable[[str], None],
    ) -> tuple[list[int], dict[int, _Member]]:
        """Train the candidates of a rung; returns those that go on, with weights and states.

        Each member is taken out of ``members`` when its network is built, so that memory holds no
        more networks than go on.
        """
        ids, left = self.candidates.ids, self._left(number)
        epochs = range(self.schedule.starts[number], self.schedule.rungs[number].epochs)
        done, kept = self._resumed_part(record)
        begun = set(done)
        for index in done:
            members.pop(index, None)
        fresh = {name: list(own) for name, own in record.epochs.items()}
        saved = time.perf_counter()
        most = chosen.group * chosen.groups

        def trained(some: Sequence[int]) -> list[float]:
            nonlocal kept, saved, most
            left_over = [index for index in some if index not in begun]
            while left_over:
                chunk = left_over[:most]
                started = time.perf_counter()
                under_way = self._under_way(number, chunk, chosen.engine)
                try:
                    networks, records, after = self._train(
                        chunk, members, chosen.engine, epochs, under_way, on_epoch
                    )
                except Exception as error:
                    if len(chunk) == 1 or not is_out_of_memory(error):
                        raise
                    most = len(chunk) // 2
                    say(f"out of memory with {len(chunk):,} networks at once: {most:,} from now on")
                    if number:  # what was taken out of ``members``
                        again = self._resumed(record)[1]
                        members.update((index, again[index]) for index in chunk)
                    continue
                left_over = left_over[most:]
                for index, own in zip(chunk, records, strict=True):
                    fresh[ids[index]] = fresh.get(ids[index], []) + own
                done.extend(chunk)
                begun.update(chunk)
                # A candidate that can no longer go on is neither kept nor copied.
                best = survivors(done, [self.value(fresh[ids[i]]) for i in done], left)
                new = dict(zip(chunk, zip(networks, after, strict=True), strict=True))
                kept = {
                    index: kept[index] if index in kept else _Member.of(*new[index])
                    for index in best
                }
                del networks, after, new  # before the next chunk is trained
                under_way.remove()
                record.seconds += time.perf_counter() - started
                is_last = len(done) == self.schedule.rungs[number].candidates
                if not is_last and time.perf_counter() - saved > PART_SECONDS:
                    record.epochs, record.part = dict(fresh), [ids[index] for index in done]
                    path = self._checkpoint(number, len(done))
                    self._keep(path, self._checkpoint(number - 1), kept, record)
                    saved = time.perf_counter()
            return [self.value(fresh[ids[index]]) for index in some]

        if number:
            trained(going)
            order = list(going)
        else:
            order, _ = begin(self.order, self.schedule.rungs[0].candidates, trained, self.pruned)
        record.epochs, record.part = fresh, []
        record.rungs.append([ids[index] for index in order])
        return [index for index in order if index in kept], kept

    def _train(
        self,
        chunk: Sequence[int],
        members: dict[int, _Member],
        engine: str,
        epochs: range,
        checkpoint: Checkpoint,
        on_epoch: Callable[[float], None],
    ) -> tuple[list[nn.Module], list[list[EpochRecord]], list[MemberState]]:
        """Train some candidates as one: their networks, their epochs, and the states after them."""
        networks, states = [], []
        for index in chunk:
            network = self._network(index)
            if index in members:
                member = members.pop(index)
                self._give(network, member)
                states.append(member.state)
            networks.append(network)
        shown = 0.0

        def show(count: float) -> None:
            nonlocal shown
            shown += count
            on_epoch(count)

        try:
            records, after = retrain(
                networks,
                [self._stream(index) for index in chunk],
                self.data,
                self.recipe,
                engine=engine,
                epochs=epochs,
                states=states or None,
                on_epoch=show,
                checkpoint=checkpoint,
            )
        except Exception:
            on_epoch(-shown)
            raise
        return networks, records, after

    def _under_way(self, rung: int, chunk: Sequence[int], engine: str) -> Checkpoint:
        """What keeps candidates while they are trained, where that takes long."""
        named = [self.candidates.ids[index] for index in chunk]
        identity = f"{self.folder.name}-{rung}-{engine}-{named}"
        make_folder(self.folder)
        return Checkpoint(self.folder / UNDER_WAY, identity)

    def _left(self, rung: int) -> int:
        """How many candidates go on after a rung."""
        last = rung + 1 == len(self.schedule.rungs)
        return 1 if last else self.schedule.rungs[rung + 1].candidates

    def _give(self, network: nn.Module, member: _Member) -> None:
        """Load a member's weights, which may come from a file."""
        try:
            load_state(network, member.weights, self.folder)
        except InputError as error:
            reason = " ".join(str(error).split())
            raise _unreadable(self.folder, f"weights in it do not fit: {reason[:120]}") from error

    def value(self, own: Sequence[EpochRecord]) -> float:
        """What is compared of a candidate after the last of its epochs: lower is better."""
        if own[-1].diverged:
            return math.nan
        value = own[-1].values[self.by]
        outcome = find_outcome(tuple(self.data.task.metrics), self.by)
        return -value if outcome.higher_is_better else value

    def _network(self, index: int) -> nn.Module:
        return self.candidates.prune(self.dense, index)

    def _stream(self, index: int) -> tuple[int, str]:
        return stream_of(self.recipe, self.seed, self.candidates.ids[index])

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
            if not (begun <= known and len(begun) == len(record.part) < rung.candidates):
                return f"its part of rung {len(record.rungs) + 1} is no part of that rung"
            for name in record.part:
                own = record.epochs.get(name, [])
                if not (len(own) >= rung.epochs or (own and own[-1].diverged)):
                    return f"candidate {name} lacks epochs of rung {len(record.rungs) + 1}"
        return ""

    def _resumed(self, record: SearchRecord) -> tuple[list[int], dict[int, _Member]]:
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

    def _resumed_part(self, record: SearchRecord) -> tuple[list[int], dict[int, _Member]]:
        """The candidates that the current rung has trained, and the best of them."""
        if not record.part:
            return [], {}
        rung = len(record.rungs)
        kept = self._kept(self._checkpoint(rung, len(record.part)), record.part, rung)
        return [self.candidates.ids.index(name) for name in record.part], kept

    def _kept(self, path: Path, names: Sequence[str], rung: int) -> dict[int, _Member]:
        """The best of the named candidates, with their weights after a rung or a part of it."""
        number = {name: self.candidates.ids.index(name) for name in names}
        members: dict[int, _Member] = {}
        try:
            for key, value in load_file(path).items():
                name, kind, rest = key.split("/", 2)
                member = members.setdefault(number[name], _Member({}, {}))
                {"weights": member.weights, "state": member.state}[kind][rest] = value
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
        self, path: Path, before: Path, members: Mapping[int, _Member], record: SearchRecord
    ) -> None:
        """Write weights, then the record that names them; delete all others but those ``before``.

        With the weights from ``before``, a search survives damage to the last rung's weights.
        """
        tensors: dict[str, Tensor] = {}
        for index, member in members.items():
            for kind, own in (("weights", member.weights), ("state", member.state)):
                tensors |= {f"{self.candidates.ids[index]}/{kind}/{k}": v for k, v in own.items()}
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


@dataclass(frozen=True)
class _Member:
    """A network in training, on the CPU: its tensors by name, and its optimiser's state."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module, state: Mapping[str, Tensor]) -> _Member:
        return cls(_weights(network), dict(state))


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


def _weights(network: nn.Module) -> dict[str, Tensor]:
    state = state_tensors(network)
    return {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v if math.isfinite(v) else None for k, v in fields.items()}
