"""The common interface of all lists of candidates, and the candidates that prune filters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import nn

from trueoracle.errors import InputError
from trueoracle.networks.graph import Example
from trueoracle.pruning.cost import Cost, cost
from trueoracle.pruning.groups import Group, GroupMap
from trueoracle.pruning.listing import Listing
from trueoracle.pruning.surgery import l1_survivors, prune
from trueoracle.pruning.ways import Importance, Space, Way, match_layers, number_pruned

__all__ = ["CandidateList", "Candidates", "Surgery", "Units", "list_candidates"]

Surgery = Literal["exact", "as-released"]

Units = Literal["filters", "weights", "layers"]
"""What is pruned: filters (heads and hidden units included), single weights, or whole layers."""


class CandidateList(Protocol):
    """P ways to prune one network, as the stages of a study and the criteria use them."""

    @property
    def units(self) -> Units:
        """What is pruned; ``groups``, ``weights`` or ``layers`` names the parts concerned."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose filters are pruned."""

    @property
    def weights(self) -> tuple[str, ...]:
        """The layers whose ``weight`` loses single numbers."""

    @property
    def layers(self) -> Mapping[str, tuple[str, ...]]:
        """The layers that can be taken out as a whole, by the name of their list."""

    @property
    def surgery(self) -> Surgery:
        """How pruning is carried out."""

    @property
    def space(self) -> int | None:
        """How many ways there are in all; None where the number is too long to write."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One stable id per candidate: 16 hex digits of a hash over what distinguishes it."""

    @property
    def is_uniform(self) -> bool:
        """Whether all pruned networks compute alike, so that they can be trained as one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def take(self, indices: Sequence[int]) -> CandidateList:
        """Some of the candidates."""

    def pruned(self, index: int) -> Mapping[str, Any]:
        """What one candidate prunes, in values that JSON can hold."""

    def prune(self, dense: nn.Module, index: int) -> nn.Module:
        """The pruned network of one candidate: a copy."""

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: the summed importance of what each candidate prunes."""

    def around(
        self, criterion: str, importance: Importance, count: int, share: float, seed: int
    ) -> CandidateList:
        """Draw ``count`` candidates of this pruning around what a criterion would prune.

        The first candidate prunes what has the least ``importance``; for each other candidate a
        ``share`` of the importances change places (:func:`trueoracle.pruning.ways.moved`).
        """

    def costs(self, dense: nn.Module, given: Sequence[int] | Example) -> list[Cost]:
        """The cost of each pruned network for one image ``[C, H, W]`` or one item of an example."""

    def listing(self) -> Listing:
        """What :func:`trueoracle.pruning.listing.write_listing` writes."""


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
    def units(self) -> Units:
        return "filters"

    @property
    def weights(self) -> tuple[str, ...]:
        return ()

    @property
    def layers(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    @property
    def is_uniform(self) -> bool:
        return True

    @property
    def _ways(self) -> Space:
        """The space that the candidates come from."""
        pools = {group.name: group.filters for group in self.groups}
        return Space(pools, tuple(map(len, self.ways[0])))

    def __len__(self) -> int:
        return len(self.ways)

    def __iter__(self) -> Iterator[Way]:
        return iter(self.ways)

    def take(self, indices: Sequence[int]) -> Candidates:
        """Some of the candidates, as another ``Candidates``."""
        return replace(self, ways=tuple(self.ways[i] for i in indices))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One stable id per candidate: 16 hex digits of a hash of groups and pruned filters."""
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
        """The cost of each pruned network: the same for all candidates, whose shapes are equal."""
        return [cost(self.prune(dense, 0), given)] * len(self)

    def listing(self) -> Listing:
        """The groups with their filters, and the pruned filters of each candidate."""
        header = _header(self.groups)
        return Listing(header, tuple(self.pruned(index) for index in range(len(self))))

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: per-filter ``importance`` ``[filters]`` summed over what is pruned.

        ``importance`` has one entry per group, by its name. Raises :class:`InputError` where an
        entry does not give one number per filter.
        """
        return self._ways.sum_removed(self.ways, importance)

    def around(
        self, criterion: str, importance: Importance, count: int, share: float, seed: int
    ) -> Candidates:
        return replace(self, ways=self._ways.around(importance, count, share, seed))


def list_candidates(
    available: GroupMap,
    ratios: Mapping[str, float | str],
    *,
    count: int | Literal["all"] | Path = "all",
    seed: int = 0,
    surgery: Surgery = "exact",
) -> Candidates:
    """List the candidates of a pruning.

    - ``ratios`` maps layer names or patterns to pruning ratios. A name stands for the whole group
      of that layer. A pattern (``model.layers.*.mlp.*``) names the groups whose first layer matches
      it; where no first layer does, the groups in which any layer matches.
    - ``count`` is ``"all"`` for every way in lexicographic order, a number of distinct ways to
      sample with ``seed``, or the file of a listing (``.json``, or a combination file of the
      paper's code, ``.pkl``), whose candidates are taken in the file's order.

    Raises :class:`InputError` for a pattern without a prunable layer, a ratio that removes nothing
    or everything, a space too large to enumerate or too small for the sample, and a listing that
    does not fit.
    """
    matched = _match_groups(available, ratios)
    groups = tuple(group for name, group in available.groups.items() if name in matched)
    if surgery == "as-released":
        _check_alone(groups)
    pruned = []
    for group in groups:
        try:
            pruned.append(number_pruned(matched[group.name], group.filters))
        except InputError as error:
            raise InputError(f"pruning.layers: {group.name}: {error}") from error
    space = Space({group.name: group.filters for group in groups}, tuple(pruned))
    if isinstance(count, Path):
        ways = space.read(count, _header(groups))
    else:
        ways = space.choose(count, seed)
    return Candidates(groups, ways, surgery, space.size)


def _match_groups(available: GroupMap, ratios: Mapping[str, float | str]) -> dict[str, Any]:
    """The ratio of every group that a pattern names by one of its layers or as LAYER:heads."""
    group_of = {
        name: group
        for group in available.groups.values()
        for name in ([group.name] if ":" in group.name else [one.module for one in group.layers])
    }
    matched: dict[str, Any] = {}
    named: set[str] = set()
    for pattern, ratio in ratios.items():
        known = group_of
        if pattern not in group_of and any(fnmatchcase(one, pattern) for one in available.groups):
            # A block's last layer belongs to the group of the whole residual sum, which begins in
            # another block: a pattern over the layers of one block does not mean that group.
            known = {name: group for name, group in group_of.items() if name == group.name}
        for name in match_layers(known, available.refused, {pattern: ratio}):
            if name in named:
                raise InputError(f"pruning.layers: {name!r} is named by more than one pattern")
            named.add(name)
            group = group_of[name].name
            if matched.setdefault(group, ratio) != ratio:
                raise InputError(
                    f"pruning.layers: {group!r} and {name!r} lose the same filters, and are given "
                    f"different ratios, {matched[group]} and {ratio}"
                )
    return matched


def _check_alone(groups: Sequence[Group]) -> None:
    """Refuse coupled layers: the released code only cuts what follows a single layer."""
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
