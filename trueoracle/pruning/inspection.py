"""Lists which parts of a network can be pruned, and what each filter and each layer costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.networks.copying import without_numbers
from trueoracle.networks.graph import Example
from trueoracle.pruning.cost import Cost, cost
from trueoracle.pruning.groups import Group
from trueoracle.pruning.stacks import Stack, cut_layers, find_stacks
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups

__all__ = ["InspectedGroup", "InspectedStack", "Inspection", "inspect_network"]


@dataclass(frozen=True)
class InspectedGroup:
    """A group, and what one of its filters costs: ``parameters``, and ``macs`` for one item.

    All filters of a group cost the same. Both costs are None where the group has only one filter,
    or where the network does not run with fewer.
    """

    group: Group
    parameters: int | None
    macs: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        group = self.group
        return {
            "name": group.name,
            "kind": group.kind,
            "filters": group.filters,
            "layers": [part.module for part in group.layers],
            "norms": [part.module for part in group.norms],
            "consumers": [part.module for part in group.consumers],
            "parameters_a_filter": self.parameters,
            "macs_a_filter": self.macs,
        }


@dataclass(frozen=True)
class InspectedStack:
    """A list of whole layers that can be taken out, and what each of them costs, in order."""

    stack: Stack
    parameters: tuple[int, ...]
    macs: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "name": self.stack.name,
            "layers": list(self.stack.layers),
            "parameters": list(self.parameters),
            "macs": list(self.macs),
        }


@dataclass(frozen=True)
class Inspection:
    """Which parts of a network can be pruned, in forward order, and why the rest cannot.

    ``refused`` gives a reason for each layer that is in no group, ``needed`` for each layer that
    cannot be taken out.
    """

    cost: Cost
    groups: tuple[InspectedGroup, ...]
    stacks: tuple[InspectedStack, ...]
    refused: dict[str, str]
    needed: dict[str, str]


def inspect_network(network: nn.Module, given: Sequence[int] | Example) -> Inspection:
    """Find the groups and the whole layers of ``network`` and count what they cost.

    ``given`` is the shape of its images ``[C, H, W]``, or an example batch of at least two items: a
    tensor, a tuple of its arguments, or a dictionary of its keyword arguments. Raises
    :class:`InputError` where the network does not accept this input or cannot be followed.
    """
    example: Any = given
    if not isinstance(given, Tensor | Mapping) and all(isinstance(n, int) for n in given):
        example = torch.rand(2, *given, generator=torch.Generator().manual_seed(0))
    found = find_groups(network, example)
    whole = cost(network, example)
    # Only sizes matter here, and cutting tensors without numbers takes no time.
    plain = without_numbers(network)
    inspected = []
    for group in found.groups.values():
        units = _units(network, plain, group, example, whole)
        inspected.append(InspectedGroup(group, *units))
    depth = find_stacks(network, example)
    stacks = tuple(_layers(network, stack, example, whole) for stack in depth.stacks.values())
    return Inspection(whole, tuple(inspected), stacks, found.refused, depth.refused)


def _layers(network: nn.Module, stack: Stack, example: Example, whole: Cost) -> InspectedStack:
    """What each layer of a stack costs: the parameters and MACs that are saved without it."""
    held = [*network.parameters(), *network.buffers()]  # which nothing here changes
    left = [
        cost(cut_layers(network, {stack.name: (stack, (index,))}, held), example)
        for index in range(len(stack.layers))
    ]
    return InspectedStack(
        stack,
        tuple(whole.parameters - one.parameters for one in left),
        tuple(whole.macs - one.macs for one in left),
    )


def _units(
    network: nn.Module, plain: nn.Module, group: Group, example: Example, whole: Cost
) -> tuple[int | None, int | None]:
    """What one filter of a group costs: the parameters and MACs that are saved without it."""
    for gone in dict.fromkeys((1, group.filters // 2)):  # some kernels take even sizes only
        kept = {group.name: range(gone, group.filters)}
        for dense in (plain, network):  # the user's forward may need numbers
            if group.filters > 1:
                with suppress(Exception):
                    left = cost(prune(dense, [group], kept), example)
                    lost = whole.parameters - left.parameters, whole.macs - left.macs
                    return lost[0] // gone, lost[1] // gone
    return None, None
