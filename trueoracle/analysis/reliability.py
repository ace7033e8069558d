"""The noise ceiling: how well any criterion can do, given the noise of retraining and measuring."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trueoracle.analysis.correlation import kendalls
from trueoracle.analysis.jackknife import NO_INTERVAL, Interval, jackknife
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.table import CandidateTable, means

__all__ = [
    "LEAST_CEILING",
    "Reliability",
    "disattenuated",
    "mean_reliability",
    "noise_ceiling",
    "without_noise",
]

MOST_SPLITS = 30
QUANTILES = 128
"""The most pairs of halves of the seeds, and the quantiles that stand for a noise distribution."""

NODES = 64
"""The number of sizes of true differences at which their distribution is evaluated."""

LEAST_CEILING = 0.2
"""Below this ceiling, outcomes repeat themselves too little to estimate agreement without noise."""


@dataclass(frozen=True)
class Reliability:
    """How well outcomes repeat themselves.

    ``split_half`` is the mean tau between two halves of the retraining seeds and, where the table
    has ``blocks`` of examples, of the blocks too. ``ceiling`` is the tau of the best criterion
    there can be, each candidate's expected outcome, with the means over all seeds and blocks.
    ``reliability`` is the correlation, in [0, 1], that these means would have with the means of as
    many new seeds and blocks. ``interval`` is the ceiling's 95 % interval. ``blocks`` is 0 where
    the ceiling takes the examples as given. All are NaN where there are neither two seeds nor two
    blocks.
    """

    seeds: int
    blocks: int
    split_half: float
    reliability: float
    ceiling: float
    interval: Interval = NO_INTERVAL

    @property
    def over(self) -> str:
        """What the ceiling counts, in words."""
        words = [] if self.seeds < 2 else ["retraining"]
        words += [] if self.blocks < 2 else ["examples"]
        return " and ".join(words)

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(
            {
                "seeds": self.seeds,
                "blocks": self.blocks,
                "split_half": self.split_half,
                "reliability": self.reliability,
                "ceiling": self.ceiling,
                "ceiling_low": self.interval.low,
                "ceiling_high": self.interval.high,
            }
        )


def disattenuated(tau: float, ceiling: float) -> float:
    """The tau with the expected outcome, found from the tau with noisy mean outcomes.

    (2/π)·asin(sin(πτ/2) / sin(πc/2)), c being the ceiling: Spearman's correction (1904) by
    Greiner's relation. At most 1, also where noise lifts tau above the ceiling; NaN for ceilings
    below :data:`LEAST_CEILING`.
    """
    if not ceiling >= LEAST_CEILING or math.isnan(tau):
        return math.nan
    ratio = math.sin(math.pi * tau / 2) / math.sin(math.pi * ceiling / 2)
    return 2 / math.pi * math.asin(max(-1.0, min(1.0, ratio)))


def noise_ceiling(table: CandidateTable, interval: Interval = NO_INTERVAL) -> Reliability:
    """The reliability of a table's outcomes, over its seeds and blocks of examples.

    ``interval`` is the ceiling's, where :func:`without_noise` has found it.

    The difference of two candidates' outcomes is a true difference plus noise. The distribution of
    noise can be seen: what a candidate's outcome changes by with another seed, or on other blocks,
    is distributed as the difference of two candidates' noise. True differences are taken to be
    normal, with the spread that gives the tau found between halves. Means over all seeds and blocks
    have the noise of as many independent draws. Where noise is normal, this is Greiner's relation
    with Spearman and Brown's formula (1910). Where some retrainings collapse, or noise has heavy
    tails, means gain less, and the ceiling allows for that. Candidates without a finite outcome are
    left out, but for those that diverged, which count as the worst.
    """
    seeds = table.seeds
    blocks = 0 if table.blocks is None else len(table.blocks)
    blocks = blocks if blocks > 1 else 0
    if seeds < 2 and not blocks:
        return Reliability(seeds, blocks, math.nan, math.nan, math.nan)
    split_half, ceiling = _ceiling(table)
    reliability = math.sin(math.pi * ceiling / 2) ** 2
    return Reliability(seeds, blocks, split_half, reliability, ceiling, interval)


def mean_reliability(each: Sequence[Reliability], interval: Interval = NO_INTERVAL) -> Reliability:
    """The mean reliability over dense networks, with the ``interval`` of the mean ceiling."""
    split_half, reliability, ceiling = np.mean(
        [(one.split_half, one.reliability, one.ceiling) for one in each], axis=0
    )
    return Reliability(
        seeds=min(one.seeds for one in each),
        blocks=min(one.blocks for one in each),
        split_half=float(split_half),
        reliability=float(reliability),
        ceiling=float(ceiling),
        interval=interval,
    )


def without_noise(
    tables: Sequence[CandidateTable],
    taus: Callable[[CandidateTable], np.ndarray],
    columns: Sequence[np.ndarray],
) -> tuple[list[Interval], Interval]:
    """The 95 % intervals of K raw taus without noise (:func:`disattenuated`), and the ceiling's.

    The intervals include the noise of the ceiling, since units are left out of tau and ceiling
    together. ``taus`` gives the K taus of a table; ``columns`` ``[K, P]`` of each table are the
    standardised ranks of its scores. For several dense networks, the intervals are those of the
    mean. There are none where the ceiling is below :data:`LEAST_CEILING`.
    """
    number = len(columns[0])
    ceilings = [_ceiling(table)[1] for table in tables]
    ceiling = float(np.mean(ceilings))
    if math.isnan(ceiling):
        return [NO_INTERVAL] * number, NO_INTERVAL

    def ratios(one: CandidateTable) -> np.ndarray:
        own = _ceiling(one)[1]
        root = math.sin(math.pi * own / 2) if own >= LEAST_CEILING / 2 else math.nan
        return np.append(np.sin(np.pi / 2 * taus(one)) / root, own)

    # Scaled as far as what filters do in pairs moves a ratio.
    moved = []
    for own, column in zip(ceilings, columns, strict=True):
        factor = math.pi / 2 / max(math.sin(math.pi * own / 2), 1e-9)
        moved.append(np.vstack([column * factor, np.zeros_like(column[:1])]))
    # Where there are two seeds, leaving one out leaves no ceiling.
    found = jackknife(tables, ratios, columns=moved, seeds=min(t.seeds for t in tables) > 2)
    ends = found.tau_interval(number)
    of_ceiling = Interval(max(0.0, ends.low), max(0.0, ends.high))
    if ceiling < LEAST_CEILING:
        return [NO_INTERVAL] * number, of_ceiling
    return [_as_taus(found.interval(place)) for place in range(number)], of_ceiling


def _as_taus(correlations: Interval) -> Interval:
    if math.isnan(correlations.low):
        return NO_INTERVAL
    ends = (max(-1.0, min(1.0, end)) for end in (correlations.low, correlations.high))
    return Interval(*(2 / math.pi * math.asin(end) for end in ends))


def _ceiling(table: CandidateTable) -> tuple[float, float]:
    """Split-half tau and ceiling; NaN where there are no halves, or outcomes are all equal."""
    known = np.flatnonzero(np.isfinite(table.finished).all(axis=1))
    if len(known) < 2:
        return math.nan, math.nan
    table = table.take(known)
    if not np.ptp(table.finished, axis=0).any():
        return math.nan, math.nan
    halves = _halves(table)
    if not halves:
        return math.nan, math.nan
    split_half = float(np.mean([_surplus(one, other) for one, other in halves]))
    if split_half <= 0:
        return split_half, 0.0
    if not np.ptp(table.outcome):
        return split_half, math.nan
    of_half, of_all = _noise(table)
    return split_half, min(1.0, _expected(split_half, of_half, of_all) / _untied(table.outcome))


def _expected(split_half: float, of_half: np.ndarray, of_all: np.ndarray) -> float:
    """The tau of expected outcomes with the means over all, from the tau between halves.

    ``of_half`` and ``of_all`` are sorted sizes of the noise in two candidates' difference, where
    outcomes are means over half and over all of the seeds and blocks.
    """
    from scipy import stats

    nodes = stats.halfnorm.ppf((np.arange(NODES) + 0.5) / NODES)

    def right(spread: float, noise: np.ndarray) -> np.ndarray:
        """How often differences of ``spread`` times each node are ordered rightly, less wrongly."""
        below = np.searchsorted(noise, spread * nodes, side="left")
        upto = np.searchsorted(noise, spread * nodes, side="right")
        found: np.ndarray = (below + upto) / 2 / len(noise)
        return found

    low, high = -60.0, 60.0  # powers of two of a spread relative to the noise
    unit = float(of_half.mean())
    if unit == 0:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if float((right(unit * 2**middle, of_half) ** 2).mean()) < split_half:
            low = middle
        else:
            high = middle
    return float(right(unit * 2**high, of_all).mean())


def _halves(table: CandidateTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean outcomes ``[P]`` of pairs of disjoint halves, of the seeds and of the blocks."""
    splits = _seed_halves(table.seeds) if table.seeds > 1 else [((0,), (0,))]
    one, other = table.finished, table.finished
    if table.blocks is not None and len(table.blocks) > 1:
        one, other = _block_halves(table)
    elif table.seeds < 2:
        return []
    return [
        (means(first[:, list(mine)]), means(second[:, list(theirs)]))
        for mine, theirs in splits
        for first, second in ([(one, other)] if one is other else [(one, other), (other, one)])
    ]


def _block_halves(table: CandidateTable) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes ``[P, S]`` on every other block, and on those between."""
    blocks = np.arange(len(table.blocks or ()))
    return table.take(blocks=blocks[::2]).finished, table.take(blocks=blocks[1::2]).finished


def _seed_halves(seeds: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of disjoint halves of the seeds, each pair once; a random part of them if many."""
    size = seeds // 2
    pairs = math.comb(seeds, size) * math.comb(seeds - size, size) // 2
    if pairs <= MOST_SPLITS:
        return [
            (one, other)
            for one in itertools.combinations(range(seeds), size)
            for other in itertools.combinations(sorted(set(range(seeds)) - set(one)), size)
            if one < other
        ]
    generator = np.random.Generator(np.random.PCG64(0))
    shuffled = (tuple(map(int, generator.permutation(seeds))) for _ in range(MOST_SPLITS))
    return [(order[:size], order[size : 2 * size]) for order in shuffled]


def _noise(table: CandidateTable) -> tuple[np.ndarray, np.ndarray]:
    """Sorted sizes of the noise in two candidates' difference: for halves, and for all."""
    seeds = table.seeds
    values = table.finished
    quantum = _quantum(values)
    half, whole = np.zeros(1), np.zeros(1)
    if seeds > 1:
        pairs = itertools.combinations(range(seeds), 2)
        again = np.concatenate([_centred(values[:, one] - values[:, two]) for one, two in pairs])
        one_seed = _quantiles(again, quantum)
        half = _mean_of(one_seed, seeds // 2)
        whole = _mean_of(one_seed, seeds)
    if table.blocks is not None and len(table.blocks) > 1:
        one, other = _block_halves(table)
        apart = _centred((one - other).mean(axis=1))
        on_half = _quantiles(apart, 0.0)
        on_all = _mean_of(on_half, 2)
        if seeds > 1:
            # What seeds and examples do together is in both noises, and must count only once.
            both = [
                _centred((one - other)[:, a] - (one - other)[:, b])
                for a, b in itertools.combinations(range(seeds), 2)
            ]
            shared = np.mean([np.mean(x**2) for x in both]) / (4 * seeds)
            left = 1 - shared / max(float((on_all**2).mean()), 1e-300)
            on_all = on_all * math.sqrt(max(0.0, left))
        half, whole = _sum_of(half, on_half), _sum_of(whole, on_all)
    return np.sort(np.abs(half)), np.sort(np.abs(whole))


def _centred(differences: np.ndarray) -> np.ndarray:
    """Differences less what is common to all candidates, which does not order them."""
    made: np.ndarray = differences - np.median(differences)
    return made


def _quantiles(differences: np.ndarray, quantum: float) -> np.ndarray:
    """Quantiles of differences of either sign, with the noise that rounding to a quantum hides."""
    both = np.concatenate([differences, -differences])
    ends = (np.arange(QUANTILES) + 0.5) / QUANTILES
    found: np.ndarray = np.quantile(both, ends)
    if quantum:  # two roundings, uniform each: a triangle
        steps = np.arange(1, 8) / 8
        triangle = np.where(steps < 0.5, np.sqrt(2 * steps) - 1, 1 - np.sqrt(2 * (1 - steps)))
        found = _reduced((found[:, None] + quantum * triangle).ravel())
    return found


def _mean_of(quantiles: np.ndarray, count: int) -> np.ndarray:
    """The quantiles of a mean of independent draws."""
    total = quantiles
    for _ in range(count - 1):
        total = _sum_of(total, quantiles)
    made: np.ndarray = total / count
    return made


def _sum_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return _reduced((one[:, None] + other[None]).ravel())


def _reduced(values: np.ndarray) -> np.ndarray:
    """The values, or their quantiles where there are more values than quantiles."""
    if len(values) <= QUANTILES:
        return values
    reduced: np.ndarray = np.sort(values)[
        ((np.arange(QUANTILES) + 0.5) / QUANTILES * len(values)).astype(np.int64)
    ]
    return reduced


def _quantum(values: np.ndarray) -> float:
    """The step between outcomes that tie, such as that of one example; 0 where few tie."""
    levels = np.unique(values)
    if len(levels) < 2 or len(levels) > values.size / 2:
        return 0.0
    return float(np.diff(levels)[np.diff(levels) > 1e-9 * np.ptp(levels)].min())


def _surplus(x: np.ndarray, y: np.ndarray) -> float:
    """Concordant less discordant pairs, as a share of all: a tie counts for neither."""
    tau = float(kendalls(x[None], y)[0])
    return 0.0 if math.isnan(tau) else tau * _untied(x) * _untied(y)


def _untied(values: np.ndarray) -> float:
    """The root of the share of pairs that do not tie."""
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    number = float(len(values))
    return math.sqrt(1 - (counts * (counts - 1)).sum() / (number * (number - 1)))
