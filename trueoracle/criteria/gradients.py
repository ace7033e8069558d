"""Derivatives of the loss by weights, over many examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.networks.heads import free_heads
from trueoracle.tasks.base import Batch, Task
from trueoracle.training.evaluate import evaluation_batch

__all__ = [
    "derivable",
    "hessian_products",
    "own_and_rest",
    "sample_gradients",
    "sample_squares",
    "total_weight",
    "trainable",
    "weight_gradients",
]

EACH_AT_ONCE = 32
"""Examples whose gradients are held at a time: each takes as much memory as the weights."""


def weight_gradients(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> dict[str, Tensor]:
    """The gradient of the task's loss over all examples, by the names of the weights."""
    with derivable(dense, names) as (network, weights):
        totals = [torch.zeros_like(weight) for weight in weights]
        for loss in _losses(network, split, task):
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
    return dict(zip(names, totals, strict=True))


def trainable(network: nn.Module) -> list[str]:
    """The names of all trainable weights."""
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def hessian_products(
    dense: nn.Module, split: AnySplit, task: Task, vectors: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """The products of the Hessian of the task's loss over all examples with some vectors.

    A vector has numbers for some weights, by name; all vectors have the same names, and the Hessian
    is that of these weights. The graph of the gradient is made once per batch for all vectors.
    """
    names = list(vectors[0])
    totals = [{name: torch.zeros_like(v[name]) for name in names} for v in vectors]
    with derivable(dense, names) as (network, weights):
        for loss in _losses(network, split, task):
            gradients = torch.autograd.grad(
                loss, weights, create_graph=True, materialize_grads=True
            )
            # The gradient of a weight that the loss does not depend on is zero, without a graph.
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
    """The mean over examples of the square of each weight's own gradient, by name."""
    totals: dict[str, Tensor] = {}
    for gradients in sample_gradients(dense, names, split, task):
        for name, each in gradients.items():
            squares = each.square().sum(0) / len(split)
            totals[name] = totals[name] + squares if name in totals else squares
    return totals


def sample_gradients(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> Iterator[dict[str, Tensor]]:
    """Each example's own gradients ``[n, …]`` by the names of the weights, n examples at a time.

    n is 1 where the network cannot be mapped over examples. Raises :class:`NotApplicableError`
    where an example has no gradient of its own, since others of the batch take part in its output.
    """
    for name, module in dense.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise NotApplicableError(
                f"batch norm {name} keeps no statistics, so that an output depends on its batch"
            )
    mapped = _mapped_gradients(dense, names, split, task)
    try:
        first = next(mapped)
    except RuntimeError:  # the forward pass branches on values, as those of transformers do
        yield from _single_gradients(dense, names, split, task)
        return
    yield first
    yield from mapped


def _single_gradients(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> Iterator[dict[str, Tensor]]:
    network, weights = _copy(dense, names)
    for batch in split.batches(1):
        with _differentiating():
            loss = task.loss(task.forward(network, batch), batch)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        yield {name: each[None] for name, each in zip(names, gradients, strict=True)}


def _mapped_gradients(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> Iterator[dict[str, Tensor]]:
    running = _Running(copied(dense).eval(), task)
    own, rest = own_and_rest(running, [f"network.{name}" for name in names])

    def loss(weights: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
        batch = {name: value[None] for name, value in example.items()}
        return task.loss(functional_call(running, (weights, rest), (batch,)), batch)

    each = vmap(grad(loss), (None, 0))
    for batch in split.batches(EACH_AT_ONCE):
        with sdpa_kernel(SDPBackend.MATH):
            gradients = each(own, dict(batch))
        yield {name.removeprefix("network."): value for name, value in gradients.items()}


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
    """The named weights and all other tensors of a network, detached, for ``functional_call``.

    A weight that several layers share has several names, of which ``functional_call`` takes one.
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


@contextmanager
def derivable(dense: nn.Module, names: Sequence[str]) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """A copy in evaluation mode with only the named weights trainable, and these weights."""
    network, weights = _copy(dense, names)
    with _differentiating():
        yield network, weights


def _copy(dense: nn.Module, names: Sequence[str]) -> tuple[nn.Module, list[Tensor]]:
    network = copied(dense).eval().requires_grad_(False)
    free_heads(network)  # in which every layer is called as a module
    return network, [network.get_parameter(name).requires_grad_() for name in names]


@contextmanager
def _differentiating() -> Iterator[None]:
    """Gradients on, fused attention off: it has no second derivative, and vmap cannot map it."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _losses(network: nn.Module, split: AnySplit, task: Task) -> Iterator[Tensor]:
    """Each batch's part of the loss over the whole split."""
    total = total_weight(split, task)
    for batch in split.batches(evaluation_batch(split)):
        yield task.loss(task.forward(network, batch), batch) * (task.weight(batch) / total)


def total_weight(split: AnySplit, task: Task) -> float:
    """The weight of all examples of a split together."""
    if type(task).weight is Task.weight:  # which is the number of examples
        return float(len(split))
    return sum(task.weight(batch) for batch in split.batches(evaluation_batch(split)))
