"""The ways to prune: how many there are, all of them in order, or a sample without repeats.

The ways to prune one group are the combinations of filters to remove, numbered in lexicographic
order; the ways to prune several groups are the mixed-radix numbers over theirs. So the whole space
is the integers below its size, and neither enumeration nor sampling ever builds it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from trueoracle.errors import InputError, shown, unknown
from trueoracle.networks.graph import Example
from trueoracle.pruning.cost import Cost, cost
from trueoracle.pruning.groups import Group, GroupMap
from trueoracle.pruning.listing import Listing, read_combinations, read_listing
from trueoracle.pruning.surgery import l1_survivors, prune

__all__ = [
    "ENUMERATION_LIMIT",
    "CandidateList",
    "Candidates",
    "Importance",
    "Surgery",
    "Way",
    "list_candidates",
    "match_layers",
    "number_pruned",
]

Surgery = Literal["exact", "as-released"]
Way = tuple[tuple[int, ...], ...]
"""One way to prune: for each pruned group, the pruned filters, ascending."""

Importance = Mapping[str, Tensor | np.ndarray | list[float]]
"""What a criterion makes of each filter (by group) or weight (by layer)."""

ENUMERATION_LIMIT = 1_000_000


class CandidateList(Protocol):
    """P ways to prune one network: what the stages of a study and criteria use of them.

    Either whole filters are pruned, of ``groups``, or single weights, of the layers ``weights``;
    the other one is empty.
    """

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose filters are pruned."""

    @property
    def weights(self) -> tuple[str, ...]:
        """The layers of whose ``weight`` single numbers are pruned."""

    @property
    def surgery(self) -> Surgery:
        """How pruning is carried out."""

    @property
    def space(self) -> int | None:
        """How many ways there are in all; None where their number is beyond writing."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One stable id a candidate: 16 hex digits over all that tells it from others."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def take(self, indices: Sequence[int]) -> CandidateList:
        """Some of the candidates."""

    def pruned(self, index: int) -> Mapping[str, Any]:
        """What one candidate prunes, in values that JSON knows."""

    def prune(self, dense: nn.Module, index: int) -> nn.Module:
        """The pruned network of one candidate: a copy."""

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: the importance of what is pruned, summed."""

    def costs(self, dense: nn.Module, given: Sequence[int] | Example) -> list[Cost]:
        """The cost of each pruned network, for one image ``[C, H, W]``."""

    def listing(self) -> Listing:
        """What :func:`trueoracle.pruning.listing.write_listing` writes."""


def number_pruned(ratio: float, filters: int, units: str = "filters") -> int:
    """How many of ``filters`` a pruning ratio removes: the nearest whole number, halves up.

    The product is taken in decimal, as written: 0.7 of 10 is 7, 0.29 of 100 is 29. Raises
    :class:`InputError` where the ratio is outside (0, 1) or would remove nothing or everything.
    """
    if not 0 < ratio < 1:
        raise InputError(f"a pruning ratio lies between 0 and 1, got {ratio}")
    count = int((Decimal(str(ratio)) * filters).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    if not 0 < count < filters:
        what = "nothing" if count == 0 else "everything"
        raise InputError(f"a pruning ratio of {ratio} would remove {what} of {filters} {units}")
    return count


def space_size(filters: Sequence[int], pruned: Sequence[int]) -> int:
    """The number of ways to remove ``pruned[g]`` of ``filters[g]`` filters in every group."""
    return math.prod(math.comb(n, k) for n, k in zip(filters, pruned, strict=True))


def combination(number: int, n: int, k: int) -> tuple[int, ...]:
    """The ``number``-th (from 0, lexicographic) of the ``k``-subsets of 0 … n-1."""
    chosen: list[int] = []
    left = math.comb(n, k)  # subsets that go on from here, updated rather than computed anew
    for candidate in range(n):
        open_places, rest = k - len(chosen), n - candidate
        if open_places == 0:
            break
        starting_here = left * open_places // rest
        if number < starting_here:
            chosen.append(candidate)
            left = starting_here
        else:
            number -= starting_here
            left -= starting_here
    return tuple(chosen)


def way(number: int, filters: Sequence[int], pruned: Sequence[int]) -> Way:
    """The ``number``-th way to prune; the last group changes fastest."""
    parts = []
    for n, k in reversed(list(zip(filters, pruned, strict=True))):
        number, within = divmod(number, math.comb(n, k))
        parts.append(combination(within, n, k))
    return tuple(reversed(parts))


def sample(size: int, count: int, seed: int) -> list[int]:
    """``count`` distinct whole numbers below ``size`` (which may be huge), in the order drawn."""
    generator = random.Random(seed)
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn.setdefault(generator.randrange(size))
        if len(drawn) * 2 > size:  # few are left to hit: draw among those
            rest = [number for number in range(size) if number not in drawn]
            generator.shuffle(rest)
            drawn.update(dict.fromkeys(rest[: count - len(drawn)]))
    return list(drawn)


@dataclass(frozen=True, eq=False)
class Candidates:
    """P ways to remove filters of one network, with the surgery that carries them out.

    ``ways`` has one entry per candidate; ``groups`` are the pruned groups, in the order of each
    entry's parts. ``space`` is how many ways there are in all.
    """

    groups: tuple[Group, ...]
    ways: tuple[Way, ...]
    surgery: Surgery
    space: int

    @property
    def weights(self) -> tuple[str, ...]:
        """None: no single weights are pruned here."""
        return ()

    def __len__(self) -> int:
        return len(self.ways)

    def __iter__(self) -> Iterator[Way]:
        return iter(self.ways)

    def take(self, indices: Sequence[int]) -> Candidates:
        """Some of the candidates, as another ``Candidates``."""
        return replace(self, ways=tuple(self.ways[i] for i in indices))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One stable id a candidate: 16 hex digits over group names and pruned filters."""
        return tuple(self._id(w) for w in self.ways)

    def _id(self, one: Way) -> str:
        named = ";".join(
            f"{group.name}/{group.filters}:{','.join(map(str, pruned))}"
            for group, pruned in zip(self.groups, one, strict=True)
        )
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    def pruned(self, index: int) -> dict[str, tuple[int, ...]]:
        """The pruned filters of one candidate, by group name."""
        return dict(zip((g.name for g in self.groups), self.ways[index], strict=True))

    def kept(self, index: int) -> dict[str, np.ndarray]:
        """The kept filters of one candidate, ascending, by group name."""
        return {
            group.name: np.setdiff1d(np.arange(group.filters), pruned)
            for group, pruned in zip(self.groups, self.ways[index], strict=True)
        }

    def kept_filters(self, position: int) -> np.ndarray:
        """The kept filters ``[P, K]`` of all candidates, ascending, of the group at a position."""
        pruned = np.array([one[position] for one in self.ways])
        is_kept = np.ones((len(self), self.groups[position].filters), dtype=bool)
        np.put_along_axis(is_kept, pruned, False, axis=1)
        return np.nonzero(is_kept)[1].reshape(len(self), -1)

    def prune(self, dense: nn.Module, index: int) -> nn.Module:
        """The pruned network of one candidate: a smaller copy of ``dense``."""
        kept = self.kept(index)
        read = l1_survivors(dense, self.groups, kept) if self.surgery == "as-released" else None
        return prune(dense, self.groups, kept, read)

    def costs(self, dense: nn.Module, given: Sequence[int] | Example) -> list[Cost]:
        """The cost of each pruned network: the same for all, since all have equal shapes."""
        return [cost(self.prune(dense, 0), given)] * len(self)

    def listing(self) -> Listing:
        """The groups with their filters, and the pruned filters of each candidate."""
        header = _header(self.groups)
        return Listing(header, tuple(self.pruned(index) for index in range(len(self))))

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: per-filter ``importance`` ``[filters]`` summed over what is pruned.

        ``importance`` has an entry for each group, by its name. Raises :class:`InputError` where it
        does not give one number per filter.
        """
        scores = np.zeros(len(self))
        for position, group in enumerate(self.groups):
            given = importance.get(group.name)
            if isinstance(given, Tensor):
                given = given.detach().cpu().double().numpy()
            if given is None or np.shape(given) != (group.filters,):
                found = "none" if given is None else list(np.shape(given))
                raise InputError(
                    f"the importance of {group.name} is one number for each of its {group.filters} "
                    f"filters, got {found}"
                )
            filters = np.asarray(given, dtype=np.float64)
            scores += filters[np.array([w[position] for w in self.ways])].sum(axis=1)
        return scores


def list_candidates(
    available: GroupMap,
    ratios: Mapping[str, float],
    *,
    count: int | Literal["all"] | Path = "all",
    seed: int = 0,
    surgery: Surgery = "exact",
) -> Candidates:
    """List the candidates of a pruning.

    ``ratios`` maps layer names or patterns (``conv*``) to pruning ratios; any layer of a group
    stands for the group. ``count`` is ``"all"``
    for every way in lexicographic order, how many distinct ones to sample with ``seed``, or the
    file of a listing (``.json``, or a combination file of the paper's code, ``.pkl``), whose
    candidates are taken in its order. Raises :class:`InputError` for a
    pattern without a prunable layer, a ratio that removes nothing or everything, a space too large
    to enumerate or too small for the sample, and a listing that does not fit.
    """
    matched = _match_groups(available, ratios)
    groups = tuple(group for name, group in available.groups.items() if name in matched)
    if surgery == "as-released":
        _check_alone(groups)
    filters = [group.filters for group in groups]
    pruned = []
    for group in groups:
        try:
            pruned.append(number_pruned(matched[group.name], group.filters))
        except InputError as error:
            raise InputError(f"pruning.layers: {group.name}: {error}") from error
    space = space_size(filters, pruned)
    if isinstance(count, Path):
        if count.suffix == ".pkl":
            entries: Iterable[Any] = read_combinations(count, [group.name for group in groups])
        else:
            entries = read_listing(count, _header(groups))
        ways = _ways_of(entries, groups, pruned, count)
        return Candidates(groups, ways, surgery, space)
    if count == "all":
        if space > ENUMERATION_LIMIT:
            raise InputError(
                f"there are {_readable(space)} ways to prune {', '.join(matched)}, too many to "
                f"list (at most {ENUMERATION_LIMIT:,}): set pruning.candidates to a number to "
                "sample, such as 1000"
            )
        numbers: Sequence[int] = range(space)
    else:
        if count > min(space, ENUMERATION_LIMIT):
            raise InputError(
                f"pruning.candidates = {count:,}, but there are {_readable(space)} ways (at most "
                f"{ENUMERATION_LIMIT:,} are sampled): 'all' lists every one"
            )
        numbers = sample(space, count, seed)
    return Candidates(groups, tuple(way(i, filters, pruned) for i in numbers), surgery, space)


def _match_groups(available: GroupMap, ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratio of every group one of whose layers is named, or that is itself (LAYER:heads)."""
    group_of = {
        name: group
        for group in available.groups.values()
        for name in ([group.name] if ":" in group.name else [one.module for one in group.layers])
    }
    matched: dict[str, float] = {}
    for name, ratio in match_layers(group_of, available.refused, ratios).items():
        group = group_of[name].name
        if matched.setdefault(group, ratio) != ratio:
            raise InputError(
                f"pruning.layers: {group!r} and {name!r} lose the same filters, and are given "
                f"different ratios, {matched[group]} and {ratio}"
            )
    return matched


def _check_alone(groups: Sequence[Group]) -> None:
    """The released code cuts what follows one layer; it says nothing of layers that are coupled."""
    for group in groups:
        odd = len(group.layers) > 1 or any(
            part.offset or part.axis is not None for part in (*group.norms, *group.consumers)
        )
        if odd:
            others = [name for name in group.members if name != group.name]
            raise InputError(
                f"pruning.surgery = 'as-released' is of layers by themselves, and {group.name} "
                f"goes with {', '.join(others[:3])}: leave it out, or take surgery 'exact'"
            )


def _header(groups: Sequence[Group]) -> dict[str, Any]:
    return {"kind": "structured", "groups": {group.name: group.filters for group in groups}}


def _ways_of(
    entries: Iterable[Any], groups: Sequence[Group], pruned: Sequence[int], path: Path
) -> tuple[Way, ...]:
    """The ways that a listing's entries name, each of them checked."""
    places: dict[Way, int] = {}
    for place, entry in enumerate(entries, start=1):
        where = f"{path}: candidate {place}"
        if not isinstance(entry, dict) or set(entry) != {group.name for group in groups}:
            raise InputError(
                f"{where} names the pruned filters of {', '.join(g.name for g in groups)}, in an "
                f"object of lists; got {shown(entry)}"
            )
        parts = []
        for group, count in zip(groups, pruned, strict=True):
            given = entry[group.name]
            # A bool is an int to Python, and 1.0 equals 1.
            is_list = isinstance(given, list | tuple)
            if not is_list or any(type(filter_) is not int for filter_ in given):
                raise InputError(
                    f"{where}: {group.name} takes a list of filters, got {shown(given)}"
                )
            outside = [filter_ for filter_ in given if not 0 <= filter_ < group.filters]
            if outside:
                raise InputError(
                    f"{where}: {group.name} has filters 0 to {group.filters - 1}, "
                    f"got {shown(outside[0])}"
                )
            if len(set(given)) < len(given):
                raise InputError(f"{where}: {group.name} names a filter twice: {shown(given)}")
            if len(given) != count:
                # Whoever wrote the file may have rounded a ratio otherwise.
                hint = ""
                if 0 < len(given) < group.filters:
                    ratio = round(len(given) / group.filters, len(str(group.filters)))
                    hint = f": a ratio of {ratio} prunes {len(given)}"
                raise InputError(
                    f"{where} prunes {len(given)} filters of {group.name}, and pruning.layers "
                    f"{count} of {group.filters}{hint}"
                )
            parts.append(tuple(sorted(given)))
        way_ = tuple(parts)
        if way_ in places:
            raise InputError(f"{where} is the same as candidate {places[way_]}")
        places[way_] = place
    return tuple(places)


def match_layers(
    available: Collection[str], refused: Mapping[str, str], ratios: Mapping[str, float]
) -> dict[str, float]:
    """The ratio of every layer that a pattern of ``ratios`` names; each must name at least one.

    ``refused`` maps layers that cannot be pruned to the reason. A second kind of unit of a layer
    (``LAYER:heads``) is named by a pattern with a colon only: ``*`` is all layers. Raises :class:`InputError` for a
    pattern that names none, and for a layer that several patterns name.
    """
    matched: dict[str, float] = {}
    for pattern, ratio in ratios.items():
        hits = [
            name
            for name in available
            if name == pattern or ((":" in pattern or ":" not in name) and fnmatchcase(name, pattern))
        ]
        if not hits:
            raise _no_such_layer(available, refused, pattern)
        for name in hits:
            if name in matched:
                raise InputError(f"pruning.layers: {name!r} is named by more than one pattern")
            matched[name] = ratio
    return matched


def _no_such_layer(
    available: Collection[str], refused: Mapping[str, str], pattern: str
) -> InputError:
    reasons = {name: f"{name!r} cannot be pruned: {why}" for name, why in refused.items()}
    named = [line for name, line in reasons.items() if fnmatchcase(name, pattern)]
    if named:
        return InputError(f"pruning.layers: {named[0]}")
    if not available:
        why = "; ".join(reasons.values()) or "none"
        return InputError(f"pruning.layers: no layer can be pruned: {why}")
    return unknown("layer in pruning.layers", pattern, available)


def _readable(size: int) -> str:
    if size < 10**15:
        return f"{size:,}"
    exponent, fraction = divmod(math.log10(size), 1)  # of a whole number of any length
    return f"about {10**fraction:.1f}e{exponent:.0f}"
