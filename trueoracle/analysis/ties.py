"""The choice among candidates whose scores tie: each has the same chance.

Choosing the first of those that tie would let the order of the rows decide.
"""

from __future__ import annotations

import numpy as np

__all__ = ["chances_of_lowest", "count_above", "lowest"]


def lowest(scores: np.ndarray) -> np.ndarray:
    """Which rows share the lowest score, as bool ``[n]``, of finite scores ``[n]``."""
    shared: np.ndarray = scores == scores.min()
    return shared


def chances_of_lowest(scores: np.ndarray, k: int) -> np.ndarray:
    """The chance ``[n]`` of each row to be among the ``k`` lowest scores ``[n]``, 1 <= k <= n.

    Rows that tie for the last places share them: each has the same chance of one.
    """
    border = np.partition(scores, k - 1)[k - 1]
    below, tied = scores < border, scores == border
    chances: np.ndarray = below + tied * ((k - below.sum()) / tied.sum())
    return chances


def count_above(values: np.ndarray, some: np.ndarray) -> np.ndarray:
    """How many of the ``values`` ``[n]`` are greater than each of ``some`` ``[m]``: ``[m]``."""
    # Sorted, since a table may hold as many ties as candidates: their pairs would not fit memory.
    above: np.ndarray = len(values) - np.searchsorted(np.sort(values), some, side="right")
    return above
