"""Which filters hang together: for every prunable layer, all that must go with its filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from trueoracle.networks.attention import Attention

__all__ = ["Group", "GroupMap", "Part", "by_filter", "filter_weights", "layer_weights"]


@dataclass(frozen=True)
class Part:
    """Where a group's filters lie in one module: ``spread`` neighbouring entries for each.

    Filter i has the entries from ``offset + i · spread`` on: behind flattening, ``spread`` is H·W;
    behind a concatenation, ``offset`` is the number of channels before. ``axis`` is that of a
    parameter which belongs to no layer (``module`` is then its name), such as a position embedding,
    or of what an operation puts out.
    """

    module: str
    spread: int = 1
    offset: int = 0
    axis: int | None = None

    def entries(self, filters: Tensor) -> Tensor:
        """The entries of ``filters`` ``[K]``, int64 ``[K · spread]``, in their order."""
        each = torch.arange(self.spread, device=filters.device)
        return (self.offset + filters[:, None] * self.spread + each).flatten()


@dataclass(frozen=True)
class Group:
    """Filters that can only go together.

    ``name`` is that of its first layer in forward order, ``filters`` how many there are. Filter i
    is filter i of each of the ``layers``, whose outputs are added up (most often there is one);
    the ``norms`` have one entry a channel (norms, depthwise convolutions, parameters of the
    channels), the ``consumers`` one slice of input weights. The filters of an attention are its
    heads.
    """

    name: str
    filters: int
    layers: tuple[Part, ...]
    norms: tuple[Part, ...] = ()
    consumers: tuple[Part, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """The names of all modules that lose something with a filter."""
        return tuple(part.module for part in (*self.layers, *self.norms, *self.consumers))


@dataclass(frozen=True)
class GroupMap:
    """The prunable groups of a network, in forward order, and why other layers are none."""

    groups: dict[str, Group] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, layers: Sequence[Part], reason: str) -> None:
        """Note why layers that hang together cannot be pruned."""
        names = [part.module for part in layers]
        for name in names:
            others = [other for other in names if other != name]
            shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            self.refused[name] = f"with {shown}: {reason}" if others else reason


def filter_weights(network: nn.Module, group: Group) -> Tensor:
    """The weights ``[filters, n]`` that make up each filter of a group, over all its layers.

    Of attention, a head's rows of the input projection.
    """
    parts = [by_filter(layer, weight) for layer, weight in layer_weights(network, group).values()]
    return torch.cat(parts, dim=1)


def layer_weights(network: nn.Module, group: Group) -> dict[str, tuple[nn.Module, Tensor]]:
    """The layers of a group and the weights that make up its filters, by the weights' names."""
    found = {}
    for part in group.layers:
        layer = network.get_submodule(part.module)
        name = "in_proj_weight" if isinstance(layer, Attention) else "weight"
        found[f"{part.module}.{name}"] = (layer, cast(Tensor, getattr(layer, name)))
    return found


def by_filter(layer: nn.Module, values: Tensor) -> Tensor:
    """Numbers shaped like a layer's weights, as ``[filters, n]``."""
    if isinstance(layer, Attention):
        of_heads: Tensor = values.unflatten(0, (3, layer.heads, layer.head_dim))
        return of_heads.transpose(0, 1).flatten(1)
    return values.flatten(1)
