"""The criterion without any information, which every other one has to beat."""

from __future__ import annotations

import numpy as np
from torch import nn

from trueoracle.criteria.base import criterion
from trueoracle.data.splits import Splits
from trueoracle.pruning.candidates import CandidateList

__all__ = ["random"]


@criterion(
    "random",
    label="a random number",
    source="the usual baseline",
    basis="ours",
    separable=True,
    uses_data=False,
)
def random(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """A number in [0, 1) for each candidate, read off its id: the same in every study. ``[P]``."""
    # Ids are uniform hash digits; only the leading 53 bits fit a float exactly.
    return np.array([(int(name, 16) >> 11) / 2**53 for name in candidates.ids])
