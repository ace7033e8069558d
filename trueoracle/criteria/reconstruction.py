"""Criteria of the next layer: the error of its output without the pruned filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from trueoracle.criteria.activations import check_readers, consumer_inputs, reader
from trueoracle.criteria.base import criterion
from trueoracle.criteria.calibration import as_matrices, input_statistics
from trueoracle.criteria.importance import kept_of
from trueoracle.criteria.leftover import left_over
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.networks.attention import Attention
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.groups import Group, Part
from trueoracle.tasks.base import Task

__all__ = ["channel_pruning", "thinet", "thinet_ls"]

PARTS_BYTES = 64 * 2**20
"""About the most bytes that filters' parts of the next layer's output take at a time."""


_CONVOLVE: tuple[tuple[type[nn.Module], Callable[..., Tensor]], ...] = (
    (nn.Conv1d, functional.conv1d),
    (nn.Conv2d, functional.conv2d),
    (nn.Conv3d, functional.conv3d),
)


@criterion(
    "thinet",
    label="error of the next layer's output",
    source="Luo et al. 2017 (ThiNet, arXiv 1707.06342), section 3.2",
    basis="as published: all positions of 512 images",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def thinet(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Squared error that pruning leaves in the output of the next layer, of the whole set. ``[P]``.

    The error is the sum over outputs and positions of (Σ over pruned filters of their part)²,
    averaged over a fixed 512 of the training images, in evaluation mode; the paper samples images
    and positions. It chooses sets greedily by this error, and then corrects the kept weights by
    least squares (``thinet-ls``): here every candidate's own set is scored, exactly. Where several
    layers read a group, their errors are added up, and over groups, each taken by itself.
    """
    split = sample(data.measured_train, data.task)
    ways = cast(Candidates, candidates)
    products = _filter_products(dense, ways, split, data.task)
    scores = np.zeros(len(ways))
    for position, group in enumerate(ways.groups):
        pruned = 1 - kept_of(ways, position)
        scores += ((pruned @ products[group.name]) * pruned).sum(1)
    return scores


@criterion(
    "thinet-ls",
    label="error of the next layer's output after scaling",
    source="Luo et al. 2017 (ThiNet, arXiv 1707.06342), section 3.2, equation 7",
    basis="as published: all positions of 512 images",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def thinet_ls(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The error of ``thinet`` that is left when kept filters are scaled by least squares. ``[P]``.

    Each kept filter's part of the next layer's output has one factor, and the factors are those
    that bring the output nearest to the dense network's. Exact, from the same inner products. The
    factors themselves are left out: a candidate's network has the dense network's weights.
    """
    split = sample(data.measured_train, data.task)
    ways = cast(Candidates, candidates)
    products = _filter_products(dense, ways, split, data.task)
    scores = np.zeros(len(ways))
    for position, group in enumerate(ways.groups):
        kept, pruned = ways.kept_filters(position), _pruned_filters(ways, position)
        # Kept filters explain themselves: the residual is that of the sum over the pruned ones.
        scores += left_over(products[group.name], kept, pruned).sum((1, 2))
    return scores


@criterion(
    "channel-pruning",
    label="error of the next layer's output after least squares",
    source="He et al. 2017 (Channel Pruning, arXiv 1707.06168), section 3.1, equation 1",
    basis="as published: all positions of 5,000 images; every set, in the place of LASSO's choice",
    separable=True,
    at_once=True,
    applies_to=("filters",),
    conditional=True,
)
def channel_pruning(
    dense: nn.Module, candidates: CandidateList, data: Splits, *, images: int = 5000
) -> np.ndarray:
    """The error of the next layer's output that is left after refitting its weights. ``[P]``.

    The least of ‖Y - X'W'ᵀ‖² over all weights W' for the kept channels X', summed over outputs and
    positions, a mean over a fixed number of ``images`` of the training set (the paper's 5,000, of
    which it draws ten positions each): what the paper's problem has for this set of channels. Its
    LASSO, which chooses a set, and the refitted weights themselves are left out. Where several
    layers read a group, their errors are added up, and over groups, each taken by itself. Not
    applicable where attention or a grouped convolution reads the filters.
    """
    if images < 1:
        raise InputError(f"images is {images}, expected a whole number from 1")
    split = sample(data.measured_train, data.task, images)
    ways = cast(Candidates, candidates)
    parts = [(i, g, part) for i, g in enumerate(ways.groups) for part in g.consumers]
    check_readers(dense, ways.groups)
    for name in {part.module for *_, part in parts}:
        reader(dense, Part(name))
    names = list(dict.fromkeys(part.module for *_, part in parts))
    moments = input_statistics(
        dense, names, split, data.task, lambda rows: rows.transpose(1, 2) @ rows
    )
    scores = np.zeros(len(ways))
    for position, group, part in parts:
        module = dense.get_submodule(part.module)
        weight = as_matrices(module, cast(Tensor, module.weight).detach().double())[0].cpu().numpy()
        own = moments[part.module][0].cpu().numpy() / len(split)
        columns = _columns(module, part, group, weight.shape[1])
        others = np.setdiff1d(np.arange(weight.shape[1]), columns)
        for index, pruned in enumerate(_pruned_filters(ways, position)):
            gone = columns[pruned].ravel()
            stays = np.concatenate([np.delete(columns, pruned, axis=0).ravel(), others])
            left = left_over(own, stays[None], gone[None])[0]
            scores[index] += ((weight[:, gone] @ left) * weight[:, gone]).sum()
    return scores


def _columns(module: nn.Module, part: Part, group: Group, inputs: int) -> np.ndarray:
    """The columns ``[filters, n]`` of a consumer's matrix that multiply each filter."""
    entries = part.entries(torch.arange(group.filters), group.filters).view(group.filters, -1)
    channels = module.in_channels if isinstance(module, _ConvNd) else inputs
    places = torch.arange(inputs // channels)
    return (entries[..., None] * len(places) + places).flatten(1).numpy()


def _pruned_filters(candidates: Candidates, position: int) -> np.ndarray:
    """The filters ``[P, M]`` that all candidates prune in the group at a position."""
    return np.array([way[position] for way in candidates])


def _filter_products(
    dense: nn.Module, candidates: Candidates, split: AnySplit, task: Task
) -> dict[str, np.ndarray]:
    """Inner products of the filters' parts of their readers' outputs, a mean over images.

    They are ``[filters, filters]`` by group; a set's squared error is the sum over its pairs.
    """
    check_readers(dense, candidates.groups)
    readers = [(group, part) for group in candidates.groups for part in group.consumers]
    products = {
        group.name: torch.zeros(group.filters, group.filters, dtype=torch.float64)
        for group in candidates.groups
    }
    names = list(dict.fromkeys(part.module for _, part in readers))
    for inputs in consumer_inputs(dense, names, split, task):
        for group, part in readers:
            module = dense.get_submodule(part.module)
            given, at = inputs[part.module], 0
            while at < len(given):
                parts = _parts(module, given[at : at + 1], group, part)
                size = max(1, PARTS_BYTES // (parts.numel() * parts.element_size()))
                if size > 1:
                    parts = _parts(module, given[at : at + size], group, part)
                products[group.name] += (parts @ parts.T).double().cpu() / len(split)
                at += size
    return {name: product.numpy() for name, product in products.items()}


@torch.no_grad()
def _parts(module: nn.Module, given: Tensor, group: Group, part: Part) -> Tensor:
    """Each filter's part of a consumer's output, ``[filters, numbers]``, for some images."""
    index = part.entries(torch.arange(group.filters, device=given.device), group.filters)
    convolve = next((one for kind, one in _CONVOLVE if isinstance(module, kind)), None)
    if convolve is not None and isinstance(module, _ConvNd):
        weight, mine = module.weight.index_select(1, index), given.index_select(1, index)
        padding: Any = module.padding
        if module.padding_mode != "zeros":
            around = module._reversed_padding_repeated_twice
            mine, padding = functional.pad(mine, around, mode=module.padding_mode), 0
        # [O, F · n, …] with n channels per filter, as F groups of O outputs.
        kernels = weight.transpose(0, 1).unflatten(0, (group.filters, -1)).transpose(1, 2)
        kernels = kernels.flatten(0, 1)
        maps: Tensor = convolve(
            mine, kernels, None, module.stride, padding, module.dilation, group.filters
        )
        each: Tensor = maps.unflatten(1, (group.filters, -1))
        return each.transpose(0, 1).flatten(1)
    if isinstance(module, nn.Linear | Attention):
        weight = module.in_proj_weight if isinstance(module, Attention) else module.weight
        rows = part.of_filters(weight, group.filters, 1)
        mine = part.of_filters(given.flatten(0, -2), group.filters, 1)
        return torch.einsum("ncs,fcs->cnf", mine, rows).flatten(1)
    raise NotApplicableError(f"{part.module}, a {type(module).__name__}, reads {group.name}")
