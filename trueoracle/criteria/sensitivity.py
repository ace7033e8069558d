"""First-order criteria: the change of the loss by pruning, from the loss's gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gates import gate_gradients
from trueoracle.criteria.gradients import weight_gradients
from trueoracle.criteria.importance import pruned_weights, sum_by_filter, within_groups
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.pruning.candidates import CandidateList

__all__ = ["gradient", "snip", "taylor", "taylor_2017"]


@criterion(
    "taylor",
    label="squared first-order loss change of the pruned {units}",
    source="Molchanov et al. 2019 (arXiv 1906.10771), section 3",
    basis="as released: batches of 256; of layers derived",
    version=2,
    separable=True,
    at_once=True,
)
def taylor(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, batch: int = 256
) -> np.ndarray:
    """The squared first-order loss change by each pruned filter, averaged over batches. ``[P]``.

    The importance of a filter is the mean over batches of (∂L/∂z)², where L is the task's loss of
    the batch and z = 1 a gate on all that following layers read of the filter (behind norm and
    activation, the paper's "gate"). Of single weights it is that of (w · ∂L/∂w)², of whole layers z
    multiplies what a layer adds to its stream. What is of large importance is kept.

    The batches are whole ones of all training images in a fixed random order, in evaluation mode;
    the paper averages over the batches of its fine-tuning. ``batch`` is their size (the released
    code's 256); where there are fewer images, or with 0, all of them are one batch. The smaller
    the batches, the more the gradient's variance counts: the mean is g² + σ²/batch.
    """
    split = data.measured_train
    if candidates.units == "weights":
        weights = pruned_weights(dense, candidates)
        totals = {name: torch.zeros_like(weight.detach()) for name, weight in weights.items()}
        batches = list(_batches(len(split), batch))
        for index in batches:
            some = split.select(index.to(split.device))
            for name, slope in weight_gradients(dense, list(weights), some, data.task).items():
                totals[name] += (weights[name].detach() * slope).square() / len(batches)
        return candidates.sum_pruned(sum_by_filter(dense, candidates, totals))
    gates = gate_gradients(dense, candidates, split, data.task)
    return candidates.sum_pruned(
        {
            name: torch.stack(
                [each[index].mean(0).square() for index in _batches(len(split), batch)]
            ).mean(0)
            for name, each in ((name, each.double().cpu()) for name, each in gates.items())
        }
    )


@criterion(
    "taylor-2017",
    label="mean first-order loss change of the pruned {units}",
    source="Molchanov et al. 2017 (arXiv 1611.06440), section 2.2",
    basis="as published",
    separable=True,
    at_once=True,
    applies_to=("filters",),
)
def taylor_2017(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The mean over images of |activation · gradient|, by each pruned filter's map. ``[P]``.

    The importance of a filter is the mean over all training images of the size of Σ a · ∂L/∂a, the
    sum over the positions of its activation a, divided by the Euclidean norm of the importances of
    its group (the paper's l2 of a layer, which also takes its division by the number of positions
    away). Where a group is read in several places, the sum is over all of them. Evaluation mode;
    large ones are kept. The paper's penalty on computation is left out.
    """
    gates = gate_gradients(dense, candidates, data.measured_train, data.task)
    sizes = {name: each.double().abs().mean(0) for name, each in gates.items()}
    return candidates.sum_pruned(
        {name: size / (size.norm() or 1.0) for name, size in sizes.items()}
    )


@criterion(
    "gradient",
    label="gradient magnitude of the pruned {units}",
    source="the size of the gradient alone, a usual baseline",
    basis="ours",
    version=2,
    separable=True,
    at_once=True,
)
def gradient(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Sum of |∂L/∂w| over the weights of the pruned filters, or over the pruned weights. ``[P]``.

    L is the task's loss over the training images, in evaluation mode. Weights with a large
    gradient are kept: they are those that training would still change, as where RigL grows (Evci
    et al. 2020, arXiv 1911.11134, section 3). Of filters of several groups, sums are divided by
    their group's mean, but with ``raw``.
    """
    weights = pruned_weights(dense, candidates)
    gradients = weight_gradients(dense, list(weights), data.measured_train, data.task)
    sizes = {name: value.abs() for name, value in gradients.items()}
    importance = sum_by_filter(dense, candidates, sizes)
    return candidates.sum_pruned(within_groups(importance, candidates, raw=raw))


@criterion(
    "snip",
    label="connection sensitivity of the pruned {units}",
    source="Lee et al. 2019 (SNIP, arXiv 1810.02340), section 4.1",
    basis="as published; of filters and layers derived",
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


def _weight_changes(dense: nn.Module, candidates: CandidateList, data: Splits) -> dict[str, Tensor]:
    """The product w · ∂L/∂w for every weight that can be pruned, by name."""
    weights = pruned_weights(dense, candidates)
    gradients = weight_gradients(dense, list(weights), data.measured_train, data.task)
    return {name: weight.detach() * gradients[name] for name, weight in weights.items()}


def _batches(examples: int, size: int) -> Iterator[Tensor]:
    """The indices of the examples in each whole batch, in a fixed random order."""
    if size < 0:
        raise InputError(f"batch is {size}, expected a number of examples from 1, or 0 for all")
    size = min(size or examples, examples)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(0))
    for start in range(0, examples - size + 1, size):
        yield order[start : start + size]
