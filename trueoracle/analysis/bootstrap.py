"""How far a statistic could be off: seeds, dense networks and candidates drawn anew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trueoracle.analysis.numbers import many
from trueoracle.analysis.table import CandidateTable

__all__ = ["Bootstrap", "Interval", "Statistic", "bootstrap", "levels_in_words"]

RESAMPLES = 400
"""A standard error of so many is right to 4 %."""

_NONE = 1e-12
MOST_UNDEFINED = 0.05
"""Share of the resamples without a value up to which the others make an interval."""

Statistic = Callable[[CandidateTable, np.ndarray, np.ndarray], Sequence[float]]
"""Of a table, some rows ``[n]`` of it (repeated, maybe) and the mean outcome ``[n]`` of those."""


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``; both NaN where there is none."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """K statistics: ``estimate [K]`` as found, and ``drawn [R, K]`` with ``weights [R]``.

    ``freedom [K]`` are the degrees of freedom of their spread: two seeds have one.
    """

    estimate: np.ndarray
    drawn: np.ndarray
    weights: np.ndarray
    freedom: np.ndarray

    def interval(
        self,
        place: int = 0,
        *,
        confidence: float = 0.95,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> Interval:
        """The estimate and Student's t of its standard error to both sides, within ``bounds``.

        Not the quantiles of the resamples: they have fewer seeds than the estimate, so that their
        outcomes are noisier and their tau nearer to zero, and two or three seeds have hardly any
        quantiles. Student's t has the degrees of freedom that so few leave. NaN where nothing is
        drawn.
        """
        from scipy import stats

        estimate = float(self.estimate[place])
        quantile = float(stats.t.ppf((1 + confidence) / 2, self.freedom[place]))
        reach = self.standard_error(place) * quantile
        if math.isnan(reach):
            return NO_INTERVAL
        return Interval(max(bounds[0], estimate - reach), min(bounds[1], estimate + reach))

    def standard_error(self, place: int = 0) -> float:
        """The standard deviation of the resamples; NaN where nothing is drawn, or all are equal."""
        values, weights = self._found(place)
        error = math.sqrt(_variance(values, weights)) if len(values) else math.nan
        return error if error > _NONE else math.nan

    def p_value(self, place: int = 0) -> float:
        """Two-sided, of the statistic being zero, by Student's t; NaN where nothing is drawn."""
        from scipy import stats

        error, estimate = self.standard_error(place), float(self.estimate[place])
        if math.isnan(error):
            return error
        return float(2 * stats.t.sf(abs(estimate) / error, self.freedom[place]))

    def _found(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """The resamples with a value; none where too many have none."""
        nothing = np.empty(0)
        if not len(self.drawn) or math.isnan(self.estimate[place]):
            return nothing, nothing
        values = self.drawn[:, place]
        finite = np.isfinite(values)
        if self.weights[finite].sum() < 1 - MOST_UNDEFINED:
            return nothing, nothing
        return values[finite], self.weights[finite]


def bootstrap(
    tables: Sequence[CandidateTable],
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Draw dense networks, or of a single one its seeds, and candidates where they are a sample.

    ``tables`` has one table per dense network; the statistic is its mean over them. Several of them
    are drawn whole, with their seeds and candidates: how they scatter has in it what these do
    (Davison & Hinkley 1997, section 3.8). Networks and seeds, of which there are few, are drawn n-1
    at a time with repeats, so that their scatter is not underestimated (Rao & Wu 1988); candidates
    as many as there are. An exhaustive list of candidates is a whole population and stays as it is.
    Where the ways to draw seeds or networks are few, all are enumerated with their chances. Where
    there is nothing to draw, nothing is drawn.
    """
    values = _Values(statistic)
    estimate = values.mean([(table, None, np.arange(table.seeds)) for table in tables])
    draws = list(_draws(tables, resamples, seed))
    drawn = np.array([values.mean(draw) for _, draw in draws]).reshape(-1, len(estimate))
    weights = np.array([weight for weight, _ in draws])
    freedom = _freedom(tables, values, drawn, weights)
    return Bootstrap(estimate, drawn, weights, freedom)


def levels_in_words(tables: Sequence[CandidateTable], networks: int = 1) -> str:
    """What :func:`bootstrap` draws anew, and what the interval takes as given; empty: no interval.

    Such as ``"3 retraining seeds, given the dense network, its filters and the examples"``. One
    table may hold candidates of several dense ``networks``, which are given then.
    """
    if len(tables) > 1:
        return f"{many(len(tables), 'dense network')}, given the examples"
    (table,) = tables
    words = []
    if table.seeds > 1:
        words.append(many(table.seeds, "retraining seed"))
    if table.sampled and len(table) > 1:
        words.append(f"{len(table):,} sampled candidates")
    if not words:
        return ""
    given = (
        "the dense network, its filters"
        if networks == 1
        else f"these {networks} dense networks, their filters"
    )
    return f"{' and '.join(words)}, given {given} and the examples"


_Draw = list[tuple[CandidateTable, np.ndarray | None, np.ndarray]]
"""Tables with their rows (None: each of them once) and seeds."""


class _Values:
    """A statistic's values, each set of seeds of whole tables computed once."""

    def __init__(self, statistic: Statistic) -> None:
        self._statistic = statistic
        self._known: dict[tuple[int, tuple[int, ...]], Sequence[float]] = {}

    def mean(self, draw: _Draw) -> np.ndarray:
        """The mean ``[K]`` over the tables of a draw."""
        values = [self._of(table, rows, seeds) for table, rows, seeds in draw]
        mean: np.ndarray = np.array(values, dtype=np.float64).mean(axis=0)
        return mean

    def _of(
        self, table: CandidateTable, rows: np.ndarray | None, seeds: np.ndarray
    ) -> Sequence[float]:
        if rows is not None:
            return self._statistic(table, rows, table.mean_outcome(seeds)[rows])
        key = id(table), tuple(sorted(map(int, seeds)))
        if key not in self._known:
            every = np.arange(len(table))
            self._known[key] = self._statistic(table, every, table.mean_outcome(seeds))
        return self._known[key]


def _draws(
    tables: Sequence[CandidateTable], resamples: int, seed: int, *, candidates: bool = True
) -> Iterator[tuple[float, _Draw]]:
    """Chances and draws; without ``candidates`` only of seeds."""
    if len(tables) > 1:
        whole: list[_Draw] = [[(table, None, np.arange(table.seeds))] for table in tables]
        for chance, places in _few_drawn(len(tables), resamples, seed):
            yield chance, [one for place in places for one in whole[place]]
        return
    (table,) = tables
    if not (candidates and table.sampled):
        for chance, seeds in _few_drawn(table.seeds, resamples, seed):
            yield chance, [(table, None, np.array(seeds))]
        return
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(resamples):
        rows = table.order[generator.integers(len(table), size=len(table))]
        drawn = generator.integers(table.seeds, size=max(1, table.seeds - 1))
        yield 1 / resamples, [(table, rows, drawn)]


def _few_drawn(units: int, resamples: int, seed: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """All ways to draw n-1 of n units with repeats, or some; none of a single unit."""
    if units == 1:
        return
    at_once = units - 1
    if math.comb(units + at_once - 1, at_once) <= resamples:
        for drawn in itertools.combinations_with_replacement(range(units), at_once):
            yield _chance(drawn, units), drawn
        return
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(resamples):
        yield 1 / resamples, tuple(map(int, generator.integers(units, size=at_once)))


def _freedom(
    tables: Sequence[CandidateTable],
    values: _Values,
    drawn: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Degrees of freedom: of networks, or else of seeds and sampled candidates together.

    The latter by Satterthwaite's rule: what the seeds by themselves scatter has few of them, the
    rest as many as there are candidates.
    """
    count = drawn.shape[1]
    if len(tables) > 1:
        return np.full(count, len(tables) - 1.0)
    (table,) = tables
    if not table.sampled:
        return np.full(count, max(1.0, table.seeds - 1.0))
    freedom = np.full(count, max(1.0, len(table) - 1.0))
    if table.seeds == 1 or not len(drawn):
        return freedom
    alone = list(_draws(tables, RESAMPLES, 0, candidates=False))
    by_seeds = np.array([values.mean(draw) for _, draw in alone])
    chances = np.array([weight for weight, _ in alone])
    for place in range(count):
        total = _variance(drawn[:, place], weights)
        few = min(_variance(by_seeds[:, place], chances), total)
        if math.isfinite(total) and total > 0:
            parts = few**2 / (table.seeds - 1) + (total - few) ** 2 / freedom[place]
            freedom[place] = total**2 / parts
    return freedom


def _variance(values: np.ndarray, weights: np.ndarray) -> float:
    finite = np.isfinite(values)
    values, weights = values[finite], weights[finite]
    if not len(values):
        return math.nan
    return float(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights))


def _chance(drawn: tuple[int, ...], of: int) -> float:
    """The chance that drawing as many out of ``of`` with repeats gives these, in any order."""
    ways = math.factorial(len(drawn))
    for one in set(drawn):
        ways //= math.factorial(drawn.count(one))
    return float(ways / of ** len(drawn))
