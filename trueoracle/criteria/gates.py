"""Derivatives of the loss by gates on filters' outputs, or on what layers add to their stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from trueoracle.criteria.activations import channel_axis, check_readers, reader
from trueoracle.criteria.gradients import derivable, total_weight
from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.groups import Group, Part
from trueoracle.pruning.stacks import stream_of_layer, with_stream
from trueoracle.tasks.base import Task
from trueoracle.training.evaluate import evaluation_batch

__all__ = ["gate_gradients", "gate_hessian", "gated", "unit_counts"]


def gate_gradients(
    dense: nn.Module, candidates: CandidateList, split: AnySplit, task: Task
) -> dict[str, Tensor]:
    """The derivative of each example's loss by a gate on each filter: ``[N, filters]`` by group.

    A gate multiplies all that the group's consumers read of the filter. Its value is 1; setting it
    to 0 prunes the filter. The derivative is therefore the sum of activation times gradient over
    positions and consumers; minus the derivative is the first-order change of the loss when the
    filter is pruned. Where whole layers are pruned, a gate multiplies what a layer adds to its
    stream: ``[N, layers]`` by stack.
    """
    sizes = unit_counts(candidates)
    found: dict[str, list[Tensor]] = {name: [] for name in sizes}
    total = total_weight(split, task)
    with derivable(dense, ()) as (network, _):
        for batch in split.batches(evaluation_batch(split)):
            count = len(next(iter(batch.values())))
            like = next(network.parameters())
            gates = {n: like.new_ones(count, k).requires_grad_() for n, k in sizes.items()}
            with gated(network, candidates, gates):
                outputs = task.forward(network, batch)
            # The sum of the examples' own losses: each depends on its own gates only, and has the
            # weight that it has in the mean over the split.
            losses = vmap(_own_loss(task), (0, 0))(outputs, dict(batch))
            counts = [
                task.weight({n: v[i : i + 1] for n, v in batch.items()}) for i in range(count)
            ]
            loss = (losses * losses.new_tensor(counts)).sum() * (len(split) / total)
            gradients = torch.autograd.grad(loss, list(gates.values()))
            for name, gradient in zip(gates, gradients, strict=True):
                found[name].append(gradient)
    return {name: torch.cat(parts) for name, parts in found.items()}


def gate_hessian(
    dense: nn.Module, candidates: CandidateList, split: AnySplit, task: Task
) -> tuple[Tensor, Tensor]:
    """Exact gradient ``[F]`` and Hessian ``[F, F]`` of the task's loss by all gates, in float64.

    The gates are those of :func:`gate_gradients`, in the order of :func:`unit_counts`. Each row of
    the Hessian takes one backward pass per batch.
    """
    sizes = unit_counts(candidates)
    count = sum(sizes.values())
    total = total_weight(split, task)
    slopes = torch.zeros(count, dtype=torch.float64)
    hessian = torch.zeros(count, count, dtype=torch.float64)
    with derivable(dense, ()) as (network, _):
        for batch in split.batches(evaluation_batch(split)):
            examples = len(next(iter(batch.values())))
            gates = next(network.parameters()).new_ones(count).requires_grad_()
            parts = gates.expand(examples, -1).split(list(sizes.values()), dim=1)
            with gated(network, candidates, dict(zip(sizes, parts, strict=True))):
                loss = task.loss(task.forward(network, batch), batch)
            loss = loss * (task.weight(batch) / total)
            (slope,) = torch.autograd.grad(loss, gates, create_graph=True)
            slopes += slope.detach().double().cpu()
            if not slope.requires_grad:  # the loss is linear in the gates
                continue
            for row in range(count):
                (product,) = torch.autograd.grad(
                    slope[row], gates, retain_graph=True, materialize_grads=True
                )
                hessian[row] += product.double().cpu()
    return slopes, hessian


def unit_counts(candidates: CandidateList) -> dict[str, int]:
    """How many filters each group has, or layers each stack."""
    sizes = {group.name: group.filters for group in candidates.groups}
    return sizes | {stack: len(layers) for stack, layers in candidates.layers.items()}


def _own_loss(task: Task) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    """The loss of one example, from its output."""

    def loss(output: Tensor, example: dict[str, Tensor]) -> Tensor:
        return task.loss(output[None], {name: value[None] for name, value in example.items()})

    return loss


@contextmanager
def gated(
    network: nn.Module, candidates: CandidateList, gates: dict[str, Tensor]
) -> Iterator[None]:
    """In this context, what is pruned is multiplied by gates, as in :func:`gate_gradients`."""
    check_readers(network, candidates.groups)
    read: dict[str, list[tuple[Group, Part]]] = {}
    for group in candidates.groups:
        for part in group.consumers:
            read.setdefault(part.module, []).append((group, part))
    handles = [
        reader(network, parts[0][1]).register_forward_pre_hook(
            _Gate([(part, gates[group.name]) for group, part in parts]), with_kwargs=True
        )
        for name, parts in read.items()
    ]
    handles += [
        network.get_submodule(layer).register_forward_hook(
            _LayerGate(layer, gates[stack][:, place]), with_kwargs=True
        )
        for stack, layers in candidates.layers.items()
        for place, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _LayerGate:
    """A forward hook that multiplies what a layer adds to its stream by a gate ``[N]``."""

    def __init__(self, layer: str, gate: Tensor) -> None:
        self.layer, self.gate = layer, gate

    def __call__(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        stream = stream_of_layer(args, kwargs)
        if len(stream) != len(self.gate):
            raise NotApplicableError(
                f"{self.layer} reads {len(stream)} rows of {len(self.gate)} examples"
            )
        after = output if isinstance(output, Tensor) else output[0]
        gate = self.gate.view(-1, *[1] * (stream.ndim - 1))
        return with_stream(output, stream + gate * (after - stream))


class _Gate:
    """A forward pre-hook that multiplies some channels of a module's input."""

    def __init__(self, gates: Sequence[tuple[Part, Tensor]]) -> None:
        self.gates = gates

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        if args:
            return (self._gated(module, args[0]), *args[1:]), kwargs
        return args, kwargs | {"input": self._gated(module, kwargs["input"])}

    def _gated(self, module: nn.Module, inputs: Tensor) -> Tensor:
        axis = channel_axis(module) % inputs.ndim
        channels = inputs.new_ones(len(inputs), inputs.shape[axis])
        images = len(self.gates[0][1])
        if len(inputs) != images:
            where = self.gates[0][0].module
            raise NotApplicableError(f"{where} reads {len(inputs)} rows of {images} examples")
        for part, gate in self.gates:
            count = gate.shape[1]
            index = part.entries(torch.arange(count, device=inputs.device), count)
            own = gate.repeat_interleave(len(index) // count, 1).to(channels.dtype)
            # Multiplied, since an entry may hold filters of several groups, or one filter twice.
            channels = channels * torch.ones_like(channels).index_copy(1, index, own)
        shape = [1] * inputs.ndim
        shape[0], shape[axis] = channels.shape
        return inputs * channels.view(shape)
