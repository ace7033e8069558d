"""The part of the pruned filters that least squares on the kept ones cannot explain."""

from __future__ import annotations

import numpy as np

__all__ = ["left_over"]

JITTER = 1e-10
"""The share of the diagonal's mean that is added to it, as kept filters may be dependent."""

AT_ONCE_BYTES = 64 * 2**20
"""About the most bytes that candidates' matrices take at a time."""


def left_over(moments: np.ndarray, kept: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """Inner products ``[P, M, M]`` of the residuals of the pruned vectors, given the kept ones.

    ``moments`` ``[F, F]`` are the inner products of F vectors; ``kept`` ``[P, K]`` and ``pruned``
    ``[P, M]`` are the indices of those that each candidate keeps and prunes. A residual is a pruned
    vector minus its projection on the kept ones. The result is the Schur complement of the kept
    block in the moments.
    """
    left = np.empty((len(kept), pruned.shape[1], pruned.shape[1]))
    size = max(1, AT_ONCE_BYTES // (8 * kept.shape[1] * (kept.shape[1] + pruned.shape[1])))
    for start in range(0, len(kept), size):
        some = slice(start, start + size)
        own, gone = kept[some], pruned[some]
        within = moments[own[:, :, None], own[:, None, :]]
        scale = np.trace(within, axis1=1, axis2=2) / kept.shape[1]
        scale = np.where(scale > 0, JITTER * scale, 1.0)
        within = within + scale[:, None, None] * np.eye(kept.shape[1])
        across = moments[own[:, :, None], gone[:, None, :]]
        alone = moments[gone[:, :, None], gone[:, None, :]]
        left[some] = alone - across.transpose(0, 2, 1) @ np.linalg.solve(within, across)
    return left
