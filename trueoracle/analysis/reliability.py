"""The noise ceiling: how well any criterion can do, as retraining twice differs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from trueoracle.analysis.bootstrap import NO_INTERVAL, Interval
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.numbers import finite_or_none

__all__ = ["Reliability", "noise_ceiling"]

MOST_SPLITS = 100
RESAMPLES = 200


@dataclass(frozen=True)
class Reliability:
    """How well retraining repeats itself.

    ``split_half`` is the mean tau between the outcomes of two halves of the seeds. ``reliability``
    is the correlation to be expected between the means over all seeds and over as many others, in
    [0, 1]. ``ceiling`` is the tau that the expected outcome of every candidate, the best criterion
    there can be, would have with the means over all seeds; ``interval`` is its 95 % interval where
    candidates are a sample. All are NaN for a single seed.
    """

    seeds: int
    split_half: float
    reliability: float
    ceiling: float
    interval: Interval

    def share(self, agreement: float) -> float:
        """A criterion's agreement as a share of the ceiling; NaN where there is none above zero."""
        return agreement / self.ceiling if self.ceiling > 0 else math.nan

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(
            {
                "seeds": self.seeds,
                "split_half": self.split_half,
                "reliability": self.reliability,
                "ceiling": self.ceiling,
                "ceiling_low": self.interval.low,
                "ceiling_high": self.interval.high,
            }
        )


def noise_ceiling(outcomes: np.ndarray, *, sampled: bool = False, seed: int = 0) -> Reliability:
    """The reliability of outcomes ``[P, S]``, candidates × retraining seeds.

    Tau between halves becomes a correlation by Greiner's relation r = sin(πτ/2), which holds for
    normal variables (Kruskal 1958, section 5); Spearman and Brown's formula (1910) takes it from
    half of the seeds to all, and its square root, the correlation of a measurement with what it
    measures, becomes a tau again. A negative correlation counts as none. Rows that are not finite
    in every seed are left out. Halves are all ways to take two disjoint ⌊S/2⌋ of the seeds, or 100
    of them at random.
    """
    rows = outcomes[np.isfinite(outcomes).all(axis=1)]
    rows = rows[np.lexsort(rows.T)]  # what is drawn does not depend on the order of candidates
    seeds = outcomes.shape[1]
    if seeds < 2:
        return Reliability(seeds, math.nan, math.nan, math.nan, NO_INTERVAL)
    generator = np.random.Generator(np.random.PCG64(seed))
    halves = _halves(seeds, generator)
    split_half, reliability, ceiling = _ceiling(rows, halves)
    interval = NO_INTERVAL
    if sampled and not math.isnan(ceiling):
        drawn = [
            _ceiling(rows[generator.integers(len(rows), size=len(rows))], halves)[2]
            for _ in range(RESAMPLES)
        ]
        found = np.array(drawn)[np.isfinite(drawn)]
        if len(found) >= 0.95 * RESAMPLES:
            interval = Interval(*map(float, np.quantile(found, [0.025, 0.975])))
    return Reliability(seeds, split_half, reliability, ceiling, interval)


def _ceiling(
    outcomes: np.ndarray, halves: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> tuple[float, float, float]:
    """Split-half tau, reliability and ceiling."""
    taus = [
        kendall(outcomes[:, list(one)].mean(axis=1), outcomes[:, list(other)].mean(axis=1)).value
        for one, other in halves
    ]
    split_half = float(np.mean(taus))
    if math.isnan(split_half):
        return split_half, math.nan, math.nan
    half = max(0.0, math.sin(math.pi * split_half / 2))
    length = outcomes.shape[1] / len(halves[0][0])
    reliability = length * half / (1 + (length - 1) * half)
    ceiling = 2 / math.pi * math.asin(math.sqrt(min(1.0, reliability)))
    return split_half, reliability, ceiling


def _halves(
    seeds: int, generator: np.random.Generator
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of disjoint halves of the seeds, each pair once."""
    size = seeds // 2
    pairs = math.comb(seeds, size) * math.comb(seeds - size, size) // 2
    if pairs <= MOST_SPLITS:
        return [
            (one, other)
            for one in itertools.combinations(range(seeds), size)
            for other in itertools.combinations(sorted(set(range(seeds)) - set(one)), size)
            if one < other
        ]
    shuffled = (tuple(map(int, generator.permutation(seeds))) for _ in range(MOST_SPLITS))
    return [(order[:size], order[size : 2 * size]) for order in shuffled]
