"""Train networks of equal shapes as one, on their stacked weights.

Each member is trained as the loop would train it alone. :func:`refusal` tries beforehand whether
this works for a network; ``stacked.py`` computes the members together.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from trueoracle.data.splits import AnySplit, Splits
from trueoracle.engines.base import Engine, Measured, Memory, what_only_the_loop_does
from trueoracle.engines.memory import LiveBytes
from trueoracle.engines.stacked import Convolution, Each, Input, Stacked, tensors, wait_for
from trueoracle.errors import first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import no_fast_path
from trueoracle.networks.operations import in_both_modes
from trueoracle.networks.tracing import why_not_traced
from trueoracle.tasks.base import INPUT, TARGETS, Batch, Task
from trueoracle.training.checkpoint import Keepable
from trueoracle.training.continuing import Begun, MemberState, restore, state_of
from trueoracle.training.evaluate import Tally, evaluation_batch
from trueoracle.training.loop import (
    Stream,
    batches,
    make_optimizer,
    stream_seed,
    training_task,
)
from trueoracle.training.recipe import Recipe, Retraining

__all__ = ["WideEngine", "WidePopulation", "measure_memory", "refusal"]

_MOST_ON_A_CPU = 16
"""Most members of a population on a CPU: more gain nothing, and large tensors are slow."""

_TRIED = 4
"""How many members a trial has."""

Given = Input | Mapping[str, Input]
"""The networks' input: one, or several by name."""


class WidePopulation:
    """P networks of one architecture in training, each as ``loop.train`` would train it alone.

    ``streams[i]`` is (seed, stream) of member i; members with equal streams see the same batches.
    Where all streams are equal, all members draw the same dropout (on a CPU the same as the loop,
    unless a tensor has another order in memory). Where streams differ, dropout is independent
    between members, and depends on which members the population has. ``data`` is on the device to
    train on. ``networks`` may be on another one; only :meth:`write_back` changes them.

    ``compiled`` puts the step through ``torch.compile``. ``convolution`` fixes how
    convolutions are computed: "members" one by one (the default on a CPU), "grouped" as one grouped
    convolution, "columns" as products of patches, or whichever is "measured" as the fastest (the
    default on CUDA, where fixing it makes the rounding of two runs agree). ``states``, one per
    member, are those of an earlier population, which this one continues.

    Raises ``ValueError`` where the networks differ in more than their weights, and whatever tracing
    raises.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        compiled: bool = False,
        convolution: Convolution | None = None,
        states: Sequence[MemberState] | None = None,
    ) -> None:
        if not networks or len(networks) != len(streams):
            raise ValueError(f"{len(networks)} networks need as many streams, got {len(streams)}")
        self._networks, self._data, self._recipe = list(networks), data, recipe
        self._task = training_task(data.task, recipe)
        self._streams = list(dict.fromkeys(streams))
        self._stream_of = [self._streams.index(stream) for stream in streams]
        self._device = data.train.device
        common = len(self._streams) == 1
        self._stacked = Stacked(
            self._networks,
            self._device,
            convolution,
            common_draws=common,
            inputs=_names_of(data.train.shapes),
        )
        self._optimizer = make_optimizer(self._stacked.parameters(), recipe)
        if states:
            restore(self._optimizer, self._stacked.state, states, stacked=True)
        if compiled:  # torch limits how often it compiles, earlier populations included
            torch.compiler.reset()
        self._compiled = torch.compile(self._loss, dynamic=False) if compiled else None
        self._shapes_seen: set[tuple[torch.Size, ...]] = set()
        self._begun = Begun.read(states[0]) if states else None

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        """One pass over the training split, or the rest of a pass that was begun."""
        begun, self._begun = self._begun, None
        first = 0 if begun is None else begun.step
        steps = self._recipe.steps_in_epoch(len(self._data.train))
        self._stacked.train(True)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            seed, stream = self._streams[0]
            torch.manual_seed(stream_seed(seed, epoch, "network", stream))
            if begun is not None:
                begun.go_on(self._device)
            with _attention_that_maps(self._device):
                for step, (inputs, batch) in enumerate(self._batches(epoch, first), first):
                    for group in self._optimizer.param_groups:
                        group["lr"] = self._recipe.learning_rate_at(epoch, step, steps)
                    self._step(inputs, batch)
                    if between_steps is not None and step + 1 < steps:
                        self._begun = Begun.now(step + 1, self._device)
                        between_steps()
                        self._begun = None

    def measure(self, *, by_block: bool = False) -> Measured:
        """The metrics of every split, float64 ``[P]`` each, as ``evaluate`` would give them."""
        self._stacked.train(False)
        measured = Measured({}, {})
        with torch.inference_mode(), _attention_that_maps(self._device):
            for name, split in self._data.named():
                blocks = self._data.blocks.get(name) if by_block else None
                tally = self._tally(split, blocks)
                measured.values[name] = tally.metrics()
                if blocks is not None:
                    measured.blocks[name] = tally.by_block()
        return measured

    def write_back(self) -> None:
        """Copy the trained weights and buffers into the given networks, in place."""
        with torch.no_grad():
            for i, network in enumerate(self._networks):
                for name, value in tensors(network).items():
                    value.copy_(self._stacked.state[name][i])

    def kept(self) -> list[Keepable]:
        """The weights and the optimiser's state of each network."""
        self.write_back()
        weights = (network.state_dict() for network in self._networks)
        return list(zip(weights, self.states(), strict=True))

    def states(self) -> list[MemberState]:
        """The optimiser's state of each member, from which a later population can continue."""
        named = self._stacked.state
        begun = {} if self._begun is None else self._begun.as_state()
        members = range(len(self._networks))
        return [{**state_of(self._optimizer, named, i), **begun} for i in members]

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Given, Batch]]:
        """Inputs and batches, common to all; where streams differ, fields are ``[P, N, ...]``."""
        given = self._data, self._recipe
        sources = [batches(*given, s, epoch, name, first=first) for s, name in self._streams]
        for parts in zip(*sources, strict=True):
            if len(parts) == 1:
                yield _given(parts[0]), parts[0]
            else:
                own = [parts[i] for i in self._stream_of]
                batch = {name: torch.stack([one[name] for one in own]) for name in own[0]}
                yield pytree.tree_map(Each, _given(batch)), batch

    def _step(self, inputs: Given, batch: Batch) -> None:
        """One step of the optimiser; nothing in it waits for the device."""
        self._optimizer.zero_grad()
        loss_of: Callable[[Given, Batch], Tensor] = self._loss
        # The first step of each shape is not compiled: it may measure the paths of convolutions.
        shapes = tuple(value.shape for value in batch.values())
        if self._compiled is not None and shapes in self._shapes_seen:
            loss_of = self._compiled
        self._shapes_seen.add(shapes)
        loss_of(inputs, batch).backward()
        if self._recipe.gradient_clip is not None:
            _clip_gradients(self._stacked.parameters(), self._recipe.gradient_clip)
        self._optimizer.step()

    def _loss(self, inputs: Given, batch: Batch) -> Tensor:
        """The sum of the members' losses; each depends on its own member only."""
        autocast = self._recipe.precision == "autocast"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=autocast):
            outputs = self._stacked(inputs)
            of_each = 0 if len(self._streams) > 1 else None
            loss = vmap(self._task.loss, (0, of_each), randomness="same")
            losses: Tensor = loss(outputs, dict(batch))
            return losses.sum()

    def _tally(self, split: AnySplit, blocks: Tensor | None) -> Tally:
        tally = Tally(self._task, blocks, stacked=True)
        # Batches as in evaluate(): a norm without running statistics depends on them.
        for batch in split.batches(evaluation_batch(split)):
            tally.add(self._stacked(_given(batch)), batch)
        return tally


def _names_of(fields: Iterable[str]) -> list[str]:
    """The names of a batch's inputs, where the network is given several by name."""
    inputs = [name for name in fields if name not in TARGETS]
    return [] if inputs == [INPUT] else inputs


def _given(batch: Batch) -> Tensor | dict[str, Tensor]:
    """The fields of a batch that are the networks' input."""
    names = _names_of(batch)
    return {name: batch[name] for name in names} if names else batch[INPUT]


def refusal(network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
    """Why networks like this one cannot be trained as one, in a few words; None where they can.

    Two members with different weights compute gradients and predictions for a few examples on the
    CPU, once together and once alone, and the results are compared. The network and the global
    random numbers are left as they were.
    """
    if why := what_only_the_loop_does(recipe):
        return why
    own_numbers = isinstance(recipe, Retraining) and not recipe.common_random_numbers
    if own_numbers and _drops(network):
        return "dropout draws from one stream for all members, and each is to have its own"
    inputs = [name for name in data.train.shapes if name not in TARGETS]
    known = inspect.signature(network.forward).parameters
    if inputs != [INPUT] and not known.keys() >= set(inputs):
        return f"its several inputs are no names of its arguments: {', '.join(inputs)}"
    if inputs != [INPUT]:  # before any copy: a network with several inputs may be large
        try:
            in_both_modes(network, inputs)
        except Exception as error:  # the user's forward runs: anything can come out
            return f"its forward cannot be traced{why_not_traced(error)}"
    read = getattr(data.task, "task", data.task)  # the task that a distilled one is made of
    if type(read).forward is not Task.forward or not read.is_mappable:
        return f"task {data.task.label!r} is not computed for many networks at once"
    few = data.few(2).to(torch.device("cpu"))
    members = [_without_dropout(copied(network).cpu()) for _ in range(2)]
    with torch.random.fork_rng(devices=[]), _attention_that_maps(torch.device("cpu")):
        try:
            if own_numbers and _is_random(network, data):
                return "its forward draws from one stream for all members, each to have its own"
            with torch.no_grad():
                for parameter in members[1].parameters():
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            difference = _difference(members, recipe, few)
        except Exception as error:  # the user's forward runs: anything can come out
            return first_line(error)
    if difference is None:
        return None
    return f"members trained together differ from the same trained alone in {difference}"


def _is_random(network: nn.Module, data: Splits) -> bool:
    """Whether the outputs in training depend on random numbers, drawn by whatever function."""
    batch = {name: value.cpu() for name, value in data.example(2).items()}
    outputs = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            outputs.append(data.task.forward(copied(network).cpu().train(), batch))
    first, second = (pytree.tree_leaves(one) for one in outputs)
    return not all(
        torch.equal(one, other)
        for one, other in zip(first, second, strict=True)
        if isinstance(one, torch.Tensor)
    )


def _drops(network: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in network.modules())


def measure_memory(network: nn.Module, data: Splits, recipe: Recipe) -> Memory:
    """Bytes that a population takes beyond data and networks: (fixed, more for each member).

    The peak of two steps (the optimiser's state exists from the second on) and one evaluation is
    measured with 2 and with 4 members. On CUDA this is what torch's allocator held, on a CPU the
    storages of all tensors in use, without what a kernel allocates and frees within itself.
    """
    index = torch.arange(len(data.train), device=data.train.device)
    sizes = recipe.batch_size, evaluation_batch(data.train)
    batch, many = (data.train.take(index[:n]) for n in sizes)
    few = Splits(batch, None, many, data.task, data.fill)
    common = not isinstance(recipe, Retraining) or recipe.common_random_numbers

    def train(members: int) -> None:
        streams = [(0, "" if common else str(i)) for i in range(members)]
        population = WidePopulation([network] * members, streams, few, recipe)
        population.train_epoch(0)
        population.train_epoch(0)
        population.measure()

    two, four = (_peak_bytes(functools.partial(train, n), index.device) for n in (2, 4))
    each = max(0, four - two) // 2
    return Memory(max(0, two - 2 * each), each)


class WideEngine(Engine):
    """Networks computed as one, on their stacked weights."""

    name: ClassVar[str] = "wide"
    start = WidePopulation

    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        return refusal(network, data, recipe)

    def memory(self, network: nn.Module, data: Splits, recipe: Recipe) -> Memory:
        return measure_memory(network, data, recipe)

    def trial_members(self, lanes: int, room: int) -> int:
        return max(1, min(room, _TRIED))

    def group(self, lanes: int, room: int, wanted: int, *, on_cpu: bool) -> int:
        return min(room, _MOST_ON_A_CPU if on_cpu else room, max(wanted, _TRIED))


def _clip_gradients(parameters: Sequence[Tensor], largest: float) -> None:
    """Scale each member's gradient to a norm of at most ``largest``, as ``clip_grad_norm_``."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    scale = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


@contextmanager
def _attention_that_maps(device: torch.device) -> Iterator[None]:
    """Attention without the fused kernels that cannot be mapped over members."""
    with no_fast_path(), sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield


def _without_dropout(network: nn.Module) -> nn.Module:
    """Turn dropout off, since its draws also depend on a tensor's order in memory."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return network


def _difference(members: Sequence[nn.Module], recipe: Recipe, data: Splits) -> str | None:
    """The first tensor that differs between members together and alone; None if none does."""
    batch = data.train.take(torch.arange(len(data.train))).fields
    with torch.no_grad():
        outputs = data.task.forward(members[0].eval(), _fresh(batch))
    if not isinstance(outputs, Tensor) or len(outputs) != len(next(iter(batch.values()))):
        return "their output, which is no tensor [N, ...]"
    population = WidePopulation(members, [(0, "")] * len(members), data, recipe)
    stacked, task = population._stacked, population._task
    stacked.train(True)
    torch.default_generator.manual_seed(0)
    population._loss(_given(_fresh(batch)), batch).backward()
    together = {name: v.grad if v.requires_grad else v for name, v in stacked.state.items()}
    stacked.train(False)
    with torch.no_grad():
        predicted = stacked(_given(_fresh(batch)))
    for i, member in enumerate(members):
        member.train()
        torch.default_generator.manual_seed(0)
        task.loss(task.forward(member, _fresh(batch)), batch).backward()
        alone = {n: v.grad if v.requires_grad else v for n, v in tensors(member).items()}
        gradients = (p.grad for p in member.parameters() if p.grad is not None)
        scale = max((float(gradient.norm()) for gradient in gradients), default=0.0)
        for name, expected in alone.items():
            found = together[name]
            if (found is None) != (expected is None):
                return name
            if found is not None and expected is not None and not _close(found[i], expected, scale):
                return name
        with torch.no_grad():
            if not _close(predicted[i], task.forward(member.eval(), _fresh(batch)), 1.0):
                return "their predictions"
    return None


def _fresh(batch: Batch) -> Batch:
    """A copy, which a network may change in place."""
    return {name: value.clone() for name, value in batch.items()}


def _close(found: Tensor, expected: Tensor, scale: float) -> bool:
    """Whether values are equal but for rounding, relative to ``scale`` where they cancel out."""
    difference = float((found - expected).float().norm())
    return difference <= 1e-2 * float(expected.float().norm()) + 1e-4 * scale


def _peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes that ``run`` held at a time."""
    if device.type == "cuda":
        run()  # a first run lets libraries allocate what they keep, and chooses the paths
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait_for(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = LiveBytes()
    with live:
        run()
    return live.peak
