"""Criteria of the weights alone: pruned filters should be small, or similar to kept ones."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueoracle.criteria.base import criterion
from trueoracle.criteria.importance import (
    channel_values,
    member_weights,
    pruned_weights,
    sum_by_filter,
    sum_layers,
    within_groups,
)
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.groups import Group, by_filter, filter_weights, layer_weights

__all__ = ["bn_scale", "depgraph", "fpgm", "l1", "l2", "lamp"]


@criterion(
    "l1",
    label="L1 norm of the pruned {units}",
    source="Li et al. 2017 (arXiv 1608.08710), section 3.1",
    basis="as published; of layers derived",
    version=2,
    separable=True,
    uses_data=False,
)
def l1(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Sum of |w| over the weights of the pruned filters or layers, or the pruned weights. ``[P]``.

    Of single weights it is magnitude pruning's: Han et al. 2015 (arXiv 1506.02626), section 3. The
    paper ranks filters within a layer: of several groups, sums are divided by their group's mean,
    but with ``raw``.
    """
    weights = pruned_weights(dense, candidates)
    sizes = {name: weight.detach().abs() for name, weight in weights.items()}
    importance = sum_by_filter(dense, candidates, sizes)
    return candidates.sum_pruned(within_groups(importance, candidates, raw=raw))


@criterion(
    "l2",
    label={
        "filters": "L2 norm of the pruned filters",
        "weights": "squared L2 norm of the pruned weights",
        "layers": "squared L2 norm of the pruned layers",
    },
    source="He et al. 2018 (arXiv 1808.06866), section 3.2",
    basis="as published; of weights and layers derived",
    version=2,
    separable=True,
    uses_data=False,
)
def l2(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Sum over the pruned filters of the Euclidean norm of each one's weights. Scores ``[P]``.

    The paper ranks filters within a layer: of several groups, norms are divided by their group's
    mean, but with ``raw``. Of single weights, for which that would be ``l1`` again, and of whole
    layers it is the sum of w²: the squared Euclidean distance from the dense weights.
    """
    if candidates.units != "filters":
        weights = pruned_weights(dense, candidates)
        squares = {name: weight.detach() ** 2 for name, weight in weights.items()}
        return candidates.sum_pruned(sum_by_filter(dense, candidates, squares))
    norms = {g.name: filter_weights(dense, g).detach().norm(dim=1) for g in candidates.groups}
    return candidates.sum_pruned(within_groups(norms, candidates, raw=raw))


@criterion(
    "depgraph",
    label="group norm of the pruned {units}",
    source="Fang et al. 2023 (DepGraph, arXiv 2301.12900), section 3.3",
    basis="as released: Torch-Pruning 1.6, p = 2, means over places, divided by the group's mean",
    separable=True,
    applies_to=("filters",),
    uses_data=False,
)
def depgraph(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Sum of the squares of all weights that a pruned filter has anywhere in its group. ``[P]``.

    The weights are those of the layers that put the filter out, the scales of its batch and layer
    norms, and the input weights of what reads it; biases and depthwise convolutions are left out,
    as in the released code. The importance is the mean over these places of the sum of squares,
    divided by its mean over the filters of the group. The paper's sparse training beforehand is
    left out: a study takes the dense network as it is.
    """
    importance = {}
    for group in candidates.groups:
        members = member_weights(dense, group)
        squares = [by_filter(rows, w.detach().double() ** 2).sum(1) for _, rows, w in members]
        mean = torch.stack(squares).mean(0)
        importance[group.name] = mean / (mean.mean() or 1.0)
    return candidates.sum_pruned(importance)


@criterion(
    "lamp",
    label="LAMP score of the pruned {units}",
    source="Lee et al. 2021 (LAMP, arXiv 2010.07611)",
    basis="as published; of filters derived",
    separable=True,
    applies_to=("filters", "weights"),
    uses_data=False,
)
def lamp(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Layer-adaptive magnitude: the square of each weight over the squares that are no smaller.

    The paper's score of a weight is w² divided by the sum of the squares, in the same layer, of
    itself and all larger ones; equal ones, which the paper ranks in some order, all have the sum of
    every square no smaller than theirs, so that what is alike scores alike. Large ones are kept,
    and the score ``[P]`` is the sum over what is pruned. A filter counts as one weight, whose
    square is the squared Euclidean norm of its weights; in a group of several layers each has its
    own scores, which are added up.
    """
    if candidates.units == "weights":
        weights = pruned_weights(dense, candidates)
        scores = {name: _lamp(weight.detach() ** 2) for name, weight in weights.items()}
        return candidates.sum_pruned(sum_by_filter(dense, candidates, scores))
    return candidates.sum_pruned(
        {
            group.name: sum_layers(_lamp(w.square().sum(1)) for w in _layers(dense, group))
            for group in candidates.groups
        }
    )


@criterion(
    "fpgm",
    label="distance of the pruned {units} from all {units}",
    source="He et al. 2019 (FPGM, arXiv 1811.00250), section 3",
    basis="as published",
    version=2,
    separable=True,
    applies_to=("filters",),
    uses_data=False,
)
def fpgm(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Filter pruning via the geometric median: each pruned filter's distances to all others.

    A filter's importance is the sum of its Euclidean distances to the filters of its layer; the
    least one is nearest to their geometric median, and can best be replaced by the others. The
    score ``[P]`` is the sum over the pruned filters, and over the layers of a group. The paper
    ranks filters within a layer: of several groups, sums are divided by their group's mean, but
    with ``raw``.
    """
    distances = {
        group.name: sum_layers(_distances(w).sum(1) for w in _layers(dense, group))
        for group in candidates.groups
    }
    return candidates.sum_pruned(within_groups(distances, candidates, raw=raw))


@criterion(
    "bn-scale",
    label="batch norm scale of the pruned {units}",
    source="Liu et al. 2017 (Network Slimming, arXiv 1708.06519), section 3",
    basis="as published: without the training with a penalty",
    separable=True,
    applies_to=("filters",),
    conditional=True,
    uses_data=False,
)
def bn_scale(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Sum of |γ|, the scale of the batch norm behind them, over the pruned filters. ``[P]``.

    Where several batch norms follow a group, their scales are added up. The paper trains the dense
    network with an L1 penalty on γ; a study takes the dense network as it is. Not applicable to a
    filter without a batch norm.
    """
    importance = {}
    modules = dict(dense.named_modules())
    for group in candidates.groups:
        scales = []
        for part in group.norms:
            norm = modules.get(part.module)
            if isinstance(norm, _BatchNorm) and norm.affine:
                gamma = cast(Tensor, norm.weight).detach().abs().double()
                scales.append(channel_values(gamma, group, part).sum(1))
        if not scales:
            raise NotApplicableError(f"no batch norm with a scale follows {group.name}")
        importance[group.name] = sum_layers(scales)
    return candidates.sum_pruned(importance)


def _layers(dense: nn.Module, group: Group) -> list[Tensor]:
    """The weights ``[filters, n]`` of each layer of a group, in double precision."""
    found = layer_weights(dense, group).values()
    return [by_filter(layer, weight.detach().double()) for layer, weight in found]


def _lamp(squares: Tensor) -> Tensor:
    """Each square divided by the sum of all squares that are not smaller, in the same shape."""
    flat, order = squares.double().flatten().sort(descending=True, stable=True)
    # For each square, the place of the last one that equals it, counted from 1.
    ends = torch.searchsorted(-flat, -flat, right=True)
    # In a layer of zeros alone the sums are zero, too: the clamp avoids 0 / 0.
    scores = flat / flat.cumsum(0)[ends - 1].clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(scores).scatter_(0, order, scores).view(squares.shape)


def _distances(filters: Tensor) -> Tensor:
    """Euclidean distances ``[filters, filters]``, without a matrix product, which loses digits."""
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
