"""Criteria of gradient flow, and of sums over all paths, through the pruned weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gates import gated
from trueoracle.criteria.gradients import hessian_products, trainable, weight_gradients
from trueoracle.criteria.importance import pruned_weights, sum_by_filter
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.networks.heads import free_heads
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.unstructured import has_outputs_last
from trueoracle.tasks.base import TARGETS, Batch, Task, Wrapped

__all__ = ["grasp", "synflow", "synflow_iterative"]


@criterion(
    "grasp",
    label="gradient flow of the pruned {units}",
    source="Wang et al. 2020 (GraSP, arXiv 2002.07376)",
    basis="as released: T = 200; convolutional and linear weights; of filters and layers derived",
    version=2,
    separable=True,
    at_once=True,
)
def grasp(
    dense: nn.Module,
    candidates: CandidateList,
    data: Splits,
    *,
    temperature: float = 200.0,
    biases: bool = False,
) -> np.ndarray:
    """Gradient flow lost with what is pruned: the sum of w · (Hg) over the pruned weights. ``[P]``.

    g and H are gradient and Hessian of the task's loss over the training images, by the weights of
    all convolutions and linear layers that train, in evaluation mode; with ``biases`` by all that
    trains, biases and norms too. The paper's score S = -w · (Hg) is, but for a factor 2, the
    first-order change of ‖g‖² when w goes, and it removes the weights of highest S, which keeps or
    raises the gradient's norm: so the importance is -S, and the lowest sum is pruned. Logits are
    divided by ``temperature`` (the released code's 200), where the task has logits. A pruned weight
    that is frozen has no part in g, which changes with it all the same. The released code takes ten
    examples of each class, and an untrained network.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}, expected a number above 0")
    split, weights = data.measured_train, pruned_weights(dense, candidates)
    task = _Tempered(data.task, temperature)
    names = trainable(dense) if biases else _matrices(dense, weights)
    g = weight_gradients(dense, names, split, task)
    frozen = {name: torch.zeros_like(w) for name, w in weights.items() if name not in g}
    (product,) = hessian_products(dense, split, task, [g | frozen])
    flows = {name: weight.detach() * product[name] for name, weight in weights.items()}
    return candidates.sum_pruned(sum_by_filter(dense, candidates, flows))


@criterion(
    "synflow",
    label="synaptic flow of the pruned {units}",
    source="Tanaka et al. 2020 (SynFlow, arXiv 2006.05467)",
    basis="derived: one round of the paper's 100",
    version=2,
    separable=True,
    at_once=True,
    uses_data=False,
)
def synflow(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Synaptic flow: |w · ∂R/∂w| summed over the pruned weights (of filters). ``[P]``.

    R is the sum of the outputs for one image of ones, of the network with the absolute values of
    all parameters and buffers, in double precision (where the network runs in it). Batch norms are
    bypassed: they are the identity in the untrained networks that the paper prunes. Large flows are
    kept. All is scored once, where the paper prunes in 100 rounds, as ``synflow-iterative`` does.
    """
    return candidates.sum_pruned(
        sum_by_filter(dense, candidates, _flows(dense, candidates, data, {}))
    )


@criterion(
    "synflow-iterative",
    label="place in SynFlow's order of the pruned {units}",
    source="Tanaka et al. 2020 (SynFlow, arXiv 2006.05467), algorithm 1",
    basis="as published: 100 rounds; of filters and layers derived",
    separable=True,
    at_once=True,
    conditional=True,
    uses_data=False,
)
def synflow_iterative(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, rounds: int = 100
) -> np.ndarray:
    """Where the pruned weights (filters) stand in the order in which SynFlow prunes. ``[P]``.

    In each of the ``rounds`` what has the least synaptic flow (that of ``synflow``) goes, and the
    flow of what is left is computed anew. As in the paper, the share that is left falls by the same
    factor in each round, down to what a candidate keeps. That gives an order: first what went in
    the first round, by its flow, at last what was never pruned. The score is the sum of the pruned
    places, each divided by how many compete; those of equal flow share their mean place. Each
    group, layer or stack has an order of its own, as it loses a share of its own; with
    ``pruning.scope = "global"`` all weights have one, which is the paper's.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}, expected a whole number from 1")

    def flows(alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return sum_by_filter(dense, candidates, _flows(dense, candidates, data, alive))

    sizes = {name: values.shape for name, values in flows({}).items()}
    counts = _pruned_counts(candidates, sizes)
    places = _order(flows, sizes, _pools(candidates, sizes), counts, rounds)
    return candidates.sum_pruned(places)


class _Tempered(Wrapped):
    """A task whose logits are divided by a temperature."""

    def __init__(self, task: Task, temperature: float) -> None:
        super().__init__(task)
        self.temperature = temperature

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        outputs = self.task.forward(network, batch)
        try:
            self.task.logits(outputs)
        except InputError:  # the task has no logits
            return outputs
        return outputs / self.temperature


def _matrices(dense: nn.Module, pruned: Mapping[str, Tensor]) -> list[str]:
    """The trainable weights of convolutions and linear layers, and all trainable pruned ones."""
    modules = dict(dense.named_modules())
    found = []
    for name in trainable(dense):
        owner, _, attribute = name.rpartition(".")
        module = modules[owner]
        is_matrix = isinstance(module, nn.Linear | _ConvNd) or has_outputs_last(module)
        if (is_matrix and attribute == "weight") or name in pruned:
            found.append(name)
    return found


def _flows(
    dense: nn.Module, candidates: CandidateList, data: Splits, alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """SynFlow's scores of the weights that a candidate may lose, when only some are ``alive``."""
    try:
        return _flows_in(dense, candidates, data, alive, torch.float64)
    except RuntimeError:  # for example in a forward pass that casts to another type
        return _flows_in(dense, candidates, data, alive, next(dense.parameters()).dtype)


def _flows_in(
    dense: nn.Module,
    candidates: CandidateList,
    data: Splits,
    alive: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    network = copied(dense).eval().requires_grad_(False).to(dtype)
    free_heads(network)  # in which every layer is called as a module
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.is_floating_point():  # not a mask or a counter
                value.abs_()
        for name in candidates.weights if alive else ():
            network.get_parameter(f"{name}.weight").mul_(alive[name])
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda _, given, __: given[0])
    weights = {n: w.requires_grad_() for n, w in pruned_weights(network, candidates).items()}
    is_gated = alive and candidates.units != "weights"
    gates = {name: mask[None].to(dtype) for name, mask in alive.items()} if is_gated else {}
    with torch.enable_grad(), gated(network, candidates, gates) if gates else nullcontext():
        outputs = data.task.forward(network, _ones(data, dtype))
        gradients = torch.autograd.grad(
            outputs.sum(), list(weights.values()), materialize_grads=True
        )
    return {
        name: (weight.detach() * gradient).abs().double()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def _ones(data: Splits, dtype: torch.dtype) -> Batch:
    """One example of ones; raises :class:`NotApplicableError` for tokens, which cannot be ones."""
    ones = {}
    for name, value in data.example(1).items():
        if name not in TARGETS and not value.is_floating_point():
            raise NotApplicableError(f"{name} holds no real numbers that could be ones")
        ones[name] = torch.ones_like(value, dtype=dtype) if value.is_floating_point() else value
    return ones


def _pools(candidates: CandidateList, sizes: Mapping[str, torch.Size]) -> list[list[str]]:
    """Which groups, layers or stacks compete with each other."""
    if getattr(candidates, "scope", "layer") == "global":
        return [list(sizes)]
    return [[name] for name in sizes]


def _pruned_counts(candidates: CandidateList, sizes: Mapping[str, torch.Size]) -> dict[str, int]:
    """How many of each group, layer or stack a candidate prunes."""
    ones = {name: torch.ones(size) for name, size in sizes.items()}
    first = candidates.take([0])
    return {
        name: round(float(first.sum_pruned({n: one * (n == name) for n, one in ones.items()})[0]))
        for name in ones
    }


def _order(
    flows: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    sizes: Mapping[str, torch.Size],
    pools: Sequence[Sequence[str]],
    counts: Mapping[str, int],
    rounds: int,
) -> dict[str, Tensor]:
    """The place of each filter, weight or layer in the order of removal, over its pool's size."""
    from scipy.stats import rankdata  # loads slowly, and most workers score nothing

    alive = {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}
    places = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    for done in range(1, rounds + 2):  # the last round orders all that is left
        values = {name: each.cpu() for name, each in flows(alive).items()}
        for pool in pools:
            flat, mask, place = (
                torch.cat([given[name].flatten() for name in pool])
                for given in (values, alive, places)
            )
            pruned, total = sum(counts[name] for name in pool), len(flat)
            left = total * (1 - pruned / total) ** (done / rounds) if done <= rounds else 0
            gone = int((~mask).sum())
            going = max(total - max(round(left), 0) - gone, 0)
            index = mask.nonzero()[:, 0]
            index = index[flat[index].argsort(stable=True)][:going]
            place[index] = (gone + torch.from_numpy(rankdata(flat[index].numpy()))) / total
            mask[index] = False
            parts = [sizes[name].numel() for name in pool]
            for name, own, at in zip(pool, mask.split(parts), place.split(parts), strict=True):
                alive[name], places[name] = own.view(sizes[name]), at.view(sizes[name])
    return places
