"""Criteria for whole layers: how little a layer changes its input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.modules.conv import _ConvNd

from trueoracle.criteria.base import criterion
from trueoracle.criteria.calibration import real_positions, watch
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import Splits
from trueoracle.pruning.candidates import CandidateList
from trueoracle.tasks.base import Batch

__all__ = ["block_influence"]


@criterion(
    "block-influence",
    label="block influence of the pruned layers",
    source="Men et al. 2024 (ShortGPT, arXiv 2403.03853), section 2.3",
    basis="as published; of convolutions derived",
    separable=True,
    at_once=True,
    applies_to=("layers",),
)
def block_influence(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """1 - cosine between the stream before and behind a layer, summed over the pruned. ``[P]``.

    The cosine is taken over the channels, and averaged over all tokens (or positions) of a fixed
    512 of the training examples, padding left out, in evaluation mode. Layers of little influence
    are pruned. The channels of a stream are its last axis; in a layer that has convolutions, its
    second one, which the paper does not speak of.
    """
    split = sample(data.measured_train, data.task)
    layers = [layer for own in candidates.layers.values() for layer in own]
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, before: Tensor, after: Tensor | None, batch: Batch) -> None:
        if after is None:
            return
        has_convolutions = any(isinstance(m, _ConvNd) for m in dense.get_submodule(name).modules())
        axis = 1 if has_convolutions and before.ndim > 2 else -1
        change = 1 - cosine_similarity(before.double(), after.double(), dim=axis)
        if axis == -1 and (real := real_positions(before, batch)) is not None:
            change = change[real]
        totals[name] = totals.get(name, 0) + change.sum()
        counts[name] = counts.get(name, 0) + change.numel()

    watch(dense, layers, split, data.task, see)
    return candidates.sum_pruned(
        {
            stack: torch.stack([totals[layer] / counts[layer] for layer in own])
            for stack, own in candidates.layers.items()
        }
    )
