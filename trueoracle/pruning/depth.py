"""Candidates of whole layers: which of the layers of a network's stacks are taken out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from trueoracle.errors import InputError
from trueoracle.networks.graph import Example
from trueoracle.pruning.candidates import Surgery, Units
from trueoracle.pruning.cost import Cost, cost
from trueoracle.pruning.groups import Group
from trueoracle.pruning.listing import Listing
from trueoracle.pruning.parity import check_network, check_training
from trueoracle.pruning.stacks import Stack, StackMap, cut_layers, difference_without
from trueoracle.pruning.ways import Importance, Space, Way, match_layers, number_pruned

__all__ = ["DepthCandidates", "check_depth", "list_depth_candidates"]


@dataclass(frozen=True, eq=False)
class DepthCandidates:
    """P ways to take layers out of one network.

    ``ways`` has one entry per candidate: for each of the ``stacks``, the layers that are taken out.
    ``space`` is how many ways there are in all.
    """

    stacks: tuple[Stack, ...]
    ways: tuple[Way, ...]
    space: int

    @property
    def units(self) -> Units:
        return "layers"

    @property
    def groups(self) -> tuple[Group, ...]:
        return ()

    @property
    def weights(self) -> tuple[str, ...]:
        return ()

    @property
    def layers(self) -> Mapping[str, tuple[str, ...]]:
        return {stack.name: stack.layers for stack in self.stacks}

    @property
    def surgery(self) -> Surgery:
        return "exact"

    @property
    def is_uniform(self) -> bool:
        """False: layers of one stack may differ in ways that their shapes do not show."""
        return False

    def __len__(self) -> int:
        return len(self.ways)

    def __iter__(self) -> Iterator[Way]:
        return iter(self.ways)

    def take(self, indices: Sequence[int]) -> DepthCandidates:
        """Some of the candidates, as another ``DepthCandidates``."""
        return replace(self, ways=tuple(self.ways[i] for i in indices))

    @property
    def _space(self) -> Space:
        pools = {stack.name: len(stack.layers) for stack in self.stacks}
        return Space(pools, tuple(map(len, self.ways[0])), "layers")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One stable id per candidate: 16 hex digits of a hash of stacks and removed layers."""
        return tuple(
            hashlib.sha256(f"layers/{self._named(index)}".encode()).hexdigest()[:16]
            for index in range(len(self))
        )

    def _named(self, index: int) -> str:
        lengths = {stack.name: stack.length for stack in self.stacks}
        return ";".join(
            f"{name}/{lengths[name]}:{','.join(map(str, places))}"
            for name, places in self.pruned(index).items()
        )

    def pruned(self, index: int) -> dict[str, tuple[int, ...]]:
        """The places of the layers that one candidate takes out, by the name of their list."""
        return {
            stack.name: tuple(stack.places[one] for one in which)
            for stack, which in zip(self.stacks, self.ways[index], strict=True)
        }

    def gone(self, index: int) -> dict[str, tuple[Stack, tuple[int, ...]]]:
        """The layers that one candidate takes out, in the form that :func:`cut_layers` takes."""
        parts = zip(self.stacks, self.ways[index], strict=True)
        return {stack.name: (stack, which) for stack, which in parts}

    def prune(self, dense: nn.Module, index: int) -> nn.Module:
        """The pruned network of one candidate: a copy of ``dense`` with fewer layers."""
        return cut_layers(dense, self.gone(index))

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: per-layer ``importance``, by stack, summed over the removed layers.

        Raises :class:`InputError` where ``importance`` does not give one number per layer.
        """
        return self._space.sum_removed(self.ways, importance)

    def around(
        self, criterion: str, importance: Importance, count: int, share: float, seed: int
    ) -> DepthCandidates:
        return replace(self, ways=self._space.around(importance, count, share, seed))

    def costs(self, dense: nn.Module, given: Sequence[int] | Example) -> list[Cost]:
        """The cost of each pruned network, computed once for candidates that lose equal costs."""
        plain = [
            [cost(cut_layers(dense, {s.name: (s, (one,))}), given) for one in range(len(s.layers))]
            for s in self.stacks
        ]
        known: dict[tuple[Any, ...], Cost] = {}
        found = []
        for index, one in enumerate(self.ways):
            alike = tuple(
                tuple(sorted((own[i].parameters, own[i].macs) for i in which))
                for own, which in zip(plain, one, strict=True)
            )
            if alike not in known:
                known[alike] = cost(self.prune(dense, index), given)
            found.append(known[alike])
        return found

    def listing(self) -> Listing:
        """The layers by stack, and the positions in these lists that each candidate removes."""
        names = [stack.name for stack in self.stacks]
        entries = [dict(zip(names, one, strict=True)) for one in self.ways]
        return Listing(_header(self.stacks), tuple(entries))


def _header(stacks: Sequence[Stack]) -> dict[str, Any]:
    return {"kind": "depth", "layers": {stack.name: list(stack.layers) for stack in stacks}}


def list_depth_candidates(
    available: StackMap,
    ratios: Mapping[str, float | str],
    *,
    count: int | Literal["all"] | Path = "all",
    seed: int = 0,
) -> DepthCandidates:
    """List the ways to take layers out.

    ``ratios`` maps layer names, patterns (``model.layers.*``) or the names of stacks to the share
    of the named layers that is taken out; all layers of one stack have the same ratio. ``count``
    and ``seed`` are those of :func:`trueoracle.pruning.candidates.list_candidates`, and the same
    errors are raised.
    """
    stack_of = {path: stack for stack in available.stacks.values() for path in stack.layers}
    chosen: dict[str, tuple[Any, list[str]]] = {}
    for pattern, ratio in ratios.items():
        asked = f"{pattern}.*" if pattern in available.stacks else pattern
        for path in match_layers(stack_of, available.refused, {asked: ratio}):
            name = stack_of[path].name
            known, own = chosen.setdefault(name, (ratio, []))
            if known != ratio or path in own:
                raise InputError(
                    f"pruning.layers: {path!r} is named by more than one pattern"
                    if path in own
                    else f"pruning.layers: the layers of {name} are given different ratios, "
                    f"{known} and {ratio}"
                )
            own.append(path)
    stacks, removed = [], []
    for name, (ratio, own) in chosen.items():
        stack = available.stacks[name]
        places = [
            place for path, place in zip(stack.layers, stack.places, strict=True) if path in own
        ]
        stacks.append(
            replace(stack, layers=tuple(p for p in stack.layers if p in own), places=tuple(places))
        )
        try:
            removed.append(number_pruned(ratio, len(own), "layers"))
        except InputError as error:
            raise InputError(f"pruning.layers: {name}: {error}") from error
    space = Space({stack.name: len(stack.layers) for stack in stacks}, tuple(removed), "layers")
    if isinstance(count, Path):
        ways = space.read(count, _header(stacks))
    else:
        ways = space.choose(count, seed)
    return DepthCandidates(tuple(stacks), ways, space.size)


def check_depth(dense: nn.Module, candidates: DepthCandidates, example: Example) -> None:
    """Check that taking layers out equals bypassing them, and that the pruned networks train.

    ``example`` is a batch of at least two items. The first, middle and last candidate are tried.
    Raises :class:`InputError`, also where the dense network itself does not run or train.
    """
    check_network(dense, example)
    check_training(dense, example)
    for index in sorted({0, len(candidates) // 2, len(candidates) - 1}):
        gone = candidates.gone(index)
        layers = ", ".join(s.layers[one] for s, which in gone.values() for one in which)
        if reason := difference_without(dense, gone, example):
            raise InputError(f"{layers} cannot be taken out together: {reason}")
        check_training(candidates.prune(dense, index), example)
