"""Chunks of networks: what is sent to where they are retrained, and what is done there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.engines.retrain import retrain, retraining_data, stream_of
from trueoracle.errors import InputError, WorkerError, first_line
from trueoracle.executors.base import Parcel, opened
from trueoracle.native.library import missing
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import load_state, load_weights, state_tensors, weights_sha256
from trueoracle.pruning.candidates import CandidateList
from trueoracle.record.paths import retraining_under_way
from trueoracle.record.store import Retrained
from trueoracle.run.around import candidates_for
from trueoracle.run.material import built
from trueoracle.run.prepare import Prepared, find_device, prepare
from trueoracle.spec.spec import StudySpec
from trueoracle.tasks.registry import GIVEN
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import EpochRecord
from trueoracle.training.team import find_team

__all__ = [
    "Chunk",
    "InTraining",
    "Shared",
    "Trained",
    "build",
    "is_plain",
    "retrain_chunk",
    "threads",
    "train_chunk",
    "under_way",
]

Member = tuple[int, str]
"""One network to retrain: the seed, and the candidate's id."""


@dataclass(frozen=True, eq=False)
class InTraining:
    """A network between two epochs, on the CPU: its tensors by name, and its optimiser's state."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module, state: MemberState) -> InTraining:
        """A copy of a network's tensors, with a state that nothing changes any more."""
        tensors = state_tensors(network).items()
        return cls({n: v.detach().cpu().contiguous().clone() for n, v in tensors}, dict(state))

    def as_tensors(self) -> dict[str, Tensor]:
        """All tensors, by their kind and name."""
        kinds = {"weights": self.weights, "state": self.state}
        return {f"{kind}/{name}": v for kind, own in kinds.items() for name, v in own.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> InTraining:
        """What :meth:`as_tensors` gave; raises :class:`ValueError` for anything else."""
        found = cls({}, {})
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind not in ("weights", "state"):
                raise ValueError(f"{key!r} is of no network in training")
            getattr(found, kind)[name] = value
        return found

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: pools of processes would send each tensor through shared memory of its own.
        return {"content": save(self.as_tensors())}

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(vars(InTraining.read(load(fields["content"]))))


@dataclass(frozen=True)
class Chunk:
    """Networks to retrain in one call, as plain data that can be sent to another machine.

    - ``dense`` is the file of the dense network's weights; ``identity``, where it is given, tells
      the study's retrainings from those of another dense network, recipe or code;
    - ``members`` are seeds and candidates' ids, of which ``together`` are trained in one call;
    - ``device`` is the one that computes them, where it is not that of what is shared; ``threads``,
      where given, are its CPU threads;
    - ``epochs`` are those of the recipe that are trained, all by default; ``begun``, where given,
      is what each member goes on from;
    - ``folder`` keeps what is under way, by default that of ``dense``.
    """

    spec: StudySpec
    dense: Path
    members: tuple[Member, ...]
    engine: str
    identity: str = ""
    together: int | None = None
    device: str | None = None
    threads: int | None = None
    epochs: range | None = None
    begun: tuple[InTraining, ...] = ()
    folder: Path | None = None

    @property
    def calls(self) -> list[tuple[Member, ...]]:
        """The members of each call, in the order of the calls."""
        return [part.members for part in self.parts(self.together or len(self.members))]

    def parts(self, size: int) -> Iterator[Chunk]:
        """Chunks of at most so many of the members, in their order."""
        for i in range(0, len(self.members), size):
            yield self.part(slice(i, i + size))

    def part(self, at: slice) -> Chunk:
        """A chunk of some of the members."""
        return replace(self, members=self.members[at], begun=self.begun[at])


@dataclass(frozen=True, eq=False)
class Shared:
    """What the chunks of a study share, built once: candidates, data and dense network.

    It can be pickled: a network by name is built anew where it arrives, and gets its weights there.
    """

    spec: StudySpec
    candidates: CandidateList
    data: Splits
    dense: nn.Module
    identity: str

    @classmethod
    def of(cls, prepared: Prepared, dense: nn.Module) -> Shared:
        """What the chunks of a prepared study share, given its dense network."""
        spec = prepared.spec
        parts = (
            spec.outcome_digest,
            weights_sha256(dense),
            prepared.architecture,
            dict(prepared.code),
            prepared.candidates.ids,
        )
        identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cls(spec, prepared.candidates, prepared.data, dense, identity)

    def on(self, device: torch.device) -> Shared:
        """The same on a device."""
        if self.data.train.device == device:
            return self
        return replace(self, data=self.data.to(device), dense=copied(self.dense).to(device))

    def __getstate__(self) -> dict[str, Any]:
        own = self.on(torch.device("cpu"))
        fields = {name: getattr(own, name) for name in self.__dataclass_fields__}
        if not self.spec.network.fingerprint:
            fields["dense"] = state_tensors(own.dense)
        return fields

    def __setstate__(self, fields: dict[str, Any]) -> None:
        dense = fields["dense"]
        if not isinstance(dense, nn.Module):
            fields["dense"] = built(fields["spec"], fields["data"])
            load_state(fields["dense"], dense, "the dense network that was sent")
        self.__dict__.update(fields)


def is_plain(spec: StudySpec) -> bool:
    """Whether a study is all in its fields, and nothing was given in Python."""
    return not (spec.network.fingerprint or spec.data.fingerprint or spec.task.startswith(GIVEN))


def build(chunk: Chunk, shared: Shared | Parcel | None = None) -> Shared:
    """What a chunk shares with others, built from the chunk alone where it was not sent along.

    Raises :class:`WorkerError` where that is impossible, such as where network, data or task were
    given in Python, where something else than on the driver's machine was built, and where the
    kernels lack that the driver's machine has.
    """
    at: Shared
    try:
        if shared is None:
            at = _built(chunk.spec.model_dump_json(), chunk.dense, chunk.device or "auto")
        else:
            at = shared if isinstance(shared, Shared) else opened(shared)
        if chunk.device is not None:
            at = at.on(find_device(chunk.device))
    except Exception as error:  # what it is built from is the user's, and here it may lack
        raise WorkerError(
            f"{chunk.spec.name} cannot be built where it is retrained: {first_line(error)}"
        ) from error
    if chunk.identity not in ("", at.identity):
        raise WorkerError(
            f"{chunk.spec.name} is another study here than where it was started: code, data or "
            "versions differ"
        )
    if chunk.engine == "native" and (why := missing()):
        raise WorkerError(
            f"{chunk.spec.name} cannot be retrained here as where it was started: {why}"
        )
    return at


@lru_cache(maxsize=1)
def _built(fields: str, dense: Path, device: str) -> Shared:
    """What is shared, from plain data (a study as JSON), kept for the study's next chunk."""
    spec = StudySpec.model_validate_json(fields)
    if not is_plain(spec):
        raise InputError(f"{spec.name} was given in Python, and is retrained where it was given")
    prepared = prepare(spec, device=device)
    network = copied(prepared.network)
    load_weights(network, dense)
    return Shared.of(candidates_for(prepared, network, dense.parent), network)


@dataclass(frozen=True, eq=False)
class Trained:
    """One network after its epochs: their records, its state, and its share of the seconds."""

    member: Member
    network: nn.Module
    records: list[EpochRecord]
    state: MemberState
    seconds: float


def train_chunk(
    chunk: Chunk,
    shared: Shared | Parcel | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Iterator[Trained]:
    """Prune and train a chunk's networks, call by call.

    A chunk that was interrupted goes on from the file of :func:`under_way`, if its folder is here.
    Raises what :func:`build` raises.
    """
    at = build(chunk, shared)
    with threads(chunk.threads):
        for part in chunk.parts(chunk.together or len(chunk.members)):
            yield from _trained(part, at, on_epoch)


def retrain_chunk(
    chunk: Chunk,
    shared: Shared | Parcel | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> list[Retrained]:
    """Prune and retrain a chunk's networks (:func:`train_chunk`); what is recorded of each."""
    return [
        Retrained(
            candidate=one.member[1],
            seed=one.member[0],
            diverged=one.records[-1].diverged,
            seconds=one.seconds,
            epochs=[record.as_row() for record in one.records],
            blocks={} if one.records[-1].diverged else one.records[-1].blocks,
        )
        for one in train_chunk(chunk, shared, on_epoch)
    ]


def _trained(chunk: Chunk, at: Shared, on_epoch: Callable[[int], None] | None) -> Iterator[Trained]:
    """Train the networks of a chunk of one call."""
    candidates, recipe, members = at.candidates, chunk.spec.retraining, chunk.members
    number = {name: index for index, name in enumerate(candidates.ids)}
    networks = [candidates.prune(at.dense, number[name]) for _, name in members]
    for network, begun, (_, name) in zip(networks, chunk.begun, members, strict=False):
        load_state(network, begun.weights, f"what {chunk.folder} keeps of candidate {name}")
    started = time.perf_counter()
    records, states = retrain(
        networks,
        [stream_of(recipe, seed, name) for seed, name in members],
        retraining_data(at.data, recipe, at.dense),
        recipe,
        engine=chunk.engine,
        epochs=chunk.epochs,
        states=[one.state for one in chunk.begun] or None,
        on_epoch=on_epoch,
        checkpoint=_checkpoint(chunk, at.identity),
    )
    seconds = (time.perf_counter() - started) / len(members)
    for member, network, own, state in zip(members, networks, records, states, strict=True):
        yield Trained(member, network, own, state, seconds)


def _checkpoint(chunk: Chunk, identity: str) -> Checkpoint | None:
    """What keeps a chunk of one call while it is trained; None where its folder is not here."""
    path = _under_way(chunk, chunk.members)
    if not path.parent.is_dir():
        return None
    team = find_team()
    how = f"{chunk.engine}-sharded" if team is not None and team.is_sharded else chunk.engine
    part = "" if chunk.epochs is None else f"-{chunk.epochs}"
    return Checkpoint(path, f"{identity}-{how}-{chunk.members}{part}")


def under_way(chunk: Chunk) -> list[Path]:
    """The files that keep the networks of a chunk while they are trained, if that takes long."""
    return [_under_way(chunk, members) for members in chunk.calls]


def _under_way(chunk: Chunk, members: Sequence[Member]) -> Path:
    return (chunk.folder or chunk.dense.parent) / retraining_under_way(*members[0])


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within the block, PyTorch and the kernels compute on so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
