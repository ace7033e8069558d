"""Many candidates trained as one: which engine, how many at a time, and the training itself.

Three engines give every member the result of :func:`loop.train`, to floating-point tolerance:
``native`` (vector lanes on the CPU), ``wide`` (PyTorch, stacked weights) and ``loop`` (one after
the other). :func:`plan` chooses; :func:`train_population` trains, and :func:`train_epochs` some
epochs of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine
from trueoracle.engines.devices import DevicesEngine
from trueoracle.engines.loop import LoopEngine
from trueoracle.engines.memory import (
    available_memory,
    evaluated_at_once,
    readable_bytes,
    training_bytes,
    ways_to_fit,
)
from trueoracle.engines.native import NativeEngine
from trueoracle.engines.wide import WideEngine
from trueoracle.errors import InputError, unknown
from trueoracle.networks.copying import copied
from trueoracle.pruning.candidates import CandidateList
from trueoracle.tasks.base import INPUT
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import EpochRecord, Stream, epoch_record
from trueoracle.training.recipe import Recipe, Retraining

__all__ = [
    "ENGINES",
    "Plan",
    "check_engine",
    "engine_for",
    "plan",
    "seconds_alone",
    "train_epochs",
    "train_population",
]

CHUNK_SECONDS = 60.0
"""Seconds that one call of :func:`train_population` should take: a killed run loses little more.

A call has to train at least one group per thread, however long that takes.
"""

_PILOT_EXAMPLES = 64
_PILOT_LARGE = 4
_LARGE = 128
"""Images of more pixels a side take so long that a few of them suffice for a trial."""


@dataclass(frozen=True)
class Plan:
    """How a study's networks are retrained.

    ``group`` members are computed as one, and ``groups`` such groups are trained in one call.
    ``reason`` says in one line why the engine was chosen. ``seconds_a_network`` is what a whole
    retraining, evaluation included, would take per network with all threads at work, as estimated
    from the trial; None without a trial.
    """

    engine: str
    reason: str
    group: int = 1
    groups: int = 1
    seconds_a_network: float | None = None

    def __str__(self) -> str:
        many = f"{self.group} networks as one" if self.group > 1 else "one network at a time"
        return f"engine {self.engine}, {many}: {self.reason}"


_ALONE: dict[str, Engine] = {
    engine.name: engine for engine in (NativeEngine(), WideEngine(), LoopEngine())
}
"""The fastest first: only the first that can express a network is tried against the loop."""

_ENGINES: dict[str, Engine] = _ALONE | {DevicesEngine.name: DevicesEngine()}

ENGINES = ("auto", *reversed(_ALONE), DevicesEngine.name)


def train_population(
    networks: Sequence[nn.Module],
    streams: Sequence[Stream],
    data: Splits,
    recipe: Recipe,
    *,
    engine: str,
    on_epoch: Callable[[int], None] | None = None,
) -> list[list[EpochRecord]]:
    """Train networks of equal shapes in place; returns a list of epoch records per network.

    The last epoch's record also has the sums over the data's blocks of examples. ``streams[i]`` is
    where the random numbers of network i come from. A network whose training loss is no longer
    finite has no records after that epoch. ``on_epoch`` is called with the number of networks that
    were trained for one more epoch.
    """
    records, _ = train_epochs(
        networks, streams, data, recipe, range(recipe.epochs), engine=engine, on_epoch=on_epoch
    )
    return records


def train_epochs(
    networks: Sequence[nn.Module],
    streams: Sequence[Stream],
    data: Splits,
    recipe: Recipe,
    epochs: range,
    *,
    engine: str,
    states: Sequence[MemberState] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[list[list[EpochRecord]], list[MemberState]]:
    """Train some ``epochs`` of the recipe in place; returns the records and the states after them.

    ``states[i]`` is what an earlier call returned for network i, which must still have the weights
    of that call; ``states`` is None at the recipe's beginning. A network that is continued ends as
    it would without the break, even where other networks were left out, the groups changed or
    another engine continues. With a ``checkpoint``, an interrupted call continues from what the
    checkpoint holds. All else is as in :func:`train_population`.
    """
    records: list[list[EpochRecord]] = [[] for _ in networks]
    kept = None if checkpoint is None else checkpoint.load(networks)
    if kept is not None:
        states = kept.states
        records = [[EpochRecord.from_row(row) for row in own] for own in kept.records]
    population = _ENGINES[engine].start(networks, streams, data, recipe, states=states)
    steps = recipe.steps_in_epoch(len(data.train))

    def keep() -> None:
        if checkpoint is None or not checkpoint.is_due or (kept := population.kept()) is None:
            return
        checkpoint.save(kept, [[record.as_row() for record in own] for own in records])

    done = max(map(len, records))
    if on_epoch is not None:
        for _ in range(done):
            on_epoch(len(networks))
    for epoch in epochs[done:]:
        population.train_epoch(epoch, keep)
        is_last = epoch + 1 == recipe.epochs
        rate = recipe.learning_rate_at(epoch, 0, steps)
        measured = population.measure(by_block=is_last)
        for member, own in enumerate(records):
            if not (own and own[-1].diverged):
                values = {
                    split: {metric: float(each[member]) for metric, each in of_split.items()}
                    for split, of_split in measured.values.items()
                }
                blocks = {
                    split: {metric: each[member].tolist() for metric, each in of_split.items()}
                    for split, of_split in measured.blocks.items()
                }
                own.append(epoch_record(epoch, rate, values, data.task, blocks))
        if on_epoch is not None:
            on_epoch(len(networks))
        if all(own[-1].diverged for own in records):
            break
        if not is_last:  # the caller records the last epoch, with its blocks, right away
            keep()
    after = population.states() if epochs.stop < recipe.epochs else [{} for _ in networks]
    population.write_back()
    return records, after


def plan(
    network: nn.Module,
    data: Splits,
    recipe: Recipe,
    *,
    members: int,
    engine: str = "auto",
    memory: int | None = None,
) -> Plan:
    """Choose how to retrain ``members`` networks like ``network``.

    ``auto`` tries the engines that can express the network for a moment and takes the fastest.
    ``memory`` (bytes; by default half of what is free) bounds what a population takes. Where no
    population fits, the loop remains, which trains one network at a time. Raises
    :class:`InputError` where the named engine cannot train the network, or not within the memory.
    """
    check_engine(engine, network, data, recipe)
    if engine != "auto" and not _ENGINES[engine].is_tried:
        return Plan(engine, "processes that were launched together")
    budget = memory or available_memory(data.train.device) // 2
    refusals: dict[str, str] = {}
    wanted = [engine]
    if engine == "auto":
        wanted, refusals = _possible(network, data, recipe)
    if wanted == [LoopEngine.name]:  # before the trial, which may need as much memory
        _check_alone(network, data, recipe)
    trials = [_try(name, network, data, recipe, budget) for name in wanted]
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise InputError(
            f"{trials[0].group} of these networks, which engine {trials[0].engine!r} trains as "
            f"one, need {readable_bytes(trials[0].needs)}, and --memory leaves "
            f"{readable_bytes(budget)}"
        )
    best = min(fitting, key=lambda trial: trial.seconds * _ENGINES[trial.engine].handicap)
    reason = "asked for"
    if engine == "auto":
        figures = ", ".join(f"{t.engine} {t.seconds * 1000:.3g} ms" for t in fitting)
        reason = f"{figures} a network and step of {_pilot_examples(data, recipe)} examples"
        reason += "".join(f"; {name} cannot: {why}" for name, why in refusals.items())
        reason += "".join(
            f"; {t.engine} needs {readable_bytes(t.needs)}, and --memory leaves "
            f"{readable_bytes(budget)}"
            for t in trials
            if not t.fits
        )
    if not best.needs and len(wanted) > 1:
        _check_alone(network, data, recipe)
    return _sized(best, reason, data, recipe, members)


def _check_alone(network: nn.Module, data: Splits, recipe: Recipe) -> None:
    """Raise :class:`InputError` where memory does not even hold one network at a time."""
    batch = min(recipe.batch_size, len(data.train))
    example, free = data.example(1), available_memory(data.train.device)
    evaluated = evaluated_at_once(data)
    needed = training_bytes(network, example, batch, recipe, data.task, evaluated)
    if needed > free:
        raise InputError(
            f"retraining one network on {batch:,} examples a step needs "
            f"{readable_bytes(needed)} of memory, and {readable_bytes(free)} are free: "
            + ways_to_fit(network, example, batch, recipe, data.task, free, evaluated)
        )


def engine_for(candidates: CandidateList, engine: str) -> str:
    """``engine``, but ``loop`` instead of ``auto`` for candidates that do not compute alike.

    Raises :class:`InputError` where such candidates are to be trained by an engine that computes
    several networks as one.
    """
    if candidates.is_uniform or engine not in ENGINES:
        return engine
    if engine == DevicesEngine.name:
        return engine
    if engine not in ("auto", LoopEngine.name):
        raise InputError(
            f"engine {engine!r} computes networks as one that differ in nothing but their "
            f"weights, and candidates that lose {candidates.units} differ in more: take 'loop'"
        )
    return LoopEngine.name


def check_engine(engine: str, network: nn.Module, data: Splits, recipe: Recipe) -> None:
    """Raise :class:`InputError` for an unknown engine, or one that cannot train the network."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine != "auto" and (why := _refusal(engine, network, data, recipe)):
        raise InputError(f"engine {engine!r} cannot train this network: {why}")


def _refusal(engine: str, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
    if isinstance(recipe, Retraining) and recipe.procedure and engine != LoopEngine.name:
        return "retraining.procedure trains one network at a time"
    return _ENGINES[engine].refusal(network, data, recipe)


def _possible(network: nn.Module, data: Splits, recipe: Recipe) -> tuple[list[str], dict[str, str]]:
    """The engines to try, and why the others cannot.

    Where the native kernels can express a network, they train it several times as fast as ``wide``
    does, so that a trial of ``wide`` would only cost time.
    """
    refusals: dict[str, str] = {}
    *fast, last = _ALONE
    for name in fast:
        why = _refusal(name, network, data, recipe)
        if why is None:
            return [name, last], refusals
        refusals[name] = why
    return [last], refusals


@dataclass(frozen=True)
class _Trial:
    """An engine's trial on a few examples.

    ``group`` is the number of members computed as one, ``most`` the number that fits into memory,
    ``seconds`` the time per network and step, ``needs`` the memory of one group in bytes.
    """

    engine: str
    group: int
    most: int
    seconds: float
    needs: int = 0

    @property
    def fits(self) -> bool:
        return self.most >= self.group


def _try(name: str, network: nn.Module, data: Splits, recipe: Recipe, budget: int) -> _Trial:
    engine = _ENGINES[name]
    lanes, memory = engine.lanes(network, data), engine.memory(network, data, recipe)
    most = (budget - memory.fixed) // max(memory.each, 1) if any(memory) else lanes
    seconds = math.inf
    if most >= lanes:
        members, examples = engine.trial_members(lanes, most), _pilot_examples(data, recipe)
        seconds = _seconds_a_step(name, network, data, recipe, members, examples)
    needs = memory.fixed + memory.each * lanes
    return _Trial(name, lanes, most, seconds, needs)


def seconds_alone(network: nn.Module, data: Splits, recipe: Recipe) -> float:
    """Seconds that the loop will take to train one network, estimated from three short steps."""
    examples = _pilot_examples(data, recipe)
    if _are_large(data):
        examples = min(examples, _PILOT_LARGE)
    step = _seconds_a_step(LoopEngine.name, network, data, recipe, 1, examples)
    return step / examples * _examples_seen(data, recipe)


def _are_large(data: Splits) -> bool:
    shape = data.train.shapes.get(INPUT, ())
    return len(shape) == 3 and min(shape[1:]) >= _LARGE


def _examples_seen(data: Splits, recipe: Recipe) -> float:
    """Examples that a training computes; an evaluated one counts a third of a trained one."""
    trained = recipe.examples_in_epoch(len(data.train))
    return recipe.epochs * (trained + sum(len(s) for _, s in data.named()) / 3)


def _seconds_a_step(
    engine: str, network: nn.Module, data: Splits, recipe: Recipe, members: int, examples: int
) -> float:
    train = data.train.take(torch.arange(examples))
    few = replace(data, train=train, validation=None, measured=None)
    networks = [copied(network) for _ in range(members)]
    population = _ENGINES[engine].start(networks, [(0, "")] * members, few, recipe)
    seconds = math.inf
    for _ in range(3):  # the first warms up
        started = time.perf_counter()
        population.train_epoch(0)
        if data.train.device.type == "cuda":
            torch.cuda.synchronize(data.train.device)
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / members


def _pilot_examples(data: Splits, recipe: Recipe) -> int:
    return min(_PILOT_EXAMPLES, recipe.batch_size, len(data.train))


def _sized(trial: _Trial, reason: str, data: Splits, recipe: Recipe, members: int) -> Plan:
    """The plan: as many networks at once as memory holds and about a minute can train."""
    engine, examples = _ENGINES[trial.engine], _pilot_examples(data, recipe)
    expected = trial.seconds * _examples_seen(data, recipe) / examples
    in_time = max(1, int(CHUNK_SECONDS / expected))
    if not engine.uses_threads:
        on_cpu = data.train.device.type == "cpu"
        group = min(engine.group(trial.group, trial.most, in_time, on_cpu=on_cpu), members)
        return Plan(engine.name, reason, group, seconds_a_network=expected)
    threads = torch.get_num_threads()
    # At least one group per thread, however long that takes, and always whole rounds of groups.
    groups = max(threads, in_time // trial.group // threads * threads)
    groups = min(groups, trial.most // trial.group)
    at_once = trial.group * threads
    # Empty lanes take as long as full ones.
    expected *= math.ceil(members / at_once) * at_once / members
    return Plan(engine.name, reason, trial.group, groups, expected)
