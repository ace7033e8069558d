"""Pruned train loss: the criterion that the question is about."""

from __future__ import annotations

import numpy as np
from torch import nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.exact import evaluate_all
from trueoracle.data.splits import Splits
from trueoracle.pruning.candidates import CandidateList

__all__ = ["oracle"]


@criterion(
    "oracle",
    source="Mozer & Smolensky 1988; Molchanov et al. 2017 (arXiv 1611.06440), section 2.1",
    separable=True,
)
def oracle(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Mean cross-entropy (nats) of each pruned network over the training images.

    All of them, or the part that train loss is measured on; in evaluation mode, not augmented,
    under the study's surgery. Scores ``[P]``.
    """
    return evaluate_all(dense, candidates, data.measured_train)
