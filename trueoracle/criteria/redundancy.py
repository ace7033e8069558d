"""Criteria of sets of filters: how similar pruned filters are to kept ones."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.activations import filter_activations
from trueoracle.criteria.base import criterion
from trueoracle.criteria.leftover import left_over
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.tasks.base import Task

__all__ = ["redundancy"]


@criterion(
    "redundancy",
    label="unexplained variance of the pruned {units}",
    source="ours; that correlated filters can go: Singh et al. 2020 (arXiv 1811.10559)",
    basis="ours",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def redundancy(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """How much of the pruned filters' activations the kept ones do not explain. ``[P]``.

    The sum over the pruned filters of 1 - R², where R² is the share of the filter's variance that
    linear regression on all kept filters of its group explains, over all positions of a fixed 512
    of the training images, behind norm and activation function, evaluation mode. It is 0 where what
    goes can be made from what stays, and the number of pruned filters where nothing of it can. A
    filter that never changes counts as explained. Where a group is read in several places, all of
    them count as positions.
    """
    split = sample(data.measured_train, data.task)
    ways = cast(Candidates, candidates)
    found = _correlations(dense, ways, split, data.task)
    scores = np.zeros(len(ways))
    for position, group in enumerate(ways.groups):
        pruned = np.array([way[position] for way in ways])
        left = left_over(found[group.name], ways.kept_filters(position), pruned)
        scores += np.trace(left, axis1=1, axis2=2)
    return scores


def _correlations(
    dense: nn.Module, candidates: Candidates, split: AnySplit, task: Task
) -> dict[str, np.ndarray]:
    """Correlations ``[filters, filters]`` of activations by group; 0 for constant activations."""
    sums: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for _, found in filter_activations(dense, candidates.groups, split, task):
        for name, readings in found.items():
            for maps in readings:
                rows = maps.double().flatten(2).transpose(0, 1).flatten(1).cpu()
                counts[name] = counts.get(name, 0) + rows.shape[1]
                sums[name] = sums.get(name, 0) + rows.sum(1)
                products[name] = products.get(name, 0) + rows @ rows.T
    correlations = {}
    for name, product in products.items():
        mean = sums[name] / counts[name]
        covariance = product / counts[name] - torch.outer(mean, mean)
        square = covariance.diagonal()
        # Rounding gives even a constant a small variance.
        is_still = square <= 1e-12 * product.diagonal() / counts[name]
        scale = torch.where(is_still, 0, square.clamp(min=1e-300).rsqrt())
        correlations[name] = (scale[:, None] * covariance * scale).numpy()
    return correlations
