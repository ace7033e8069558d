"""What the next layer loses of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from trueoracle.criteria.activations import consumer_inputs
from trueoracle.criteria.base import criterion
from trueoracle.criteria.importance import kept_of
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.errors import NotApplicableError
from trueoracle.networks.attention import Attention
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.groups import Group, Part
from trueoracle.tasks.base import Task

__all__ = ["thinet"]

PARTS_BYTES = 64 * 2**20
"""Aim for the most that the filters' parts of the next layer's output take at a time."""


_CONVOLVE: tuple[tuple[type[nn.Module], Callable[..., Tensor]], ...] = (
    (nn.Conv1d, functional.conv1d),
    (nn.Conv2d, functional.conv2d),
    (nn.Conv3d, functional.conv3d),
)


@criterion(
    "thinet",
    label="error of the next layer's output",
    source="Luo et al. 2017 (ThiNet, arXiv 1707.06342), section 3.2",
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
    least squares, which is left out: here every candidate's own set is scored, exactly. Where
    several layers read a group, their errors are added up, and over groups, each taken by itself.
    """
    split = sample(data.measured_train, data.task)
    ways = cast(Candidates, candidates)
    products = _filter_products(dense, ways, split, data.task)
    scores = np.zeros(len(ways))
    for position, group in enumerate(ways.groups):
        pruned = 1 - kept_of(ways, position)
        scores += ((pruned @ products[group.name]) * pruned).sum(1)
    return scores


def _filter_products(
    dense: nn.Module, candidates: Candidates, split: AnySplit, task: Task
) -> dict[str, np.ndarray]:
    """Inner products of the filters' parts of what reads them, a mean over images.

    ``[filters, filters]`` by group: the squared error of any set is the sum over its pairs.
    """
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
    """Each filter's part of a consumer's output, ``[filters, numbers]``, of some images."""
    index = part.entries(torch.arange(group.filters, device=given.device), group.filters)
    convolve = next((one for kind, one in _CONVOLVE if isinstance(module, kind)), None)
    if convolve is not None and isinstance(module, _ConvNd):
        weight, mine = module.weight.index_select(1, index), given.index_select(1, index)
        padding: Any = module.padding
        if module.padding_mode != "zeros":
            around = module._reversed_padding_repeated_twice
            mine, padding = functional.pad(mine, around, mode=module.padding_mode), 0
        kernels = weight.transpose(0, 1).reshape(-1, 1, *module.kernel_size)
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
