"""The ways to remove units: counts, enumerates and samples them.

Units (filters, heads, whole layers) lie in pools, and every way removes the same number of units
from a pool. The ways of one pool are the combinations of units to remove, numbered in lexicographic
order; the ways of several pools are numbered in mixed radix over those of each pool. So the space
is the integers below its size, and neither enumeration nor sampling ever builds it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from trueoracle.errors import InputError, shown, unknown
from trueoracle.pruning.listing import read_combinations, read_listing

__all__ = [
    "ENUMERATION_LIMIT",
    "TRIES",
    "Importance",
    "Space",
    "Way",
    "as_numbers",
    "match_layers",
    "moved",
    "number_pruned",
    "sample",
    "seed_of",
    "space_size",
    "too_few",
]

Way = tuple[tuple[int, ...], ...]
"""One way to prune: for each pool, the units that are removed, ascending."""

Importance = Mapping[str, Tensor | np.ndarray | list[float]]
"""What a criterion gives for each unit (by pool) or weight (by layer)."""

ENUMERATION_LIMIT = 1_000_000

TRIES = 1000
"""The most draws around a criterion's choice per wanted candidate; then :func:`too_few` holds."""


def number_pruned(ratio: float, count: int, units: str = "filters") -> int:
    """How many of ``count`` units a pruning ratio removes: the nearest whole number, halves up.

    The product is computed in decimal: 0.7 of 10 is 7, 0.29 of 100 is 29. Raises
    :class:`InputError` where the ratio is outside (0, 1) or would remove nothing or everything.
    """
    if not 0 < ratio < 1:
        raise InputError(f"a pruning ratio lies between 0 and 1, got {ratio}")
    removed = int((Decimal(str(ratio)) * count).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    if not 0 < removed < count:
        what = "nothing" if removed == 0 else "everything"
        raise InputError(f"a pruning ratio of {ratio} would remove {what} of {count} {units}")
    return removed


def space_size(sizes: Sequence[int], removed: Sequence[int]) -> int:
    """The number of ways to remove ``removed[p]`` of ``sizes[p]`` units in every pool."""
    return math.prod(math.comb(n, k) for n, k in zip(sizes, removed, strict=True))


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


def way(number: int, sizes: Sequence[int], removed: Sequence[int]) -> Way:
    """The ``number``-th way to prune; the last pool changes fastest."""
    parts = []
    for n, k in reversed(list(zip(sizes, removed, strict=True))):
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


def seed_of(seed: int, index: int, purpose: str) -> int:
    """A 64-bit number for one draw of a sample, unrelated to the numbers of other seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()[:8], "big")


def moved(scores: np.ndarray, share: float, keys: np.ndarray) -> np.ndarray:
    """``scores`` ``[n]``, of which a ``share`` have changed places at random.

    Each score takes part with probability ``share``; the scores that take part are permuted among
    themselves. ``keys`` ``[n]`` are 64-bit random numbers that decide both.
    """
    taking_part = np.flatnonzero(keys < np.uint64(min(share * 2.0**64, 2.0**64 - 2048)))
    order = taking_part[np.argsort(keys[taking_part], kind="stable")]
    result = scores.copy()
    result[taking_part] = scores[order]
    return result


def too_few(found: int, count: int, share: float) -> InputError:
    """The error for fewer different candidates around a criterion's choice than are wanted."""
    return InputError(
        f"pruning.share = {share} brings {found:,} different candidates around the criterion's "
        f"choice, and pruning.count is {count:,}: raise the share, or lower the count"
    )


def as_numbers(given: Tensor | np.ndarray | list[float] | None) -> np.ndarray | None:
    """The importance that a criterion gives for one pool or layer, as float64."""
    if given is None:
        return None
    if isinstance(given, Tensor):
        given = given.detach().cpu().double().numpy()
    return np.asarray(given, dtype=np.float64)


@dataclass(frozen=True)
class Space:
    """All ways to remove ``removed[p]`` of the units of each pool p.

    ``pools`` maps the name of each pool to its number of units; ``units`` is what they are called.
    """

    pools: Mapping[str, int]
    removed: tuple[int, ...]
    units: str = "filters"

    @property
    def size(self) -> int:
        """How many ways there are."""
        return space_size(list(self.pools.values()), self.removed)

    def choose(self, count: int | Literal["all"], seed: int) -> tuple[Way, ...]:
        """Every way in lexicographic order, or ``count`` distinct ones, drawn with ``seed``.

        Raises :class:`InputError` for a space too large to enumerate or too small for the sample.
        """
        if count == "all":
            if self.size > ENUMERATION_LIMIT:
                raise InputError(
                    f"there are {_readable(self.size)} ways to prune {', '.join(self.pools)}, too "
                    f"many to list (at most {ENUMERATION_LIMIT:,}): set pruning.candidates to a "
                    "number to sample, such as 1000"
                )
            numbers: Sequence[int] = range(self.size)
        else:
            if count > min(self.size, ENUMERATION_LIMIT):
                raise InputError(
                    f"{count:,} candidates are asked for, but there are {_readable(self.size)} "
                    f"ways (at most {ENUMERATION_LIMIT:,} are sampled): pruning.candidates = 'all' "
                    "lists every one"
                )
            numbers = sample(self.size, count, seed)
        return tuple(way(i, list(self.pools.values()), self.removed) for i in numbers)

    def around(
        self, importance: Importance, count: int, share: float, seed: int
    ) -> tuple[Way, ...]:
        """The way that removes the units of least importance, and ``count - 1`` others around it.

        For each of the others, a ``share`` of the importances of a pool change places at random
        (:func:`moved`). No two ways are equal. Where importances are equal, the first unit is
        removed. Raises :class:`InputError` where fewer than ``count`` different ways come out.
        """
        scores = [self._importance(importance, name) for name in self.pools]
        found: dict[Way, None] = {self._least(scores): None}
        draw = 0
        while len(found) < count:
            if draw == count * TRIES:
                raise too_few(len(found), count, share)
            keys = np.random.PCG64(seed_of(seed, draw, "around")).random_raw(
                sum(self.pools.values())
            )
            parts = np.split(keys, np.cumsum(list(self.pools.values()))[:-1])
            found.setdefault(
                self._least(
                    [moved(own, share, part) for own, part in zip(scores, parts, strict=True)]
                )
            )
            draw += 1
        return tuple(found)

    def _importance(self, importance: Importance, name: str) -> np.ndarray:
        """One number per unit of a pool; raises :class:`InputError` where that is not given.

        NaN sorts as the largest: the criterion would not remove a unit that it cannot judge.
        """
        given = as_numbers(importance.get(name))
        if given is None or given.shape != (self.pools[name],):
            found = "none" if given is None else list(given.shape)
            raise InputError(
                f"the importance of {name} is one number for each of its {self.pools[name]} "
                f"{self.units}, got {found}"
            )
        return given

    def _least(self, scores: Sequence[np.ndarray]) -> Way:
        return tuple(
            tuple(sorted(map(int, np.argsort(own, kind="stable")[:count])))
            for own, count in zip(scores, self.removed, strict=True)
        )

    def sum_removed(self, ways: Sequence[Way], importance: Importance) -> np.ndarray:
        """Scores ``[P]``: the importance of the units that each way removes, summed.

        Raises :class:`InputError` where ``importance`` does not give one number per unit.
        """
        scores = np.zeros(len(ways))
        for position, name in enumerate(self.pools):
            own = self._importance(importance, name)
            scores += own[np.array([one[position] for one in ways])].sum(axis=1)
        return scores

    def read(self, path: Path, header: Mapping[str, Any]) -> tuple[Way, ...]:
        """The ways that a listing (``.json``) or a combination file (``.pkl``) names, in order.

        Raises :class:`InputError` where the file lists anything that is no way of this space.
        """
        if path.suffix == ".pkl":
            entries: Iterable[Any] = read_combinations(path, list(self.pools))
        else:
            entries = read_listing(path, header)
        places: dict[Way, int] = {}
        for place, entry in enumerate(entries, start=1):
            where = f"{path}: candidate {place}"
            if not isinstance(entry, dict) or set(entry) != set(self.pools):
                raise InputError(
                    f"{where} names the pruned {self.units} of {', '.join(self.pools)}, in an "
                    f"object of lists; got {shown(entry)}"
                )
            parts = zip(self.pools.items(), self.removed, strict=True)
            read = tuple(self._part(entry[name], name, n, k, where) for (name, n), k in parts)
            if read in places:
                raise InputError(f"{where} is the same as candidate {places[read]}")
            places[read] = place
        return tuple(places)

    def _part(self, given: Any, name: str, size: int, count: int, where: str) -> tuple[int, ...]:
        """The units of one pool that a listing's entry removes, checked and in ascending order."""
        # A bool is an int to Python, and 1.0 equals 1.
        is_list = isinstance(given, list | tuple)
        if not is_list or any(type(one) is not int for one in given):
            raise InputError(f"{where}: {name} takes a list of {self.units}, got {shown(given)}")
        outside = [one for one in given if not 0 <= one < size]
        if outside:
            raise InputError(
                f"{where}: {name} has {self.units} 0 to {size - 1}, got {shown(outside[0])}"
            )
        if len(set(given)) < len(given):
            one = self.units.removesuffix("s")
            raise InputError(f"{where}: {name} names a {one} twice: {shown(given)}")
        if len(given) != count:
            # The file's author may have rounded the ratio differently.
            hint = ""
            if 0 < len(given) < size:
                ratio = round(len(given) / size, len(str(size)))
                hint = f": a ratio of {ratio} prunes {len(given)}"
            raise InputError(
                f"{where} prunes {len(given)} {self.units} of {name}, and pruning.layers "
                f"{count} of {size}{hint}"
            )
        return tuple(sorted(given))


def match_layers(
    available: Collection[str], refused: Mapping[str, str], ratios: Mapping[str, Any]
) -> dict[str, Any]:
    """The ratio of every layer that a pattern of ``ratios`` names; each must name at least one.

    A second kind of unit of a layer (``LAYER:heads``) is matched only by a pattern with a colon, so
    ``*`` means all layers. ``refused`` maps layers that cannot be pruned to the reason. Raises
    :class:`InputError` for a pattern that names none, and for a layer that several patterns name.
    """
    matched: dict[str, Any] = {}
    for pattern, ratio in ratios.items():
        hits = [name for name in available if name == pattern or _is_meant(name, pattern)]
        if not hits:
            raise _no_such_layer(available, refused, pattern)
        for name in hits:
            if name in matched:
                raise InputError(f"pruning.layers: {name!r} is named by more than one pattern")
            matched[name] = ratio
    return matched


def _is_meant(name: str, pattern: str) -> bool:
    return (":" in pattern or ":" not in name) and fnmatchcase(name, pattern)


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
