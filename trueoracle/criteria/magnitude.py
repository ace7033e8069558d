"""Magnitude criteria: what is pruned should be small."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from trueoracle.criteria.base import criterion
from trueoracle.data.splits import Splits
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.groups import filter_weights

__all__ = ["l1", "l2"]


@criterion("l1", source="Li et al. 2017 (arXiv 1608.08710), section 3.1", separable=True)
def l1(dense: nn.Module, candidates: Candidates, data: Splits) -> np.ndarray:
    """Sum of |w| over the weights of the pruned filters. Scores ``[P]``."""
    return candidates.sum_pruned(_norms(dense, candidates, order=1))


@criterion("l2", source="He et al. 2018 (arXiv 1808.06866), section 3.2", separable=True)
def l2(dense: nn.Module, candidates: Candidates, data: Splits) -> np.ndarray:
    """Sum over the pruned filters of the Euclidean norm of each one's weights. Scores ``[P]``."""
    return candidates.sum_pruned(_norms(dense, candidates, order=2))


def _norms(dense: nn.Module, candidates: Candidates, order: int) -> dict[str, Tensor]:
    """The norm ``[filters]`` of every filter's weights, by group name."""
    return {
        group.name: filter_weights(dense, group).norm(p=order, dim=1) for group in candidates.groups
    }
