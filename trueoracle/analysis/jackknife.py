"""How far a statistic could be off: seeds, examples, filters, candidates, networks left out.

All intervals and tests have one design. A study's number depends on the retraining seeds, on the
examples that outcomes are measured on, on the filters that the dense network happens to have, on
the candidates where they are a sample, and on the dense networks where there are several. Each of
these that is a sample is left out unit by unit (Quenouille 1956; Tukey 1958; Efron & Stein 1981
show that the variance so found is too large rather than too small). The others are taken as given,
and :func:`in_words` names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trueoracle.analysis.interactions import interaction_variance
from trueoracle.analysis.numbers import many
from trueoracle.analysis.table import CandidateTable

__all__ = [
    "LEAST_NETWORKS",
    "NO_INTERVAL",
    "Interval",
    "Jackknife",
    "Leaves",
    "Part",
    "Statistic",
    "combine_leaves",
    "in_words",
    "jackknife",
    "leave_out",
]

MOST_FILTERS = 24
"""The most filters of a group that are left out, drawn at random where it has more.

The variance of so many is right to 30 %.
"""

CANDIDATE_GROUPS = 20
"""The number of groups by which sampled candidates are left out: a variance right to 32 %."""

MOST_UNDEFINED = 0.05
"""The largest share of units that may leave the statistic undefined; the other units then serve."""

LEAST_NETWORKS = 3
"""The fewest dense networks for which intervals allow for other ones. Leaving out one of two leaves
one, which says nothing: then networks are given, and their filters and seeds are left out."""

_NONE = 1e-12
_NEAREST_TO_ONE = 1 - 1e-6

LARGE = 0.95
"""The size of tau from which on the scale of atanh no longer stretches. Nearer to 1 the scale would
be so steep that a tau of 0.99 had no bounds where one filter is worth more than all others."""

Statistic = Callable[[CandidateTable], Sequence[float] | np.ndarray]
"""K values of a table."""


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``; both NaN where there is none."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Part:
    """The ``variance`` ``[K]`` that one kind of unit adds, with its degrees of freedom ``[K]``."""

    variance: np.ndarray
    freedom: np.ndarray


@dataclass(frozen=True, eq=False)
class Jackknife:
    """K statistics as found (``estimate`` ``[K]``), and the variance that each kind of unit adds.

    The keys of ``parts`` are ``"seeds"``, ``"examples"``, ``"filters"``, ``"candidates"`` and
    ``"networks"``.
    """

    estimate: np.ndarray
    parts: dict[str, Part]

    @property
    def counts_filters(self) -> bool:
        """Whether other filters are allowed for, by themselves or with their network."""
        return "filters" in self.parts or "networks" in self.parts

    def standard_error(self, place: int = 0) -> float:
        """NaN where nothing is left out, or leaving out changes nothing."""
        variance = float(sum(part.variance[place] for part in self.parts.values()))
        return math.sqrt(variance) if variance > _NONE**2 else math.nan

    def freedom(self, place: int = 0) -> float:
        """Degrees of freedom of all parts together (Satterthwaite 1946)."""
        squares = [(float(p.variance[place]), float(p.freedom[place])) for p in self.parts.values()]
        below = sum(v**2 / max(1.0, f) for v, f in squares)
        return sum(v for v, _ in squares) ** 2 / below if below > 0 else math.nan

    def interval(
        self,
        place: int = 0,
        *,
        confidence: float = 0.95,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> Interval:
        """The interval by Student's t around the estimate, within ``bounds``.

        NaN where nothing is left out, or leaving out changes nothing.
        """
        reach = self._reach(place, confidence)
        if math.isnan(reach):
            return NO_INTERVAL
        value = float(self.estimate[place])
        return Interval(max(bounds[0], value - reach), min(bounds[1], value + reach))

    def tau_interval(self, place: int = 0, *, confidence: float = 0.95) -> Interval:
        """The interval of a coefficient in [-1, 1], by Fisher's transformation atanh."""
        reach = self._reach(place, confidence)
        if math.isnan(reach):
            return NO_INTERVAL
        tau = min(_NEAREST_TO_ONE, max(-_NEAREST_TO_ONE, float(self.estimate[place])))
        centre, wide = math.atanh(tau), reach / _room(tau)
        return Interval(math.tanh(centre - wide), math.tanh(centre + wide))

    def p_value(self, place: int = 0) -> float:
        """The two-sided p-value of the statistic being zero, by Student's t.

        NaN where the interval is.
        """
        from scipy import stats

        error = self.standard_error(place)
        value = float(self.estimate[place])
        return float(2 * stats.t.sf(abs(value) / error, self.freedom(place)))

    def at_most(self, place: int = 0, *, confidence: float = 0.95) -> float:
        """The upper bound of the size of a coefficient in [-1, 1], with the given confidence.

        By two one-sided tests (Schuirmann 1987): the end farther from zero of the interval that
        leaves out twice as much (90 % for a confidence of 95 %).
        """
        around = self.tau_interval(place, confidence=2 * confidence - 1)
        return max(abs(around.low), abs(around.high))

    def equivalence_p_value(self, least: float, place: int = 0) -> float:
        """The p-value of a coefficient's size being ``least`` or more, the larger of two tests'."""
        from scipy import stats

        error, tau = self.standard_error(place), float(self.estimate[place])
        if math.isnan(error) or math.isnan(tau):
            return math.nan
        tau = min(_NEAREST_TO_ONE, abs(tau))
        apart = (math.atanh(least) - math.atanh(tau)) * _room(tau)
        return float(stats.t.sf(apart / error, self.freedom(place)))

    def _reach(self, place: int, confidence: float) -> float:
        from scipy import stats

        if math.isnan(float(self.estimate[place])):
            return math.nan
        quantile = float(stats.t.ppf((1 + confidence) / 2, self.freedom(place)))
        return self.standard_error(place) * quantile


def _room(tau: float) -> float:
    """How far tau moves with one unit of atanh."""
    return 1 - min(abs(tau), LARGE) ** 2


@dataclass(frozen=True, eq=False)
class Group:
    """The statistic ``[U, K]`` without each of U filters of a group of ``size``, all or some of it.

    ``by_chance`` is the same for filters that do nothing, which are the sample's columns shuffled
    among candidates. It is empty where candidates are no sample.
    """

    size: int
    without: np.ndarray
    by_chance: np.ndarray

    def variance(self) -> np.ndarray:
        """The variance that the filters add, less what filters that do nothing seem to add."""
        found = _variance(self.without, self.size)
        if len(self.by_chance):
            found = np.maximum(found - _variance(self.by_chance, self.size), 0.0)
        return found


@dataclass(frozen=True, eq=False)
class Leaves:
    """K statistics of one table, ``whole`` ``[K]`` and with a unit left out, ``[units, K]`` each.

    ``filters`` has what was left out of each group; ``beyond`` ``[K]`` is the variance of what
    filters do in pairs and more.
    """

    whole: np.ndarray
    seeds: np.ndarray
    blocks: np.ndarray
    filters: tuple[Group, ...]
    candidates: np.ndarray
    beyond: np.ndarray | None

    @property
    def size(self) -> int:
        """K."""
        return len(self.whole)


def leave_out(
    table: CandidateTable,
    statistic: Statistic,
    *,
    columns: np.ndarray | None = None,
    filters: bool = True,
    seeds: bool = True,
) -> Leaves:
    """A statistic of a table, whole and with each seed, block, filter and candidate left out.

    To leave out a filter is to compare only candidates that do the same with it. The statistic is
    then the mean of that of candidates that prune the filter and that of candidates that keep it,
    weighed by their numbers of pairs. What is left varies by the other filters alone, whether all
    ways to prune are listed or a sample of them.

    ``columns`` ``[K, P]`` are for statistics that are taus: the score of each (or the difference of
    two scores' standardised ranks), so that what filters do only together is allowed for. Where
    ``filters`` or ``seeds`` is False, these are taken as given.
    """

    def of(part: CandidateTable) -> np.ndarray:
        return np.asarray(statistic(part), dtype=np.float64)

    whole = of(table)
    nothing = np.empty((0, len(whole)))
    by_seed, by_block, by_candidate = nothing, nothing, nothing
    if table.seeds > 1 and seeds:
        every = np.arange(table.seeds)
        by_seed = np.array([of(table.take(seeds=np.delete(every, one))) for one in every])
    if table.blocks is not None and len(table.blocks) > 1:
        every = np.arange(len(table.blocks))
        by_block = np.array([of(table.take(blocks=np.delete(every, one))) for one in every])
    by_filter: list[Group] = []
    beyond = None
    if filters and table.pruned is not None:
        generator = np.random.Generator(np.random.PCG64(0))
        for size, which in _varying_filters(table):
            states = [table.pruned[:, one] for one in which]
            found = np.array([_by_state(table, one, of) for one in states])
            chance = nothing
            if table.sampled:
                shuffled = [_shuffled(table, one, generator) for one in states]
                chance = np.array([_by_state(table, one, of) for one in shuffled])
            by_filter.append(Group(size, found, chance))
        if by_filter and columns is not None:
            beyond = interaction_variance(table, columns, table.outcome)
    if table.sampled and len(table) > 2:
        number = min(CANDIDATE_GROUPS, len(table))
        group = np.empty(len(table), dtype=np.int64)
        generator = np.random.Generator(np.random.PCG64(0))
        group[table.order] = generator.permutation(len(table)) % number
        by_candidate = np.array(
            [of(table.take(np.flatnonzero(group != one))) for one in range(number)]
        )
    return Leaves(whole, by_seed, by_block, tuple(by_filter), by_candidate, beyond)


def _varying_filters(table: CandidateTable) -> list[tuple[int, np.ndarray]]:
    """How many filters of each group some candidates prune and some keep, and these filters.

    At most :data:`MOST_FILTERS` are given.
    """
    if table.pruned is None:
        return []
    share = table.pruned.mean(axis=0)
    generator = np.random.Generator(np.random.PCG64(0))
    found = []
    for end, size in zip(np.cumsum(table.groups), table.groups, strict=True):
        columns = np.arange(end - size, end)
        columns = columns[(share[columns] > 0) & (share[columns] < 1)]
        if len(columns) < 3:
            continue
        some = columns
        if len(columns) > MOST_FILTERS:
            some = np.sort(generator.permutation(columns)[:MOST_FILTERS])
        found.append((len(columns), some))
    return found


def _shuffled(
    table: CandidateTable, state: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """A made-up filter that as many candidates prune, drawn along the table's own order."""
    made = np.empty_like(state)
    made[table.order] = state[table.order][generator.permutation(len(state))]
    return made


def _by_state(
    table: CandidateTable, state: np.ndarray, of: Callable[[CandidateTable], np.ndarray]
) -> np.ndarray:
    """The mean statistic of candidates that prune a filter and that keep it, weighed by pairs."""
    values, weights = [], []
    for pruned in (True, False):
        rows = np.flatnonzero(state == pruned)
        if len(rows) > 1:
            values.append(of(table.take(rows)))
            weights.append(len(rows) * (len(rows) - 1) / 2)
    if not values:  # there are two candidates, one in each state
        return np.full_like(of(table), np.nan)
    found = np.array(values)
    weight = np.array(weights)[:, None] * np.isfinite(found)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = (weight * np.nan_to_num(found)).sum(axis=0) / weight.sum(axis=0)
    return mean


def combine_leaves(
    leaves: Sequence[Leaves],
    *,
    weights: Sequence[float] | None = None,
    networks: Sequence[Hashable] | None = None,
    layers: Sequence[Hashable] | None = None,
    families: Sequence[Hashable] | None = None,
) -> Jackknife:
    """The weighted sum of K statistics over tables, with the variance of that sum.

    ``weights`` sum to 1, and the sum is a mean (the plain one by default); where they sum to 0, it
    is the difference of two means. ``networks`` names the dense network of each table (by default
    each has its own), ``layers`` what is pruned in it. Tables of one network and layer share their
    filters, which are left out of all of these tables at once; all tables share their seeds and
    their examples. From :data:`LEAST_NETWORKS` dense networks on, whole networks are left out
    instead of seeds and filters, since the scatter of networks includes theirs. ``families`` groups
    dense networks that are meant to differ: networks are then left out within their family, where
    each has two or more.
    """
    count = len(leaves)
    share = np.full(count, 1 / count) if weights is None else np.array(weights, dtype=np.float64)
    networks = list(range(count)) if networks is None else list(networks)
    layers = [0] * count if layers is None else list(layers)
    whole = np.array([one.whole for one in leaves])
    estimate = share @ whole
    parts: dict[str, Part] = {}
    apart = list(dict.fromkeys(networks))
    if len(apart) >= LEAST_NETWORKS:
        parts["networks"] = _of_networks(whole, share, networks, families)
    else:
        if part := _shared([one.seeds for one in leaves], whole, share):
            parts["seeds"] = part
        if part := _of_filters(leaves, whole, share, networks, layers):
            parts["filters"] = part
        if part := _of_candidates(leaves, share):
            parts["candidates"] = part
    if part := _shared([one.blocks for one in leaves], whole, share):
        parts["examples"] = part
    return Jackknife(estimate, parts)


def jackknife(
    tables: Sequence[CandidateTable],
    statistic: Statistic,
    *,
    columns: Sequence[np.ndarray] | None = None,
    filters: bool = True,
    seeds: bool = True,
) -> Jackknife:
    """A statistic of one table, or its mean over tables of as many dense networks.

    ``columns`` are those of each table.
    """
    alone = len(tables) < LEAST_NETWORKS  # else whole networks are left out, not what is in them
    filters, seeds = filters and alone, seeds and alone
    each = [None] * len(tables) if columns is None else columns
    return combine_leaves(
        [
            leave_out(table, statistic, columns=own, filters=filters, seeds=seeds)
            for table, own in zip(tables, each, strict=True)
        ]
    )


def _variance(values: np.ndarray, of: int | None = None) -> np.ndarray:
    """Tukey's variance ``[K]`` of U units left out ``[U, K]``, which may stand for more units."""
    number = len(values)
    total = number if of is None else of
    finite = np.isfinite(values)
    counts = finite.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(finite, values, 0).sum(axis=0) / counts
        squares = np.where(finite, values - centre, 0) ** 2
        found: np.ndarray = (total - 1) * squares.sum(axis=0) / counts
    if number < total:  # some of them, whose own mean takes one degree of freedom
        found = found * number / (number - 1)
    return np.where(counts >= (1 - MOST_UNDEFINED) * number, found, math.nan)


def _shared(leaves: Sequence[np.ndarray], whole: np.ndarray, share: np.ndarray) -> Part | None:
    """The part of units that all tables have in common; None where some table has none."""
    units = {len(one) for one in leaves}
    if len(units) > 1 or units == {0}:
        return None
    left = np.einsum("t,tuk->uk", share, np.array(leaves))
    return _part(_variance(left), len(left) - 1)


def _of_networks(
    whole: np.ndarray,
    share: np.ndarray,
    networks: Sequence[Hashable],
    families: Sequence[Hashable] | None,
) -> Part:
    """Networks left out within their families; of fewer than two in some, within all of them."""
    stratum = dict(zip(networks, families or [0] * len(networks), strict=True))
    strata: dict[Hashable, list[Hashable]] = {}
    for name, family in stratum.items():
        strata.setdefault(family, []).append(name)
    if min(map(len, strata.values())) < 2:
        strata = {0: list(stratum)}
    variance, below = np.zeros(whole.shape[1]), np.zeros(whole.shape[1])
    for names in strata.values():
        inside = np.array([one in names for one in networks])
        weight, left = share[inside].sum(), []
        for name in names:
            rest = np.where(inside & np.array([one != name for one in networks]), share, 0.0)
            left.append(weight * (rest @ whole) / rest.sum())
        own = _variance(np.array(left))
        variance, below = variance + own, below + own**2 / (len(names) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(below > 0, variance**2 / below, 1.0)
    return Part(variance, freedom)


def _of_filters(
    leaves: Sequence[Leaves],
    whole: np.ndarray,
    share: np.ndarray,
    networks: Sequence[Hashable],
    layers: Sequence[Hashable],
) -> Part | None:
    if not all(one.filters for one in leaves):
        return None
    together: dict[tuple[Hashable, Hashable], list[int]] = {}
    for place, key in enumerate(zip(networks, layers, strict=True)):
        together.setdefault(key, []).append(place)
    variance = np.zeros(whole.shape[1])
    below = np.zeros(whole.shape[1])
    for places in together.values():
        shapes = [[(g.size, len(g.without)) for g in leaves[p].filters] for p in places]
        # Where tables list different filters, these are left out of one table at a time.
        sets = [places] if all(one == shapes[0] for one in shapes) else [[p] for p in places]
        for some in sets:
            for number in range(len(leaves[some[0]].filters)):
                groups = [leaves[p].filters[number] for p in some]
                own = Group(
                    groups[0].size,
                    _weighed([g.without for g in groups], whole[some], share[some]),
                    _weighed([g.by_chance for g in groups], whole[some], share[some]),
                ).variance()
                variance = variance + own
                below = below + own**2 / max(1, len(groups[0].without) - 1)
    beyond = [one.beyond for one in leaves if one.beyond is not None]
    if len(beyond) == len(leaves):
        # What filters do together in one table has no counterpart in another.
        variance = variance + (share**2) @ np.array(beyond)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(below > 0, variance**2 / below, 1.0)
    return Part(variance, freedom)


def _weighed(values: Sequence[np.ndarray], whole: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The changes of the mean over several tables that units left out of them ``[U, K]`` make."""
    made: np.ndarray = np.einsum("t,tuk->uk", weights, np.array(values) - whole[:, None])
    return made


def _part(variance: np.ndarray, freedom: int) -> Part:
    return Part(variance, np.full(len(variance), float(freedom)))


def _of_candidates(leaves: Sequence[Leaves], share: np.ndarray) -> Part | None:
    if not any(len(one.candidates) for one in leaves):
        return None
    variance = np.zeros(leaves[0].size)
    for one, weight in zip(leaves, share, strict=True):
        if len(one.candidates):
            variance = variance + weight**2 * _variance(one.candidates)
    return _part(variance, max(len(one.candidates) for one in leaves) - 1)


def in_words(
    tables: Sequence[CandidateTable],
    *,
    networks: int | None = None,
    filters: int | None = None,
) -> str:
    """What an interval counts, and what it takes as given, in words; empty where there is none.

    An example is ``"3 retraining seeds and 10 filters, given the dense network and the examples"``.
    ``networks`` and ``filters`` are the numbers of those, where tables share them.
    """
    first = tables[0]
    several = len(tables) if networks is None else networks
    drawn = several >= LEAST_NETWORKS
    counted, given = [], []
    if drawn:
        counted.append(many(several, "dense network"))
    else:
        seeds = _in_common(table.seeds for table in tables)
        if seeds > 1:
            counted.append(many(seeds, "retraining seed"))
        else:
            given.append("the retraining seed" if seeds else "the retraining seeds")
    blocks = _in_common(len(table.blocks or ()) for table in tables)
    if blocks > 1:
        counted.append(many(blocks, "block of examples", "blocks of examples"))
    if not drawn:
        known = filters
        if known is None:
            known = sum(size for table in tables for size, _ in _varying_filters(table))
        if first.sampled and len(first) > 2:
            known_ones = sum(int(np.isfinite(table.outcome).sum()) for table in tables)
            counted.append(f"{known_ones:,} sampled candidates")
        if known:
            counted.append(many(known, first.unit))
        given.insert(0, "the dense network" if several == 1 else f"these {several} dense networks")
        if not known:
            given.insert(1, f"{'its' if several == 1 else 'their'} {first.unit}s")
    if blocks < 2:
        given.append("the examples")
    if not counted:
        return ""
    return f"{_listed(counted)}, given {_listed(given)}" if given else _listed(counted)


def _in_common(numbers: Iterable[int]) -> int:
    """The number that all tables have; 0 where they differ, so that nothing is left out."""
    known = set(numbers)
    return known.pop() if len(known) == 1 else 0


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
