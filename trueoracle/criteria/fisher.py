"""Criteria based on the Fisher information: squares of each example's own gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gates import gate_gradients
from trueoracle.criteria.gradients import sample_gradients, sample_squares
from trueoracle.criteria.importance import member_weights, pruned_weights, sum_by_filter
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import AnySplit, Split, Splits
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.groups import by_filter
from trueoracle.tasks.base import TARGETS, Task
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluation_batch

__all__ = ["fisher", "group_hessian", "obd_c", "woodfisher"]

GRADIENT_BYTES = 2 * 2**30
"""Most bytes that one layer's gradients for all examples may take."""


@criterion(
    "fisher",
    label="Fisher importance of the pruned {units}",
    source="Theis et al. 2018 (arXiv 1801.05787), section 2",
    basis="as published; of layers derived",
    separable=True,
    at_once=True,
)
def fisher(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Fisher pruning: half the mean of squared per-image gradients by each pruned filter. ``[P]``.

    The importance of a filter is Σₙ gₙ² / 2N, where gₙ is the derivative of example n's loss
    by a gate on all that following layers read of the filter. Of single weights it is
    w² Σₙ (∂Lₙ/∂w)² / 2N; of whole layers the gate is on what a layer adds. All training images,
    evaluation mode; large importance is kept. The paper's penalty on computation is left out.
    """
    split = data.measured_train
    if candidates.units == "weights":
        weights = pruned_weights(dense, candidates)
        squares = sample_squares(dense, list(weights), split, data.task)
        return candidates.sum_pruned(sum_by_filter(dense, candidates, _halves(weights, squares)))
    gates = gate_gradients(dense, candidates, split, data.task)
    return candidates.sum_pruned(
        {name: each.double().square().mean(0) / 2 for name, each in gates.items()}
    )


@criterion(
    "obd-c",
    label="C-OBD saliency of the pruned {units}",
    source="Wang et al. 2019 (EigenDamage, PMLR 97), section 3; PruningBench, arXiv 2406.12315",
    basis="as published: labels drawn once",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def obd_c(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Channel-wise OBD: w² f / 2 summed over the weights of the pruned filters. ``[P]``.

    f is the diagonal of the Fisher information: the mean over examples of each one's own squared
    gradient, with a label drawn from the network's own prediction (once, from a fixed seed) in the
    place of the true one, over a fixed 512 of the training images, evaluation mode. Large sums are
    kept. The layers of a group are added up. Not applicable where examples have no classes.
    """
    if not isinstance(data.task, Classification):
        raise NotApplicableError(f"labels are drawn of classes, and the task is {data.task.label}")
    split = _relabelled(dense, sample(data.measured_train, data.task), data.task)
    weights = pruned_weights(dense, candidates)
    squares = sample_squares(dense, list(weights), split, data.task)
    return candidates.sum_pruned(sum_by_filter(dense, candidates, _halves(weights, squares)))


@criterion(
    "group-hessian",
    label="Hessian-weighted group norm of the pruned {units}",
    source="LeCun et al. 1989, as PruningBench (Li et al. 2024, arXiv 2406.12315) has it of groups",
    basis="derived: Torch-Pruning's GroupHessianImportance, over all examples",
    separable=True,
    at_once=True,
    applies_to=("filters",),
)
def group_hessian(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """w² f summed over all weights that a filter has anywhere in its group. ``[P]``.

    f is the mean over examples of each one's own squared gradient, with true labels, over a fixed
    512 of the training images, evaluation mode. The weights are those of the layers that put the
    filter out, the scales of its batch and layer norms, and the input weights of what reads it;
    biases are left out. Means are taken over these places, and divided by the mean over the filters
    of the group, as in ``depgraph``. Large ones are kept. Torch-Pruning's released code keeps only
    the last example's gradient, which is taken for a slip here.
    """
    members = {group.name: member_weights(dense, group) for group in candidates.groups}
    names = list(dict.fromkeys(name for own in members.values() for name, _, _ in own))
    split = sample(data.measured_train, data.task)
    squares = sample_squares(dense, names, split, data.task)
    importance = {}
    for group, own in members.items():
        places = [
            by_filter(rows, (w.detach() ** 2 * squares[name]).double()).sum(1)
            for name, rows, w in own
        ]
        mean = torch.stack(places).mean(0)
        importance[group] = mean / (mean.mean() or 1.0)
    return candidates.sum_pruned(importance)


@criterion(
    "woodfisher",
    label="WoodFisher saliency of the pruned {units}",
    source="Singh & Alistarh 2020 (WoodFisher, arXiv 2004.14340), section 4; Hassibi & Stork 1993",
    basis="as published: one block for each layer, damping 1e-5",
    separable=True,
    at_once=True,
    applies_to=("weights",),
    conditional=True,
)
def woodfisher(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, damping: float = 1e-5
) -> np.ndarray:
    """Optimal brain surgeon: w² / 2[F⁻¹]_ww summed over the pruned weights. ``[P]``.

    F = λI + Σₙ gₙ gₙᵀ / N of each layer by itself, λ the ``damping``, with the gradients gₙ of a
    fixed 512 of the training images, evaluation mode; its inverse is exact, by Woodbury's identity.
    The saliency is the least change of the quadratic loss when this weight goes and the others of
    its layer make up for it. Large ones are kept. That the others are changed, and the rounds in
    between, are left out: a candidate's network has the dense network's weights. Not applicable to
    a layer whose gradients take more than 2 GiB.
    """
    if not damping > 0:
        raise InputError(f"damping is {damping}, expected a number above 0")
    split = sample(data.measured_train, data.task)
    saliencies = {}
    for name, weight in pruned_weights(dense, candidates).items():
        size = len(split) * weight.numel() * weight.element_size()
        if size > GRADIENT_BYTES:
            raise NotApplicableError(
                f"the gradients of {name} by {len(split)} examples take {size / 2**30:.1f} GiB, "
                f"more than {GRADIENT_BYTES / 2**30:.0f}"
            )
        found = sample_gradients(dense, [name], split, data.task)
        rows = torch.cat([each[name].flatten(1) for each in found]).double()
        inverse = _inverse_diagonal(rows, damping).view(weight.shape)
        saliencies[name] = weight.detach().double() ** 2 / (2 * inverse)
    return candidates.sum_pruned(sum_by_filter(dense, candidates, saliencies))


def _inverse_diagonal(rows: Tensor, damping: float) -> Tensor:
    """The diagonal of (λI + rowsᵀ rows / N)⁻¹ for rows ``[N, n]``, by Woodbury's identity."""
    count = len(rows)
    small = rows @ rows.T + damping * count * torch.eye(count, dtype=rows.dtype).to(rows.device)
    half: Tensor = solve_triangular(torch.linalg.cholesky(small), rows, upper=False)
    return (1 - half.square().sum(0)) / damping


def _halves(weights: Mapping[str, Tensor], squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.detach() ** 2 * squares[name] / 2 for name, w in weights.items()}


@torch.no_grad()
def _relabelled(dense: nn.Module, split: AnySplit, task: Task) -> Split:
    """The examples with labels that are drawn from the network's predicted distribution."""
    some = split.take(torch.arange(len(split)))
    dense.eval()
    logits = torch.cat(
        [task.forward(dense, batch) for batch in some.batches(evaluation_batch(some))]
    )
    chances = logits.double().softmax(1).cpu()
    drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    target = next(name for name in TARGETS if name in some.fields)
    return Split({**some.fields, target: drawn.to(some.device)})
