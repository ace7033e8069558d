"""Derivatives of the loss over many examples: by weights, and by gates on what filters put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trueoracle.criteria.activations import channel_axis, reader
from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.networks.heads import free_heads
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.groups import Group, Part
from trueoracle.pruning.stacks import stream_of_layer, with_stream
from trueoracle.tasks.base import Batch, Task
from trueoracle.training.evaluate import evaluation_batch

__all__ = [
    "gate_gradients",
    "hessian_products",
    "own_and_rest",
    "sample_squares",
    "trainable",
    "weight_gradients",
]

EACH_AT_ONCE = 32
"""Examples whose own gradients are held at a time: each takes as much as the weights."""


def weight_gradients(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> dict[str, Tensor]:
    """The gradient of the task's loss over all examples, by the names of the weights."""
    with _derivable(dense, names) as (network, weights):
        totals = [torch.zeros_like(weight) for weight in weights]
        for loss in _losses(network, split, task):
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
    return dict(zip(names, totals, strict=True))


def trainable(network: nn.Module) -> list[str]:
    """The names of all weights that train."""
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def hessian_products(
    dense: nn.Module, split: AnySplit, task: Task, vectors: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """The Hessian of the task's loss over all examples times each of some vectors.

    A vector has numbers for some weights, by name, the same for all vectors; the Hessian is that
    of these weights. The graph of the gradient is made once for all of them.
    """
    names = list(vectors[0])
    totals = [{name: torch.zeros_like(v[name]) for name in names} for v in vectors]
    with _derivable(dense, names) as (network, weights):
        for loss in _losses(network, split, task):
            gradients = torch.autograd.grad(
                loss, weights, create_graph=True, materialize_grads=True
            )
            # One of a weight that the loss does not know is zero, and comes from nowhere.
            known = [i for i, gradient in enumerate(gradients) if gradient.grad_fn is not None]
            for total, vector in zip(totals, vectors, strict=True):
                if not known:
                    continue
                products = torch.autograd.grad(
                    [gradients[i] for i in known],
                    weights,
                    [vector[names[i]] for i in known],
                    retain_graph=True,
                    materialize_grads=True,
                )
                for name, product in zip(names, products, strict=True):
                    total[name] += product
    return totals


def sample_squares(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> dict[str, Tensor]:
    """The mean over examples of the square of each weight's own gradient, by name.

    Many at a time where the network can be mapped over examples, else one by one.
    """
    try:
        return _mapped_squares(dense, names, split, task)
    except RuntimeError:  # a forward that branches on values, such as that of transformers
        return _single_squares(dense, names, split, task)


def _single_squares(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> dict[str, Tensor]:
    with _derivable(dense, names) as (network, weights):
        totals = [torch.zeros_like(weight) for weight in weights]
        for batch in split.batches(1):
            loss = task.loss(task.forward(network, batch), batch)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.square() / len(split)
    return dict(zip(names, totals, strict=True))


def _mapped_squares(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> dict[str, Tensor]:
    running = _Running(copied(dense).eval(), task)
    own, rest = own_and_rest(running, [f"network.{name}" for name in names])

    def loss(weights: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
        batch = {name: value[None] for name, value in example.items()}
        return task.loss(functional_call(running, (weights, rest), (batch,)), batch)

    each = vmap(grad(loss), (None, 0))
    totals = {name: torch.zeros_like(value) for name, value in own.items()}
    with sdpa_kernel(SDPBackend.MATH):
        for batch in split.batches(EACH_AT_ONCE):
            for name, gradients in each(own, dict(batch)).items():
                totals[name] += gradients.square().sum(0) / len(split)
    return {name.removeprefix("network."): value for name, value in totals.items()}


class _Running(nn.Module):
    """A network as its task runs it, from a batch to outputs."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, batch: Batch) -> Any:
        return self.task.forward(self.network, batch)


def own_and_rest(
    network: nn.Module, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The named weights, and all other tensors of a network, detached, for ``functional_call``.

    A weight that several layers share has several names, of which only one may be given.
    """
    tensors: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    own = {name: tensors[name].detach() for name in names}
    known = {id(tensors[name]) for name in names}
    rest: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if id(value) not in known:
            known.add(id(value))
            rest[name] = value.detach()
    return own, rest


def gate_gradients(
    dense: nn.Module, candidates: CandidateList, split: AnySplit, task: Task
) -> dict[str, Tensor]:
    """The derivative of each example's loss by a gate on each filter: ``[N, filters]`` by group.

    A gate multiplies all that the group's consumers read of the filter, and is 1: closing it (0) is
    pruning the filter. So the derivative is the sum of activation times gradient over positions and
    consumers, and minus it the first-order change of the loss when the filter goes. Where whole
    layers are pruned a gate multiplies what a layer adds to its stream: ``[N, layers]`` by stack.
    """
    sizes = {group.name: group.filters for group in candidates.groups}
    sizes |= {stack: len(layers) for stack, layers in candidates.layers.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in sizes}
    total = _total_weight(split, task)
    with _derivable(dense, ()) as (network, _):
        for batch in split.batches(evaluation_batch(split)):
            count = len(next(iter(batch.values())))
            like = next(network.parameters())
            gates = {n: like.new_ones(count, k).requires_grad_() for n, k in sizes.items()}
            with _gated(network, candidates, gates):
                outputs = task.forward(network, batch)
            # The sum of the examples' own losses, each of which knows its own gates only, and
            # counts as much as it does in the mean over the split.
            losses = vmap(_own_loss(task), (0, 0))(outputs, dict(batch))
            counts = [
                task.weight({n: v[i : i + 1] for n, v in batch.items()}) for i in range(count)
            ]
            loss = (losses * losses.new_tensor(counts)).sum() * (len(split) / total)
            gradients = torch.autograd.grad(loss, list(gates.values()))
            for name, gradient in zip(gates, gradients, strict=True):
                found[name].append(gradient)
    return {name: torch.cat(parts) for name, parts in found.items()}


@contextmanager
def _derivable(dense: nn.Module, names: Sequence[str]) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """A copy in evaluation mode of which only the named weights train, and these."""
    network = copied(dense).eval().requires_grad_(False)
    free_heads(network)  # in which every layer is called as a module
    weights: list[Tensor] = [network.get_parameter(name).requires_grad_() for name in names]
    # The fused kinds of attention have no second derivative, and take no part in vmap.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield network, weights


def _losses(network: nn.Module, split: AnySplit, task: Task) -> Iterator[Tensor]:
    """Each batch's part of the loss over the whole split."""
    total = _total_weight(split, task)
    for batch in split.batches(evaluation_batch(split)):
        yield task.loss(task.forward(network, batch), batch) * (task.weight(batch) / total)


def _total_weight(split: AnySplit, task: Task) -> float:
    """How much all examples count together."""
    if type(task).weight is Task.weight:  # by the number of examples
        return float(len(split))
    return sum(task.weight(batch) for batch in split.batches(evaluation_batch(split)))


def _own_loss(task: Task) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    """The loss of one example, from its output."""

    def loss(output: Tensor, example: dict[str, Tensor]) -> Tensor:
        return task.loss(output[None], {name: value[None] for name, value in example.items()})

    return loss


@contextmanager
def _gated(
    network: nn.Module, candidates: CandidateList, gates: dict[str, Tensor]
) -> Iterator[None]:
    """Within the block, what is pruned is multiplied by gates, as in :func:`gate_gradients`."""
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
            channels = channels.index_copy(1, index, own)
        shape = [1] * inputs.ndim
        shape[0], shape[axis] = channels.shape
        return inputs * channels.view(shape)
