"""Lists what of a network can be pruned, and what each filter costs."""

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
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups

__all__ = ["InspectedGroup", "Inspection", "inspect_network"]


@dataclass(frozen=True)
class InspectedGroup:
    """A group, and what one of its filters costs: ``parameters``, and ``macs`` for one item.

    All filters of a group cost the same. None where it has but one, or runs with no fewer.
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
class Inspection:
    """The prunable groups of a network in forward order, and why other layers are in none."""

    cost: Cost
    groups: tuple[InspectedGroup, ...]
    refused: dict[str, str]


def inspect_network(network: nn.Module, given: Sequence[int] | Example) -> Inspection:
    """Find the groups of ``network`` and count their cost.

    ``given`` is the shape of its images ``[C, H, W]``, or an example batch of at least two items: a
    tensor, a tuple of its arguments, or a dictionary of its keyword arguments. Raises
    :class:`InputError` where the network does not take that or cannot be followed.
    """
    example: Any = given
    if not isinstance(given, Tensor | Mapping) and all(isinstance(n, int) for n in given):
        example = torch.rand(2, *given, generator=torch.Generator().manual_seed(0))
    found = find_groups(network, example)
    whole = cost(network, example)
    # Only sizes count here, and tensors without numbers are cut in no time.
    plain = without_numbers(network)
    inspected = []
    for group in found.groups.values():
        units = _units(network, plain, group, example, whole)
        inspected.append(InspectedGroup(group, *units))
    return Inspection(whole, tuple(inspected), found.refused)


def _units(
    network: nn.Module, plain: nn.Module, group: Group, example: Example, whole: Cost
) -> tuple[int | None, int | None]:
    """What one filter of a group costs: the parameters and MACs that go with it."""
    for gone in dict.fromkeys((1, group.filters // 2)):  # some kernels take even sizes only
        kept = {group.name: range(gone, group.filters)}
        for dense in (plain, network):  # the user's forward may need numbers
            if group.filters > 1:
                with suppress(Exception):
                    left = cost(prune(dense, [group], kept), example)
                    lost = whole.parameters - left.parameters, whole.macs - left.macs
                    return lost[0] // gone, lost[1] // gone
    return None, None
