"""How far a coefficient could be off, had the candidates been others of their kind."""

from __future__ import annotations

import math

import numpy as np

from trueoracle.analysis.correlation import kendall

__all__ = ["kendall_interval"]

MOST_UNDEFINED = 0.05
"""Share of the resamples without a tau up to which the others make an interval."""


def kendall_interval(
    x: np.ndarray, y: np.ndarray, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A percentile bootstrap interval of Kendall's tau-b over the rows of ``x, y [n]``.

    Rows are candidates, drawn with repeats, so the interval speaks of other samples of candidates;
    neither of other retraining seeds nor of other dense networks. Rows that are not finite are left
    out, and resamples whose tau is undefined; NaN where tau itself is, or where more than 5 % of
    the resamples' are: the others would speak of no sample as it is drawn.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if math.isnan(kendall(x, y).value):
        return math.nan, math.nan
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.integers(len(x), size=(resamples, len(x)))
    taus = np.array([kendall(x[rows], y[rows]).value for rows in drawn])
    taus = taus[np.isfinite(taus)]
    if len(taus) < (1 - MOST_UNDEFINED) * resamples:
        return math.nan, math.nan
    low, high = np.quantile(taus, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
