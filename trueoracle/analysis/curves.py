"""Learning curves of retraining: one for each candidate and seed, and how they spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["QUANTILES", "Curves", "learning_curves", "spread"]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What :func:`spread` gives of each epoch."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The values ``[P, S, E]`` of P candidates, S seeds and E epochs; NaN where there is none."""

    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean ``[P, E]`` over the seeds, as far as each candidate has them."""
        known = np.isfinite(self.values)
        count, total = known.sum(axis=1), np.where(known, self.values, 0).sum(axis=1)
        empty = np.full(total.shape, np.nan)
        made: np.ndarray = np.divide(total, count, out=empty, where=count > 0)
        return made


def learning_curves(
    epochs: pd.DataFrame, candidates: pd.Series, column: str, stride: int = 1
) -> Curves:
    """The curves of a column of outcomes, in the order of the ``candidates``.

    ``epochs`` has the columns candidate, seed, epoch and the metrics'. Of more epochs than are
    wanted, every ``stride``-th is taken, the last one always.
    """
    wide = epochs.pivot(index="candidate", columns=["seed", "epoch"], values=column)
    seeds = sorted({int(seed) for seed in wide.columns.get_level_values("seed")})
    numbers = sorted({int(epoch) for epoch in wide.columns.get_level_values("epoch")})
    kept = [one for one in numbers if (numbers[-1] - one) % stride == 0]
    order = pd.MultiIndex.from_product([seeds, kept])
    values = wide.reindex(index=candidates, columns=order).to_numpy(dtype=np.float64)
    return Curves(tuple(seeds), tuple(kept), values.reshape(-1, len(seeds), len(kept)))


def spread(values: np.ndarray) -> np.ndarray:
    """The :data:`QUANTILES` ``[5, E]`` over candidates of ``values [P, E]``; NaN without any."""
    found = np.full((len(QUANTILES), values.shape[1]), math.nan)
    for epoch, column in enumerate(values.T):
        known = column[np.isfinite(column)]
        if len(known):
            found[:, epoch] = np.quantile(known, QUANTILES)
    return found
