"""Second-order criteria: what the curvature of the loss says of pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gradients import gate_gradients, hessian_products, sample_squares
from trueoracle.criteria.importance import pruned_weights, sum_by_filter
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import Splits
from trueoracle.pruning.candidates import CandidateList

__all__ = ["fisher", "obd"]

HESSIAN_DRAWS = 256
"""Products with the Hessian: draws of Hutchinson's estimate, or where so many are enough, all."""

PRODUCTS_AT_ONCE = 16
"""Products that share one graph of the gradient; each takes as much memory as the weights."""


@criterion(
    "obd",
    label="OBD saliency of the pruned {units}",
    source="LeCun et al. 1989 (Optimal Brain Damage)",
    separable=True,
    at_once=True,
)
def obd(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Optimal brain damage: h w²/2 summed over the pruned weights (of filters). ``[P]``.

    h is the diagonal of the Hessian of the task's loss, the true one and not Gauss-Newton's,
    over a fixed 512 of the training images, in evaluation mode. Where the pruned layers have at
    most 256 weights it is exact, one product with the Hessian a weight. Else it is Hutchinson's
    estimate, the mean of v · Hv over 256 vectors v of random signs over the pruned layers' weights,
    from a fixed seed. Weights of large saliency are kept; a saliency can be negative.
    """
    weights = {name: w.detach() for name, w in pruned_weights(dense, candidates).items()}
    split = sample(data.measured_train, data.task)
    diagonal = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for vectors in _chunks(weights):
        for vector, product in zip(
            vectors, hessian_products(dense, split, data.task, vectors), strict=True
        ):
            for name, total in diagonal.items():
                total += vector[name] * product[name]
    draws = HESSIAN_DRAWS if _count(weights) > HESSIAN_DRAWS else 1
    saliencies = {name: diagonal[name] / draws * w**2 / 2 for name, w in weights.items()}
    return candidates.sum_pruned(sum_by_filter(dense, candidates, saliencies))


@criterion(
    "fisher",
    label="Fisher importance of the pruned {units}",
    source="Theis et al. 2018 (arXiv 1801.05787), section 2",
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
        halves = {name: w.detach() ** 2 * squares[name] / 2 for name, w in weights.items()}
        return candidates.sum_pruned(sum_by_filter(dense, candidates, halves))
    gates = gate_gradients(dense, candidates, split, data.task)
    return candidates.sum_pruned(
        {name: each.double().square().mean(0) / 2 for name, each in gates.items()}
    )


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _chunks(weights: Mapping[str, Tensor]) -> Iterator[list[dict[str, Tensor]]]:
    """Vectors over the weights: every unit vector, or random signs where those are too many."""
    sizes = [weight.numel() for weight in weights.values()]
    generator = torch.Generator().manual_seed(0)
    for start in range(0, min(HESSIAN_DRAWS, sum(sizes)), PRODUCTS_AT_ONCE):
        end = min(start + PRODUCTS_AT_ONCE, HESSIAN_DRAWS, sum(sizes))
        if sum(sizes) <= HESSIAN_DRAWS:
            rows = torch.eye(sum(sizes))[start:end]
        else:
            rows = torch.randint(0, 2, (end - start, sum(sizes)), generator=generator) * 2.0 - 1
        yield [
            {
                name: values.view(weight.shape).to(weight)
                for (name, weight), values in zip(weights.items(), row.split(sizes), strict=True)
            }
            for row in rows
        ]
