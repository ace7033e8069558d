"""Criteria of filters' outputs: how active they are, and how much information they hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.activations import filter_activations
from trueoracle.criteria.base import criterion
from trueoracle.criteria.calibration import real_positions, watch
from trueoracle.criteria.importance import within_groups
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList
from trueoracle.tasks.base import Batch

__all__ = ["activation_mean", "apoz", "chip", "hrank"]


@criterion(
    "activation-mean",
    label="mean activation of the pruned {units}",
    source="Molchanov et al. 2017 (arXiv 1611.06440), section 2.2",
    basis="as published: means of absolute values; of layers derived",
    version=2,
    separable=True,
    at_once=True,
    applies_to=("filters", "layers"),
    conditional=True,
)
def activation_mean(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Mean size of a filter's activations, summed over the pruned filters. Scores ``[P]``.

    Over all training images and positions, behind norm and activation function and before pooling,
    in evaluation mode; of their absolute values, which behind a ReLU are the paper's. Small means
    are pruned. Where a group is read in several places their means are added up; of several groups,
    they are divided by their group's mean, but with ``raw``. Of whole layers it is the mean size of
    what a layer adds to its stream, which the paper does not have.
    """
    if candidates.units == "layers":
        return _added(dense, candidates, data)
    means = _statistics(dense, candidates, data, data.measured_train, _mean_size)
    return candidates.sum_pruned(within_groups(means, candidates, raw=raw))


@criterion(
    "apoz",
    label="share of non-zero activations of the pruned {units}",
    source="Hu et al. 2016 (Network Trimming, arXiv 1607.03250), section 3",
    basis="as published",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def apoz(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Average percentage of zeros: the share that are not zero, summed over the pruned. ``[P]``.

    APoZ is the share of a filter's activations, over all training images and positions, that are
    zero behind the activation function and before pooling, in evaluation mode. The paper prunes
    where it is high, so that the importance is 1 - APoZ. Not applicable where nothing is ever
    zero, as without a ReLU.
    """
    zeros = 0.0

    def shares(maps: Tensor) -> Tensor:
        nonlocal zeros
        other = (maps != 0).mean((0, 2), dtype=torch.float64)
        zeros += float((1 - other).sum())
        return other

    importance = _statistics(dense, candidates, data, data.measured_train, shares)
    if not zeros:
        raise NotApplicableError(
            "no activation of the pruned filters is zero: no ReLU follows", of_images=True
        )
    return candidates.sum_pruned(importance)


@criterion(
    "hrank",
    label="feature map rank of the pruned {units}",
    source="Lin et al. 2020 (HRank, arXiv 2002.10179), section 3",
    basis="as published: 512 images",
    version=2,
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def hrank(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Mean rank of a filter's feature maps, summed over the pruned filters. Scores ``[P]``.

    Over a fixed 512 of the training images (the paper takes 500), behind norm and activation
    function and before pooling, in evaluation mode; the rank is numerical, at single precision.
    Low ranks are pruned. The paper ranks filters within a layer: of several groups, ranks are
    divided by their group's mean, but with ``raw``. Not applicable where there are no maps of at
    least 2×2.
    """

    def ranks(maps: Tensor) -> Tensor:
        found: Tensor = torch.linalg.matrix_rank(maps.float())
        return found.double().mean(0)

    split = sample(data.measured_train, data.task)
    means = _statistics(dense, candidates, data, split, ranks, as_maps=True)
    return candidates.sum_pruned(within_groups(means, candidates, raw=raw))


@criterion(
    "chip",
    label="channel independence of the pruned {units}",
    source="Sui et al. 2021 (CHIP, arXiv 2110.13981), section 3",
    basis="as published: 512 images",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def chip(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, raw: bool = False
) -> np.ndarray:
    """Channel independence: what the nuclear norm of an image's maps loses without one. ``[P]``.

    The importance of a filter is ‖A‖* - ‖A without its row‖*, where A ``[filters, H·W]`` has an
    image's feature maps as rows, behind norm and activation function and before pooling; the mean
    over a fixed 512 of the training images (the released code takes 640), evaluation mode. The
    score is the sum over the pruned filters, as in the paper, which defines it of sets too. Where a
    group is read in several places, these are added up; filters are ranked within a layer: of
    several groups, they are divided by their group's mean, but with ``raw``. Not applicable where
    there are no maps of at least 2×2.
    """
    split = sample(data.measured_train, data.task)
    losses = _statistics(dense, candidates, data, split, _independence, as_maps=True)
    return candidates.sum_pruned(within_groups(losses, candidates, raw=raw))


def _independence(maps: Tensor) -> Tensor:
    """CHIP's channel independence of each filter ``[filters]``, a mean over images."""
    rows = maps.double().flatten(2)
    products = rows @ rows.transpose(1, 2)  # whose eigenvalues are the squared singular values
    whole = _nuclear(products)
    filters = products.shape[1]
    others = ~torch.eye(filters, dtype=torch.bool, device=maps.device)
    without = [_nuclear(products[:, some][:, :, some]) for some in others]
    return (whole - torch.stack(without)).mean(1)


def _nuclear(products: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.eigvalsh(products).clamp(min=0).sqrt().sum(1)
    return norms


def _added(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The mean size of what each layer adds to its stream, summed over the pruned layers."""
    layers = [layer for own in candidates.layers.values() for layer in own]
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, before: Tensor, after: Tensor | None, batch: Batch) -> None:
        added = before.double() if after is None else (after.double() - before.double())
        if (real := real_positions(before, batch)) is not None:
            added = added[real]
        totals[name] = totals.get(name, 0) + added.abs().sum()
        counts[name] = counts.get(name, 0) + added.numel()

    watch(dense, layers, data.measured_train, data.task, see)
    return candidates.sum_pruned(
        {
            stack: torch.stack([totals[layer] / counts[layer] for layer in own])
            for stack, own in candidates.layers.items()
        }
    )


def _mean_size(maps: Tensor) -> Tensor:
    mean: Tensor = maps.abs().mean((0, 2), dtype=torch.float64)
    return mean


def _statistics(
    dense: nn.Module,
    candidates: CandidateList,
    data: Splits,
    split: AnySplit,
    statistic: Callable[[Tensor], Tensor],
    *,
    as_maps: bool = False,
) -> dict[str, Tensor]:
    """The mean over images of a statistic of activations, ``[filters]`` by group.

    ``statistic`` takes ``[N, filters, positions]`` (with ``as_maps``, ``[N, filters, H, W]``) and
    returns its mean over the images, ``[filters]``.
    """
    totals: dict[str, Tensor] = {}
    for images, found in filter_activations(dense, candidates.groups, split, data.task):
        for name, readings in found.items():
            for maps in readings:
                if as_maps and (maps.ndim != 4 or min(maps.shape[2:]) < 2):
                    raise NotApplicableError(f"{name} puts out no feature maps [H, W]")
                given = maps if as_maps else maps.flatten(2)
                totals[name] = totals.get(name, 0) + statistic(given) * (images / len(split))
    return totals
