"""Retraining a study's candidates, chunk by chunk."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from torch import nn

from trueoracle.engines.choose import Plan, check_engine, engine_for, plan
from trueoracle.engines.devices import DevicesEngine
from trueoracle.engines.loop import LoopEngine
from trueoracle.engines.retrain import retraining_data
from trueoracle.errors import InputError
from trueoracle.executors.base import ChunkExecutor, InThisProcess
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import load_weights
from trueoracle.record.layout import CHUNK_THREADS, MOST_AT_ONCE
from trueoracle.record.paths import DENSE, RETRAINING
from trueoracle.record.store import Failed
from trueoracle.run.around import candidates_for
from trueoracle.run.chunks import Chunk, Shared, retrain_chunk, threads, under_way
from trueoracle.run.drive import Queue, cut, drive
from trueoracle.run.faults import error_in_words
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import about
from trueoracle.run.sitting import Sitting
from trueoracle.training.team import Team, find_team

__all__ = [
    "check_retraining",
    "follow",
    "plan_networks",
    "plan_retraining",
    "retrain_candidates",
]


def follow(prepared: Prepared, team: Team) -> None:
    """Train together with the first process of a launch until that has finished the study."""
    shared = None
    while (chunk := team.hear()) is not None:
        if shared is None:
            network = copied(prepared.network)
            load_weights(network, chunk.dense)
            prepared = candidates_for(prepared, network, chunk.dense.parent)
            shared = Shared.of(prepared, network)
        retrain_chunk(chunk, shared)


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


def retrain_candidates(
    at: Sitting, dense: nn.Module, plan: Plan, executor: ChunkExecutor | None = None
) -> None:
    """Retrain every candidate with every seed; each chunk is committed once it is done.

    The ``executor`` runs the chunks, by default this process; only this process records. A chunk
    that fails is cut in two until the network that fails is alone, which is then recorded as
    failed.
    """
    prepared, store, progress = at.prepared, at.store, at.progress
    recipe = prepared.spec.retraining
    executor = executor or InThisProcess()
    seconds = plan.seconds_a_network
    if seconds:  # images are read once for all networks that are trained as one
        seconds = max(seconds, at.reading_seconds(recipe) / plan.group)
    expected = f" ({about(seconds * at.left)})" if seconds else ""
    where = ""
    if executor.is_elsewhere:
        expected, where = expected.replace(")", " on one worker)"), f" on {executor}"
    progress.message(f"retraining{where}{expected}: {plan}")
    store.note(at.number, "engine", plan.engine)
    if executor.is_elsewhere and executor.threads is not None:
        store.note(at.number, CHUNK_THREADS, executor.threads)
    shared = Shared.of(prepared, dense)
    done = at.done()
    left = {
        seed: [i for i, name in enumerate(prepared.candidates.ids) if (seed, name) not in done]
        for seed in recipe.seeds
    }
    count = sum(map(len, left.values()))
    progress.stage("retrain", prepared.retrainings, prepared.retrainings - count, "networks")
    a_step = 1 / (recipe.epochs + 1)  # the last one is left for recording the networks
    known: set[str] = set()

    def on_failed(chunk: Chunk, error: Exception) -> None:
        ((seed, name),) = chunk.members
        words = error_in_words(error)
        store.record_failed([Failed(name, seed, words)])
        if words not in known:
            known.add(words)
            progress.message(f"retraining candidate {name} with seed {seed} failed: {words}")
        progress.advance(1, note="1 failed")

    queue = Queue(
        cut(shared, at.folder / DENSE, left, plan, executor),
        progress.message,
        on_smaller=lambda most: store.note(at.number, MOST_AT_ONCE, most),
        on_failed=on_failed,
    )

    def show(epochs: float) -> None:
        progress.advance(epochs * a_step)

    with closing(drive(retrain_chunk, queue, shared, executor, show)) as finished:
        for chunk, networks, shown in finished:
            store.record_retrained(networks)
            for path in under_way(chunk):
                path.unlink(missing_ok=True)
            diverged = sum(one.diverged for one in networks)
            note = f"{diverged} diverged" if diverged else ""
            progress.advance(len(networks) - shown * a_step, note=note)
    # What is left is of another engine, or of networks that were adopted.
    for path in at.folder.glob(RETRAINING):
        path.unlink(missing_ok=True)


def plan_retraining(
    at: Sitting,
    engine: str = "auto",
    memory: int | None = None,
    executor: ChunkExecutor | None = None,
) -> Plan | None:
    """How to retrain what is left; None where nothing is left.

    With the engine ``auto``, a resumed study keeps its engine if that is possible. What is tried
    runs on as many threads as a chunk of the ``executor`` will.
    """
    left, before = at.left, at.store.noted("engine")
    if not left:
        return None
    with threads((executor or InThisProcess()).threads):
        if engine == "auto" and before and find_team() is None:
            try:
                again = plan_networks(at.prepared, before, memory, left)
            except InputError as error:  # as can happen on another machine
                at.progress.message(f"retraining cannot go on as it began: {error}")
            else:
                return replace(again, reason="as in the sitting before")
        return plan_networks(at.prepared, engine, memory, left)


def plan_networks(prepared: Prepared, engine: str, memory: int | None, members: int) -> Plan:
    """How to retrain so many networks of a study, from a trial of the engines."""
    recipe, network = prepared.spec.retraining, prepared.network
    if recipe.procedure is not None and find_team() is None:
        return Plan(LoopEngine.name, "a training procedure of one's own")
    return plan(
        prepared.candidates.prune(network, 0),
        retraining_data(prepared.data, recipe, network),
        recipe,
        members=members,
        engine=engine_for(prepared.candidates, launched(engine)),
        memory=memory,
    )
