"""Pruned loss, on several sets of examples: the criterion that this package's question is about."""

from __future__ import annotations

import numpy as np
from torch import nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.samples import sample
from trueoracle.criteria.shared import evaluate_all
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList

__all__ = ["oracle", "oracle_subset", "oracle_validation"]

_SOURCE = "Mozer & Smolensky 1988; Molchanov et al. 2017 (arXiv 1611.06440), section 2.1"


@criterion(
    "oracle", label="pruned train loss", source=_SOURCE, basis="as published", separable=True
)
def oracle(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The task's loss of each pruned network over the training examples.

    All of them, or the part that train loss is measured on; in evaluation mode, not augmented,
    under the study's surgery. Scores ``[P]``.
    """
    return evaluate_all(dense, candidates, data.measured_train, data.task)


@criterion(
    "oracle-subset",
    label="pruned train loss on 512 examples",
    source=_SOURCE,
    basis="derived: a part of the examples",
    separable=True,
)
def oracle_subset(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The task's loss of each pruned network over 512 of the training examples. ``[P]``.

    As ``oracle``, on a fixed part with equal shares of each class: what the loss is where it must
    be cheap.
    """
    return evaluate_all(dense, candidates, sample(data.measured_train, data.task), data.task)


@criterion(
    "oracle-validation",
    label="pruned validation loss",
    source=_SOURCE,
    basis="derived: other examples",
    separable=True,
    conditional=True,
)
def oracle_validation(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """The task's loss of each pruned network over the validation examples. ``[P]``.

    As ``oracle``, on examples that no network is trained on. Not applicable without a validation
    split.
    """
    if data.validation is None:
        raise NotApplicableError("there is no validation split (data.validation_images = 0)")
    return evaluate_all(dense, candidates, data.validation, data.task)
