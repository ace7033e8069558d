"""Second-order criteria: the change of the loss by pruning, from the loss's Hessian."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gates import gate_hessian, unit_counts
from trueoracle.criteria.gradients import hessian_products, weight_gradients
from trueoracle.criteria.importance import pruned_units, pruned_weights, sum_by_filter
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import Splits
from trueoracle.pruning.candidates import CandidateList

__all__ = ["obd", "obd_diagonal", "quadratic"]

HESSIAN_DRAWS = 256
"""Most products with the Hessian: one per weight where that is enough, else Hutchinson's draws."""

PRODUCTS_AT_ONCE = 16
"""Products that share one graph of the gradient; each takes as much memory as the weights."""

_SOURCE = "LeCun et al. 1989 (Optimal Brain Damage)"


@criterion(
    "obd",
    label="OBD saliency of the pruned {units}",
    source=_SOURCE,
    basis="as published; of filters and layers derived: the parameter is a gate",
    version=2,
    separable=True,
    at_once=True,
)
def obd(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Optimal brain damage: half the second derivative by a gate on each pruned filter. ``[P]``.

    The saliency of a filter is ½ ∂²L/∂z², where z = 1 is a gate on all that following layers read
    of it: the change of the loss L, to second order and but for the gradient, when the filter goes.
    Of whole layers z multiplies what a layer adds to its stream; each takes one product with the
    Hessian, and is exact. Of single weights it is h w²/2, h the diagonal as in ``obd-diagonal``.
    L is the task's loss over a fixed 512 of the training images, in evaluation mode, with its true
    Hessian and not Gauss-Newton's. Large saliencies are kept; one can be negative.
    """
    if candidates.units == "weights":
        return candidates.sum_pruned(_weight_saliencies(dense, candidates, data))
    split = sample(data.measured_train, data.task)
    _, hessian = gate_hessian(dense, candidates, split, data.task)
    sizes = unit_counts(candidates)
    parts = (hessian.diagonal() / 2).split(list(sizes.values()))
    return candidates.sum_pruned(dict(zip(sizes, parts, strict=True)))


@criterion(
    "obd-diagonal",
    label="summed OBD saliency of the pruned {units}",
    source=_SOURCE,
    basis="derived: summed over a filter's weights",
    separable=True,
    at_once=True,
    applies_to=("filters", "layers"),
)
def obd_diagonal(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Optimal brain damage of each weight: h w²/2 summed over those of the pruned filters. ``[P]``.

    h is the diagonal of the Hessian of the task's loss, the true one and not Gauss-Newton's,
    over a fixed 512 of the training images, in evaluation mode. Where the pruned layers have at
    most 256 weights it is exact, one product with the Hessian a weight. Else it is Hutchinson's
    estimate, the mean of v · Hv over 256 vectors v of random signs over the pruned layers' weights,
    from a fixed seed. Large sums are kept. It leaves out what weights of one filter do together,
    which ``obd`` has.
    """
    return candidates.sum_pruned(_weight_saliencies(dense, candidates, data))


@criterion(
    "quadratic",
    label="second-order loss change of the pruned {units}",
    source=f"{_SOURCE}, equation 1",
    basis="derived: the whole expansion, of the set; of filters and layers by gates",
    separable=True,
    at_once=True,
)
def quadratic(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The loss change to second order of the whole pruned set: -gᵀz + ½ zᵀHz. ``[P]``.

    z is 1 where a filter is pruned, g and H are gradient and Hessian of the task's loss by gates on
    the filters (or on what layers add to their stream), as in ``obd``: with the gradient and the
    curvature between filters, which optimal brain damage leaves out. Exact, one product with the
    Hessian for each filter. Of single weights z holds the pruned weights w themselves, with one
    product for each candidate. Over a fixed 512 of the training images, evaluation mode.
    """
    split = sample(data.measured_train, data.task)
    if candidates.units == "weights":
        return _weight_quadratics(dense, candidates, data)
    slopes, hessian = gate_hessian(dense, candidates, split, data.task)
    z = pruned_units(candidates)
    curved: np.ndarray = ((z @ hessian.numpy()) * z).sum(1) / 2 - z @ slopes.numpy()
    return curved


def _weight_quadratics(dense: nn.Module, candidates: Any, data: Splits) -> np.ndarray:
    """The second-order change of the loss when each candidate's weights are removed."""
    weights = {name: w.detach() for name, w in pruned_weights(dense, candidates).items()}
    split = sample(data.measured_train, data.task)
    slopes = weight_gradients(dense, list(weights), split, data.task)
    scores = []
    for start in range(0, len(candidates), PRODUCTS_AT_ONCE):
        some = range(start, min(start + PRODUCTS_AT_ONCE, len(candidates)))
        masks = [candidates.kept(index) for index in some]
        gone = [
            {name: w * ~mask[name.removesuffix(".weight")] for name, w in weights.items()}
            for mask in masks
        ]
        products = hessian_products(dense, split, data.task, gone)
        scores += [
            sum(
                float((w * (product[name] / 2 - slopes[name])).double().sum())
                for name, w in one.items()
            )
            for one, product in zip(gone, products, strict=True)
        ]
    return np.array(scores)


def _weight_saliencies(
    dense: nn.Module, candidates: CandidateList, data: Splits
) -> dict[str, Tensor]:
    """The saliency h w²/2 of each weight, summed to the importance of what is pruned."""
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
    return sum_by_filter(dense, candidates, saliencies)


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _chunks(weights: Mapping[str, Tensor]) -> Iterator[list[dict[str, Tensor]]]:
    """Vectors over the weights: all unit vectors, or vectors of random signs for many weights."""
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
