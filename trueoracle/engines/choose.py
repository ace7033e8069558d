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
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.engines import native, wide
from trueoracle.engines.continuing import MemberState, restore, state_of
from trueoracle.engines.memory import available_memory, readable_bytes, training_bytes
from trueoracle.errors import InputError, unknown
from trueoracle.networks.copying import copied
from trueoracle.training.evaluate import evaluate_together
from trueoracle.training.loop import EpochRecord, Stream, make_optimizer, train_epoch
from trueoracle.training.recipe import Recipe

__all__ = [
    "ENGINES",
    "Engine",
    "Plan",
    "check_engine",
    "plan",
    "seconds_alone",
    "train_epochs",
    "train_population",
]

Engine = Literal["loop", "wide", "native"]
ENGINES: tuple[str, ...] = ("auto", *get_args(Engine))

CHUNK_SECONDS = 60.0
"""Aim for one call of :func:`train_population`: what a killed run loses at most, roughly.

A call has to train one group for each thread, however long that takes.
"""

_MOST_WIDE = 16
"""Members of a wide population on the CPU: more at once gain nothing, and large tensors cost."""

_PILOT_IMAGES = 64
_PILOT_MEMBERS = 4
_LARGE = 128
"""Images of more pixels a side take long enough for a few of them to tell."""


@dataclass(frozen=True)
class Plan:
    """How a study's networks are retrained.

    ``group`` members are computed as one, ``groups`` of them are trained in one call; ``reason``
    says in one line why this engine. ``seconds_a_network`` is what the trial lets expect of a whole
    retraining, evaluation included, with all threads at work; None without a trial.
    """

    engine: Engine
    reason: str
    group: int = 1
    groups: int = 1
    seconds_a_network: float | None = None

    def __str__(self) -> str:
        many = f"{self.group} networks as one" if self.group > 1 else "one network at a time"
        return f"engine {self.engine}, {many}: {self.reason}"


class Population(Protocol):
    """What an engine is: networks of one shape in training."""

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training images."""

    def measure(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Losses and accuracies, float64 ``[P]``, by split name."""

    def write_back(self) -> None:
        """The weights as they are now into the networks given."""

    def states(self) -> list[MemberState]:
        """What the optimiser remembers of each member: all that going on needs, but weights."""


class LoopPopulation:
    """The reference as a population: each network is trained by itself."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        states: Sequence[MemberState] | None = None,
    ) -> None:
        self._networks, self._streams = networks, streams
        self._data, self._recipe = data, recipe
        self._optimizers = [make_optimizer(n.parameters(), recipe) for n in networks]
        for network, optimizer, state in zip(
            networks, self._optimizers, states or (), strict=False
        ):
            restore(optimizer, dict(network.named_parameters()), [state], stacked=False)

    def train_epoch(self, epoch: int) -> None:
        for network, optimizer, stream in zip(
            self._networks, self._optimizers, self._streams, strict=True
        ):
            train_epoch(network, optimizer, self._data, self._recipe, epoch, stream)

    def measure(self) -> dict[str, tuple[Tensor, Tensor]]:
        measured = {}
        for name, split in self._data.named():
            found = evaluate_together(self._networks, split)
            values = torch.tensor([(m.loss, m.accuracy) for m in found], dtype=torch.float64)
            measured[name] = (values[:, 0], values[:, 1])
        return measured

    def write_back(self) -> None:
        """They were trained in place."""

    def states(self) -> list[MemberState]:
        return [
            state_of(optimizer, dict(network.named_parameters()))
            for network, optimizer in zip(self._networks, self._optimizers, strict=True)
        ]


_POPULATIONS: dict[Engine, Callable[..., Population]] = {
    "loop": LoopPopulation,
    "wide": wide.WidePopulation,
    "native": native.NativePopulation,
}


def train_population(
    networks: Sequence[nn.Module],
    streams: Sequence[Stream],
    data: Splits,
    recipe: Recipe,
    *,
    engine: Engine,
    on_epoch: Callable[[int], None] | None = None,
) -> list[list[EpochRecord]]:
    """Train networks of equal shapes in place; one list of records a network, as ``train`` gives.

    ``streams[i]`` is where the random numbers of network i come from. A network whose training
    loss is no longer finite has no records after that epoch. ``on_epoch`` is told each time how
    many of the networks were trained for one more epoch.
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
    engine: Engine,
    states: Sequence[MemberState] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> tuple[list[list[EpochRecord]], list[MemberState]]:
    """Train some ``epochs`` of the recipe in place: the records, and the states to go on from.

    ``states[i]`` is what an earlier call gave for network i, which still has that call's weights;
    None at the recipe's beginning. Whoever goes on ends as without the break: members may be left
    out, grouped otherwise, or trained on by another engine. Else as :func:`train_population`.
    """
    population = _POPULATIONS[engine](networks, streams, data, recipe, states=states)
    records: list[list[EpochRecord]] = [[] for _ in networks]
    for epoch in epochs:
        population.train_epoch(epoch)
        for own, record in zip(records, _records(population, recipe, epoch), strict=True):
            if not (own and own[-1].diverged):
                own.append(record)
        if on_epoch is not None:
            on_epoch(len(networks))
        if all(own[-1].diverged for own in records):
            break
    population.write_back()
    return records, population.states()


def _records(population: Population, recipe: Recipe, epoch: int) -> list[EpochRecord]:
    nothing = {"validation_loss": math.nan, "validation_accuracy": math.nan}
    columns: dict[str, list[float]] = {}
    for name, (losses, accuracies) in population.measure().items():
        columns[f"{name}_loss"] = losses.tolist()
        columns[f"{name}_accuracy"] = accuracies.tolist()
    rate = recipe.learning_rate_at(epoch)
    return [
        EpochRecord(
            epoch=epoch,
            learning_rate=rate,
            **(nothing | dict(zip(columns, values, strict=True))),
        )
        for values in zip(*columns.values(), strict=True)
    ]


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

    ``auto`` takes the fastest in a short trial of those engines that can express the network.
    ``memory`` (bytes; by default half of what is free) bounds what populations take; the loop, one
    network at a time, is what is left where it holds none. Raises :class:`InputError` where the
    engine asked for cannot, or the memory does not hold it.
    """
    check_engine(engine, network, data, recipe)
    budget = memory or available_memory(data.train.device) // 2
    refusals: dict[str, str] = {}
    wanted = [cast(Engine, engine)]
    if engine == "auto":
        wanted, refusals = _possible(network, data, recipe)
    trials = [_try(name, network, data, recipe, budget) for name in wanted]
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise InputError(
            f"{trials[0].group} of these networks, which engine {trials[0].engine!r} trains as "
            f"one, need {readable_bytes(trials[0].needs)}, and --memory leaves "
            f"{readable_bytes(budget)}"
        )
    best = min(fitting, key=lambda trial: trial.seconds * _HANDICAP[trial.engine])
    reason = "asked for"
    if engine == "auto":
        figures = ", ".join(f"{t.engine} {t.seconds * 1000:.3g} ms" for t in fitting)
        reason = f"{figures} a network and step of {_pilot_images(data, recipe)} images"
        reason += "".join(f"; {name} cannot: {why}" for name, why in refusals.items())
        reason += "".join(
            f"; {t.engine} needs {readable_bytes(t.needs)}, and --memory leaves "
            f"{readable_bytes(budget)}"
            for t in trials
            if not t.fits
        )
    if best.engine == "loop":
        _check_loop(network, data, recipe)
    return _sized(best, reason, data, recipe, members)


def _check_loop(network: nn.Module, data: Splits, recipe: Recipe) -> None:
    """Refuse what no memory is left for even one network at a time, by :class:`InputError`."""
    batch = min(recipe.batch_size, len(data.train))
    needed = training_bytes(network, data.train.image_shape, batch, recipe)
    free = available_memory(data.train.device)
    if needed > free:
        raise InputError(
            f"retraining one network on {batch:,} images at a time needs {readable_bytes(needed)} "
            f"of memory, and {readable_bytes(free)} are free: lower retraining.batch_size"
        )


def check_engine(engine: str, network: nn.Module, data: Splits, recipe: Recipe) -> None:
    """Refuse an engine that cannot train the network, or is none, by :class:`InputError`."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if why := _refusal(engine, network, data, recipe):
        raise InputError(f"engine {engine!r} cannot train this network: {why}")


def _refusal(engine: str, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
    if engine == "native":
        return native.refusal(network, data, recipe)
    if engine == "wide":
        few = torch.arange(min(2, len(data.train)))
        return wide.refusal(network, recipe, data.train.take(few).images)
    return None


def _possible(
    network: nn.Module, data: Splits, recipe: Recipe
) -> tuple[list[Engine], dict[str, str]]:
    """The engines to try, and why the others cannot.

    What the native kernels can express they train several times as fast as ``wide``, whose own
    trial would then only cost time.
    """
    refusals: dict[str, str] = {}
    fast: tuple[Engine, Engine] = ("native", "wide")
    for name in fast:
        why = _refusal(name, network, data, recipe)
        if why is None:
            return [name, "loop"], refusals
        refusals[name] = why
    return ["loop"], refusals


# Which engine is fastest is seen with a stopwatch, so that a near tie could fall otherwise in the
# next sitting: a clear order decides those.
_HANDICAP = {"native": 0.7, "wide": 1.0, "loop": 0.95}


@dataclass(frozen=True)
class _Trial:
    """What an engine did with a few images: seconds a network and step; members that fit.

    ``needs`` is the memory of one group, in bytes.
    """

    engine: Engine
    group: int
    most: int
    seconds: float
    needs: int = 0

    @property
    def fits(self) -> bool:
        return self.most >= self.group


def _try(engine: Engine, network: nn.Module, data: Splits, recipe: Recipe, budget: int) -> _Trial:
    group, most, members, fixed, each = 1, 1, 1, 0, 0
    if engine == "native":
        group = native.lanes(network, data)
        fixed, each = native.measure_memory(network, data, recipe)
        most = (budget - fixed) // each
        members = group * max(1, min(torch.get_num_threads(), most // group))
    elif engine == "wide":
        fixed, each = wide.measure_memory(network, data, recipe)
        most = (budget - fixed) // max(each, 1)
        members = max(1, min(most, _PILOT_MEMBERS))
    seconds = math.inf
    if most >= group:
        images = _pilot_images(data, recipe)
        seconds = _seconds_a_step(engine, network, data, recipe, members, images)
    return _Trial(engine, group, most, seconds, needs=fixed + each * group)


def seconds_alone(network: nn.Module, data: Splits, recipe: Recipe) -> float:
    """Seconds that the loop will take to train one network, from three steps of a few images."""
    images = _pilot_images(data, recipe)
    if min(data.train.image_shape[1:], default=0) >= _LARGE:
        images = min(images, _PILOT_MEMBERS)
    step = _seconds_a_step("loop", network, data, recipe, 1, images)
    return step / images * _images_seen(data, recipe)


def _images_seen(data: Splits, recipe: Recipe) -> float:
    """Images of a whole training; evaluation costs about a third of a training step an image."""
    return recipe.epochs * (len(data.train) + sum(len(s) for _, s in data.named()) / 3)


def _seconds_a_step(
    engine: Engine, network: nn.Module, data: Splits, recipe: Recipe, members: int, images: int
) -> float:
    few = replace(data, train=data.train.take(torch.arange(images)), validation=None, measured=None)
    networks = [copied(network) for _ in range(members)]
    population = _POPULATIONS[engine](networks, [(0, "")] * members, few, recipe)
    seconds = math.inf
    for _ in range(3):  # the first warms up
        started = time.perf_counter()
        population.train_epoch(0)
        if data.train.device.type == "cuda":
            torch.cuda.synchronize(data.train.device)
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / members


def _pilot_images(data: Splits, recipe: Recipe) -> int:
    return min(_PILOT_IMAGES, recipe.batch_size, len(data.train))


def _sized(trial: _Trial, reason: str, data: Splits, recipe: Recipe, members: int) -> Plan:
    """How many networks at once: within memory, and in calls of about a minute."""
    images = _pilot_images(data, recipe)
    expected = trial.seconds * _images_seen(data, recipe) / images
    in_time = max(1, int(CHUNK_SECONDS / expected))
    if trial.engine == "loop":
        return Plan("loop", reason, seconds_a_network=expected)
    if trial.engine == "wide":
        on_cpu = data.train.device.type == "cpu"
        most = min(trial.most, _MOST_WIDE) if on_cpu else trial.most
        group = min(most, members, max(in_time, _PILOT_MEMBERS))
        return Plan("wide", reason, group, seconds_a_network=expected)
    threads = torch.get_num_threads()
    # A group each for the threads, however long that takes, and whole rounds of them.
    groups = max(threads, in_time // trial.group // threads * threads)
    groups = min(groups, trial.most // trial.group)
    at_once = trial.group * threads
    expected *= math.ceil(members / at_once) * at_once / members  # empty lanes take as long
    return Plan("native", reason, trial.group, groups, expected)
