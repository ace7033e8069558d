"""Retraining a study's candidates, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines.choose import Plan, check_engine, engine_for, plan
from trueoracle.engines.devices import DevicesEngine
from trueoracle.engines.loop import LoopEngine
from trueoracle.engines.retrain import retrain, retraining_data, stream_of
from trueoracle.errors import InputError
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import load_weights, weights_sha256
from trueoracle.record.paths import DENSE, RETRAINING, retraining_under_way
from trueoracle.record.store import Retrained
from trueoracle.run.around import candidates_for
from trueoracle.run.prepare import Prepared, prepare
from trueoracle.run.progress import about
from trueoracle.run.sitting import Sitting
from trueoracle.spec.spec import StudySpec
from trueoracle.tasks.registry import GIVEN
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.team import Team, find_team

__all__ = [
    "Chunk",
    "Place",
    "check_retraining",
    "chunks",
    "follow",
    "plan_retraining",
    "retrain_candidates",
    "retrain_chunk",
    "under_way",
]


Member = tuple[int, int]
"""One network to retrain: the seed, and the candidate's number."""


@dataclass(frozen=True)
class Chunk:
    """Networks to retrain in one call, as plain data that can be sent to another machine.

    ``dense`` is the file of the dense network's weights; ``members`` are seeds and candidates' ids.
    """

    spec: StudySpec
    dense: Path
    members: tuple[tuple[int, str], ...]
    engine: str


@dataclass(frozen=True, eq=False)
class Place:
    """Where chunks of one study are retrained: all that is built once for the chunks.

    ``data`` has the task of retraining, as :func:`trueoracle.engines.retrain.retraining_data` gives
    it. ``identity`` tells the study's retrainings from those of another dense network or recipe.
    """

    prepared: Prepared
    dense: nn.Module
    data: Splits
    identity: str

    @classmethod
    def of(cls, prepared: Prepared, dense: nn.Module) -> Place:
        """The place of a study whose dense network is given."""
        recipe = prepared.spec.retraining
        identity = f"{prepared.spec.outcome_digest}-{weights_sha256(dense)}"
        return cls(prepared, dense, retraining_data(prepared.data, recipe, dense), identity)


def retrain_chunk(
    chunk: Chunk,
    place: Place | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> list[Retrained]:
    """Prune and retrain a chunk's networks; returns what is recorded of each.

    A chunk that was interrupted goes on from the file of :func:`under_way`. Without a ``place``,
    one is built from the chunk alone. Raises :class:`InputError` where that is impossible, since
    network, data or task were given in Python.
    """
    at = place or _built(chunk.spec.model_dump_json(), chunk.dense)
    candidates, recipe = at.prepared.candidates, chunk.spec.retraining
    number = {name: index for index, name in enumerate(candidates.ids)}
    team = find_team()
    how = f"{chunk.engine}-sharded" if team is not None and team.is_sharded else chunk.engine
    started = time.perf_counter()
    records, _ = retrain(
        [candidates.prune(at.dense, number[name]) for _, name in chunk.members],
        [stream_of(recipe, seed, name) for seed, name in chunk.members],
        at.data,
        recipe,
        engine=chunk.engine,
        on_epoch=on_epoch,
        checkpoint=Checkpoint(under_way(chunk), f"{at.identity}-{how}-{chunk.members}"),
    )
    seconds = (time.perf_counter() - started) / len(chunk.members)
    return [
        Retrained(
            candidate=name,
            seed=seed,
            diverged=own[-1].diverged,
            seconds=seconds,
            epochs=[record.as_row() for record in own],
            blocks={} if own[-1].diverged else own[-1].blocks,
        )
        for (seed, name), own in zip(chunk.members, records, strict=True)
    ]


def follow(prepared: Prepared, team: Team) -> None:
    """Train together with the first process of a launch until that has finished the study."""
    place = None
    while (chunk := team.hear()) is not None:
        if place is None:
            network = copied(prepared.network)
            load_weights(network, chunk.dense)
            prepared = candidates_for(prepared, network, chunk.dense.parent)
            place = Place.of(prepared, network)
        retrain_chunk(chunk, place)


def under_way(chunk: Chunk) -> Path:
    """The file that keeps the networks of a chunk while they are trained, if that takes long."""
    return chunk.dense.parent / retraining_under_way(*chunk.members[0])


@lru_cache(maxsize=1)
def _built(fields: str, dense: Path) -> Place:
    """A place from plain data (a study as JSON), kept for the next chunk of the same study."""
    spec = StudySpec.model_validate_json(fields)
    if spec.network.fingerprint or spec.data.fingerprint or spec.task.startswith(GIVEN):
        raise InputError(f"{spec.name} was given in Python, and is retrained where it was given")
    prepared = prepare(spec)
    network = copied(prepared.network)
    load_weights(network, dense)
    return Place.of(candidates_for(prepared, network, dense.parent), network)


def launched(engine: str) -> str:
    """The engine for processes that were launched together; refuses any other engine for them."""
    if find_team() is None:
        return engine
    if engine not in ("auto", DevicesEngine.name):
        raise InputError(
            f"engine {engine!r} uses one device, and this process was launched with others: leave "
            "--engine out, or start it alone"
        )
    return DevicesEngine.name


def check_retraining(prepared: Prepared, engine: str) -> None:
    """Refuse an engine that cannot retrain the study's networks, by :class:`InputError`."""
    recipe = prepared.spec.retraining
    example = prepared.candidates.prune(prepared.network, 0)
    data = retraining_data(prepared.data, recipe, prepared.network)
    check_engine(engine_for(prepared.candidates, launched(engine)), example, data, recipe)


def retrain_candidates(at: Sitting, dense: nn.Module, plan: Plan) -> None:
    """Retrain every candidate with every seed; each chunk is committed once it is done."""
    prepared, store, progress = at.prepared, at.store, at.progress
    candidates, recipe = prepared.candidates, prepared.spec.retraining
    seconds = plan.seconds_a_network
    if seconds:  # images are read once for all networks that are trained as one
        seconds = max(seconds, at.reading_seconds(recipe) / plan.group)
    expected = f" ({about(seconds * at.left)})" if seconds else ""
    progress.message(f"retraining{expected}: {plan}")
    store.note(at.number, "engine", plan.engine)
    done = store.retrained()
    left = {
        seed: [i for i, name in enumerate(candidates.ids) if (seed, name) not in done]
        for seed in recipe.seeds
    }
    count = sum(map(len, left.values()))
    progress.stage("retrain", prepared.retrainings, prepared.retrainings - count, "networks")
    place, team = Place.of(prepared, dense), find_team()
    for members in chunks(left, plan):
        named = tuple((seed, candidates.ids[index]) for seed, index in members)
        chunk = Chunk(prepared.spec, at.folder / DENSE, named, plan.engine)
        shown = 0.0

        def show(networks: int) -> None:
            nonlocal shown  # the last step is left for recording the networks
            step = networks / (recipe.epochs + 1)
            shown += step
            progress.advance(step)

        if team is not None:
            team.tell(chunk)
        finished = retrain_chunk(chunk, place, show)
        store.record_retrained(finished)
        under_way(chunk).unlink(missing_ok=True)
        diverged = sum(one.diverged for one in finished)
        progress.advance(len(members) - shown, note=f"{diverged} diverged" if diverged else "")
    # What is left is of another engine, or of networks that were adopted.
    for path in at.folder.glob(RETRAINING):
        path.unlink(missing_ok=True)


def chunks(left: Mapping[int, Sequence[int]], plan: Plan) -> Iterator[list[Member]]:
    """What is left to retrain, in chunks of ``plan.groups`` groups of one seed each."""
    groups = [
        [(seed, index) for index in indices[i : i + plan.group]]
        for seed, indices in left.items()
        for i in range(0, len(indices), plan.group)
    ]
    for i in range(0, len(groups), plan.groups):
        yield [member for group in groups[i : i + plan.groups] for member in group]


def plan_retraining(at: Sitting, engine: str = "auto", memory: int | None = None) -> Plan | None:
    """How to retrain what is left; None where nothing is left.

    With the engine ``auto``, a resumed study keeps its engine if that is possible.
    """
    prepared, store, left = at.prepared, at.store, at.left
    if not left:
        return None
    pruned = prepared.candidates.prune(prepared.network, 0)

    recipe = prepared.spec.retraining
    if recipe.procedure is not None and find_team() is None:
        return Plan(LoopEngine.name, "a training procedure of one's own")
    data = retraining_data(prepared.data, recipe, prepared.network)

    def choose(name: str) -> Plan:
        wanted = engine_for(prepared.candidates, name)
        return plan(pruned, data, recipe, members=left, engine=wanted, memory=memory)

    before = store.noted("engine")
    if find_team() is not None:
        return choose(launched(engine))
    if engine == "auto" and before:
        try:
            return replace(choose(before), reason="as in the sitting before")
        except InputError as error:  # as can happen on another machine
            at.progress.message(f"retraining cannot go on as it began: {error}")
    return choose(engine)
