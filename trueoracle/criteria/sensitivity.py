"""First-order criteria, and those of the flow of gradients: what does the loss feel of it?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gradients import (
    gate_gradients,
    hessian_products,
    trainable,
    weight_gradients,
)
from trueoracle.criteria.importance import pruned_weights, sum_by_filter
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.pruning.candidates import CandidateList
from trueoracle.tasks.base import TARGETS, Batch

__all__ = ["gradient", "grasp", "snip", "synflow", "taylor"]


@criterion(
    "taylor",
    label="squared first-order loss change of the pruned {units}",
    source="Molchanov et al. 2019 (arXiv 1906.10771), section 3",
    separable=True,
    at_once=True,
)
def taylor(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The squared first-order change of the train loss by each pruned filter, summed. ``[P]``.

    The importance of a filter is (∂L/∂z)², where z = 1 is a gate on all that following layers read
    of it (behind norm and activation, the paper's "gate"), and L the task's loss over the
    training images: its definition, of which the paper's average over batches is an estimate. Of
    single weights it is (w · ∂L/∂w)², of whole layers z multiplies what a layer adds to its stream.
    What is of large importance is kept. Evaluation mode.
    """
    if candidates.units == "weights":
        changes = _weight_changes(dense, candidates, data)
        squares = {name: change**2 for name, change in changes.items()}
        return candidates.sum_pruned(sum_by_filter(dense, candidates, squares))
    gates = gate_gradients(dense, candidates, data.measured_train, data.task)
    return candidates.sum_pruned(
        {name: each.double().mean(0).square() for name, each in gates.items()}
    )


@criterion(
    "gradient",
    label="gradient magnitude of the pruned {units}",
    source="the size of the gradient alone, a usual baseline",
    separable=True,
    at_once=True,
)
def gradient(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Sum of |∂L/∂w| over the weights of the pruned filters, or over the pruned weights. ``[P]``.

    L is the task's loss over the training images, in evaluation mode. Weights with a large
    gradient are kept: they are those that training would still change, as where RigL grows (Evci
    et al. 2020, arXiv 1911.11134, section 3).
    """
    weights = pruned_weights(dense, candidates)
    gradients = weight_gradients(dense, list(weights), data.measured_train, data.task)
    sizes = {name: value.abs() for name, value in gradients.items()}
    return candidates.sum_pruned(sum_by_filter(dense, candidates, sizes))


@criterion(
    "snip",
    label="connection sensitivity of the pruned {units}",
    source="Lee et al. 2019 (SNIP, arXiv 1810.02340), section 4.1",
    separable=True,
    at_once=True,
)
def snip(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Connection sensitivity: |w · ∂L/∂w| summed over the pruned weights (of filters). ``[P]``.

    Large sensitivities are kept. L is the task's loss over the training images, in
    evaluation mode, where the paper takes one batch of an untrained network; its division by the
    sum over the whole network is left out, since that is one number for all candidates.
    """
    changes = _weight_changes(dense, candidates, data)
    sizes = {name: change.abs() for name, change in changes.items()}
    return candidates.sum_pruned(sum_by_filter(dense, candidates, sizes))


@criterion(
    "grasp",
    label="gradient flow of the pruned {units}",
    source="Wang et al. 2020 (GraSP, arXiv 2002.07376)",
    separable=True,
    at_once=True,
)
def grasp(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Gradient flow lost with what is pruned: the sum of w · (Hg) over the pruned weights. ``[P]``.

    g and H are gradient and Hessian of the task's loss over the training images, by all
    weights that train, in evaluation mode. The paper's score S = -w · (Hg) is, but for a factor 2,
    the first-order change of ‖g‖² when w goes, and it removes the weights of highest S, which keeps
    or raises the gradient's norm: so the importance is -S, and the lowest sum is pruned. The
    temperature is 1 (the released code divides logits by 200). A pruned weight that is frozen has
    no part in g, which changes with it all the same.
    """
    split, weights = data.measured_train, pruned_weights(dense, candidates)
    g = weight_gradients(dense, trainable(dense), split, data.task)
    frozen = {name: torch.zeros_like(w) for name, w in weights.items() if name not in g}
    (product,) = hessian_products(dense, split, data.task, [g | frozen])
    flows = {name: weight.detach() * product[name] for name, weight in weights.items()}
    return candidates.sum_pruned(sum_by_filter(dense, candidates, flows))


@criterion(
    "synflow",
    label="synaptic flow of the pruned {units}",
    source="Tanaka et al. 2020 (SynFlow, arXiv 2006.05467)",
    separable=True,
    at_once=True,
    uses_data=False,
)
def synflow(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Synaptic flow: |w · ∂R/∂w| summed over the pruned weights (of filters). ``[P]``.

    R is the sum of the outputs for one image of ones, of the network with the absolute values of
    all parameters and buffers, in evaluation mode and double precision (where the network runs in
    it). Large flows are kept. The paper prunes in 100 rounds; here all is scored once.
    """
    try:
        weights, gradients = _flow_of_ones(dense, candidates, data, torch.float64)
    except RuntimeError:  # a forward that casts, say
        own = next(dense.parameters()).dtype
        weights, gradients = _flow_of_ones(dense, candidates, data, own)
    flows = {
        name: (weight.detach() * gradients[name]).abs().double() for name, weight in weights.items()
    }
    return candidates.sum_pruned(sum_by_filter(dense, candidates, flows))


def _flow_of_ones(
    dense: nn.Module, candidates: CandidateList, data: Splits, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The absolute weights that a candidate may lose, and SynFlow's gradients by them, by name."""
    network = copied(dense).eval().requires_grad_(False).to(dtype)
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.is_floating_point():  # a mask or a counter has no sign
                value.abs_()
    names = list(pruned_weights(network, candidates))
    weights = [network.get_parameter(name).requires_grad_() for name in names]
    with torch.enable_grad():
        outputs = data.task.forward(network, _ones(data, dtype))
        gradients = torch.autograd.grad(outputs.sum(), weights, materialize_grads=True)
    found = dict(zip(names, gradients, strict=True))
    return dict(zip(names, weights, strict=True)), found


def _ones(data: Splits, dtype: torch.dtype) -> Batch:
    """One example of ones; raises :class:`NotApplicableError` for tokens, of which none is one."""
    ones = {}
    for name, value in data.example(1).items():
        if name not in TARGETS and not value.is_floating_point():
            raise NotApplicableError(f"{name} holds no real numbers that could be ones")
        ones[name] = torch.ones_like(value, dtype=dtype) if value.is_floating_point() else value
    return ones


def _weight_changes(dense: nn.Module, candidates: CandidateList, data: Splits) -> dict[str, Tensor]:
    """w · ∂L/∂w of every weight that can be pruned, by name."""
    weights = pruned_weights(dense, candidates)
    gradients = weight_gradients(dense, list(weights), data.measured_train, data.task)
    return {name: weight.detach() * gradients[name] for name, weight in weights.items()}
