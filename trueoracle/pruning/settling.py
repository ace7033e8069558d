"""Finds which of the offered groups can be cut, by trying them all in as few runs as possible."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import first_line
from trueoracle.networks.copying import copied, without_numbers
from trueoracle.networks.graph import Example, answer
from trueoracle.pruning.axes.counting import (
    Counts,
    choices,
    counted,
    counts_of,
    remembered,
    with_usual,
)
from trueoracle.pruning.axes.offers import Offers
from trueoracle.pruning.groups import Group, GroupMap
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.trial import OTHER_SHAPE, STOPS, Trial, answers_of

__all__ = ["settled"]


def settled(network: nn.Module, found: Offers, example: Example) -> GroupMap:
    """The offered groups that can be cut; the others are refused, each with its reason.

    Where a module keeps a number that has to change with the cut (its number of heads, say), the
    number becomes a place of the group. Where an axis is a product, so that there are several ways
    to cut it, the next way is tried once the first has failed.
    """
    result = GroupMap({}, dict(found.refused))
    ways = {
        name: [*dict.fromkeys(way for one in groups for way in (with_usual(network, one), one))]
        for name, groups in found.alternatives.items()
    }
    shapes: _Shapes | None = None
    sorters: list[_Sorter] = []
    reasons: dict[str, str] = {}
    while ways:
        heads = {name: groups.pop(0) for name, groups in ways.items()}
        passed = {name: group for name, group in heads.items() if group.filters > 1}
        result.groups.update({n: group for n, group in heads.items() if n not in passed})
        failed: dict[str, str] = {}
        if passed:
            if shapes is None:
                shapes, trial = _Shapes(network, example), Trial(network, example)
                sorters = [_Sorter(network, shapes.reason), _Sorter(network, trial.reason)]
            # Most failing groups stop the network from running, which shows without numbers, fast.
            passed, without = sorters[0].sort([*passed.values()])
            failed = {n: why for n in without if (why := shapes.with_numbers(heads[n]))}
            passed |= {name: heads[name] for name in without if name not in failed}
        if passed:
            passed, without = sorters[1].sort([*passed.values()], found.notes)
            failed |= without
        result.groups.update(passed)
        for name, reason in failed.items():
            note = f" ({found.notes[name]})" if name in found.notes else ""
            reasons.setdefault(name, reason + note)
        ways = {name: ways[name] for name in failed if ways[name]}
    for name, reason in reasons.items():
        if ":" in name and name not in result.groups:
            result.refuse([name], reason)
        elif name not in result.groups:
            layers = [part.module for part in found.alternatives[name][0].layers]
            taken = {part.module for group in result.groups.values() for part in group.layers}
            result.refuse([layer for layer in layers if layer not in taken], reason)
    order = {name: position for position, name in enumerate(found.alternatives)}
    groups = dict(sorted(result.groups.items(), key=lambda item: order[item[0]]))
    return GroupMap(groups, result.refused)


class _Shapes:
    """Tries whether a network runs without some of its filters, whatever numbers it gives."""

    def __init__(self, dense: nn.Module, example: Example) -> None:
        self._whole = dense, example
        given = pytree.tree_map(
            lambda one: one.to("meta") if isinstance(one, Tensor) else one, example
        )
        self._fastest = without_numbers(dense), given
        try:
            self._shapes = self._run(*self._fastest)
        except Exception:  # the user's forward runs, and may need numbers
            self._fastest = self._whole
            self._shapes = self._run(copied(dense), example)

    def _run(self, network: nn.Module, example: Example) -> list[torch.Size]:
        with torch.no_grad():
            return [one.shape for one in answers_of(answer(network.eval(), example), example)]

    def reason(self, groups: Sequence[Group]) -> str:
        """Why groups cannot be cut together; empty where the network runs without half of each."""
        return self._reason(groups, *self._fastest)

    def with_numbers(self, group: Group) -> str:
        """The same for one group, tried with real numbers."""
        return self._reason([group], *self._whole)

    def _reason(self, groups: Sequence[Group], network: nn.Module, example: Example) -> str:
        kept = {group.name: range(group.filters // 2) for group in groups}
        try:
            shapes = self._run(prune(network, groups, kept, is_shared=True), example)
        except Exception as error:  # the user's forward runs: anything can come out
            return STOPS + first_line(error)
        return "" if shapes == self._shapes else OTHER_SHAPE


class _Sorter:
    """Sorts groups into those that can be cut and those that cannot, by why they cannot.

    ``reason`` returns why several groups cannot be cut together; empty where they can.
    """

    def __init__(self, network: nn.Module, reason: Callable[[Sequence[Group]], str]) -> None:
        self._network, self._reason = network, reason
        self._counts: list[Counts] = []  # the numbers that a group was found to need
        self._in_vain: set[Counts] = set()  # offered numbers of which no choice helped a group
        self._ways: dict[Group, Group] = {}  # each group with the numbers that it needs

    def sort(
        self, groups: Sequence[Group], doubted: Collection[str] = ()
    ) -> tuple[dict[str, Group], dict[str, str]]:
        """The groups that can be cut, with the numbers that have to change, and why others cannot.

        Both are by name. A wrong cut can be hidden by the cuts of later layers, so the ``doubted``
        groups, which fail more often, are tried once more with the rest of the network whole.
        """
        doubtful = [group for group in groups if group.name in doubted]
        plain = [group for group in groups if group.name not in doubted]
        sets = [groups, doubtful] if doubtful and plain else [groups]
        if not any(map(self._reason, sets)):  # most often
            return {group.name: group for group in groups}, {}
        passed: dict[str, Group] = {}
        failed: dict[str, str] = {}
        for some in [*self._sorted_out(plain), *self._sorted_out(doubtful)]:
            fine, without = self._settle(some)
            passed |= fine
            failed |= without
        return passed, failed

    def _sorted_out(self, groups: Sequence[Group]) -> list[Sequence[Group]]:
        """Sets of groups to try together: those likely to pass, and each kind likely to fail.

        Networks repeat their blocks, so the first group of a kind is tried for all of them, and the
        numbers that it needs (fewer heads, say) are then known for the others.
        """
        kinds: dict[object, list[Group]] = {}
        for group in groups:
            kinds.setdefault(self._kind(group), []).append(group)
        if 2 * len(kinds) > len(groups):
            return [groups] if groups else []
        hopeful: list[Group] = []
        apart: list[Sequence[Group]] = []
        for alike in kinds.values():
            if self._reason(alike[:1]):
                self._with_counts(alike[0])
                apart.append(alike)
            else:
                hopeful += alike
        return [some for some in (hopeful, *apart) if some]

    def _kind(self, group: Group) -> object:
        """What groups of repeated blocks have in common: their places and types of modules."""
        modules = dict(self._network.named_modules())
        return group.kind, frozenset(
            (type(modules.get(place.owner)), place.tensor.rpartition(".")[2], place.role)
            for place in group.places
        )

    def _settle(self, groups: Sequence[Group]) -> tuple[dict[str, Group], dict[str, str]]:
        """As :meth:`sort`: tries all groups together, and where that fails, each half of them."""
        reason = self._reason(groups)
        if reason and self._counts:
            known = [remembered(self._network, group, self._counts) for group in groups]
            if known != list(groups) and not self._reason(known):
                groups, reason = known, ""
        if not reason:
            return {group.name: group for group in groups}, {}
        if len(groups) == 1:
            way = self._with_counts(groups[0])
            return ({}, {groups[0].name: reason}) if way is None else ({way.name: way}, {})
        half = len(groups) // 2
        first, second = self._settle(groups[:half]), self._settle(groups[half:])
        return first[0] | second[0], first[1] | second[1]

    def _with_counts(self, group: Group) -> Group | None:
        """The group with the numbers that have to change; None where no choice of them helps."""
        offered = choices(self._network, group)
        if offered in self._in_vain or group in self._ways:
            return self._ways.get(group)
        for way in counted(self._network, group):
            if not self._reason([way]):
                self._counts.append(counts_of(self._network, way))
                self._ways[group] = way
                return way
        self._in_vain.add(offered)
        return None
