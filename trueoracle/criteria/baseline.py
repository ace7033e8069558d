"""The criterion without any information, which every other one has to beat."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import nn

from trueoracle.criteria.base import criterion
from trueoracle.data.splits import Splits
from trueoracle.networks.weights import weights_sha256
from trueoracle.pruning.candidates import CandidateList

__all__ = ["random"]


@criterion(
    "random",
    label="a random number",
    source="the usual baseline",
    basis="ours",
    version=2,  # scores of version 1 were the same for all dense networks
    separable=True,
    at_once=True,  # every call hashes all weights
    uses_data=False,
)
def random(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """A number in [0, 1) for each candidate, of its own in each dense network. ``[P]``.

    Read off a hash of the candidate's id and the network's weights: the same in every study of
    that network, and another one in those of others.
    """
    drawn = hashlib.sha256(weights_sha256(dense).encode())
    # Only the leading 53 bits of the hash fit a float exactly.
    return np.array([_after(drawn, name) / 2**53 for name in candidates.ids])


def _after(drawn: hashlib._Hash, name: str) -> int:
    one = drawn.copy()
    one.update(name.encode())
    return int.from_bytes(one.digest()[:8], "big") >> 11
