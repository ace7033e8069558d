"""What a group is: filters that can only go together, and every place where they occur."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "Group",
    "GroupMap",
    "Kind",
    "Part",
    "Place",
    "Role",
    "by_filter",
    "entries",
    "filter_weights",
    "is_of_layer",
    "layer_weights",
]

Role = Literal["writes", "carries", "reads", "counts", "mixes"]
"""What a place does with the filters that occur in it.

- ``writes``: weights of a layer that outputs the filters.
- ``carries``: a norm, a depthwise convolution or a parameter with an entry for each filter.
- ``reads``: a layer's input weights.
- ``counts``: a number that says how many filters there are.
- ``mixes``: a norm's statistics are taken over the filters; ``tensor`` is then the norm's path and
  ``axis`` an axis of the norm's input, counted from the last one.
"""

Kind = Literal["filters", "units", "heads", "key/value groups", "query heads"]
"""What the filters of a group are."""

_OF_LAYERS = {
    *("weight", "bias", "running_mean", "running_var"),
    *("in_proj_weight", "in_proj_bias", "num_features", "normalized_shape"),
    *("q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v", "kept_heads"),
}
"""Tensors and numbers that belong to their layer; any other is a member of a group by itself."""

_OF_RECURRENT = re.compile(r"(weight|bias)_(ih|hh)(_l\d+(_reverse)?)?")
"""The same for recurrent layers and cells; a projection (``weight_hr_l0``) stands by itself."""


@dataclass(frozen=True)
class Place:
    """Where a group's filters lie in a parameter or buffer, or in a number that counts them.

    ``tensor`` is the dotted name of that parameter, buffer or number. Along ``axis``, from
    ``offset`` on, there are ``outer`` blocks of all the filters; each block has ``inner``
    neighbouring entries per filter. A number (``axis`` is None) falls by ``outer · inner`` with
    each filter.
    """

    tensor: str
    axis: int | None = 0
    offset: int = 0
    outer: int = 1
    inner: int = 1
    role: Role = "writes"

    @property
    def owner(self) -> str:
        """The path of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]

    def entries(self, filters: Tensor, count: int) -> Tensor:
        """The entries of some ``filters`` ``[K]`` of a group of ``count``, filter by filter.

        Int64, ``[K · outer · inner]``.
        """
        return entries(filters, count, self.offset, self.outer, self.inner)


def entries(filters: Tensor, count: int, offset: int, outer: int, inner: int) -> Tensor:
    """Indices along an axis, as :class:`Place` describes them."""
    block = torch.arange(outer, device=filters.device)[:, None] * (count * inner)
    each = torch.arange(inner, device=filters.device)
    return (offset + filters[:, None, None] * inner + block + each).flatten()


@dataclass(frozen=True)
class Part:
    """Where a group's filters lie in one module.

    Filter i has ``spread`` entries from ``offset + i · spread`` on. After flattening, ``spread`` is
    H·W; after a concatenation, ``offset`` is the number of channels that come before. ``outer`` is
    how many such blocks of all filters follow one another. ``axis`` is given for a parameter that
    belongs to no layer, such as a position embedding; ``module`` is then the parameter's name.
    """

    module: str
    spread: int = 1
    offset: int = 0
    axis: int | None = None
    outer: int = 1

    def entries(self, filters: Tensor, count: int) -> Tensor:
        """The entries of some ``filters`` of ``count``, int64 ``[K · outer · spread]``."""
        return entries(filters, count, self.offset, self.outer, self.spread)

    def of_filters(self, values: Tensor, count: int, axis: int = 0) -> Tensor:
        """The filters' entries along an axis, as two axes ``[…, count, outer · spread, …]``."""
        index = self.entries(torch.arange(count, device=values.device), count)
        each: Tensor = values.index_select(axis, index).unflatten(axis, (count, -1))
        return each


@dataclass(frozen=True)
class Group:
    """Filters that can only go together, and every place where their indices occur.

    - ``name`` is the name of the group's first layer in forward order.
    - ``filters`` is how many filters there are to choose from; each of them may stand for several
      filters of a layer (``unit`` says so).
    - ``layers`` output the filters; where there are several layers, their outputs are added up.
    - ``norms`` have one entry per channel: norms, depthwise convolutions, parameters of channels.
    - ``consumers`` have one slice of input weights per channel.
    - ``kind`` is what a filter is: a filter of a convolution, a hidden unit of a linear layer, or a
      part of attention.

    Where heads share keys and values, a layer has two groups: its key/value groups, and its query
    heads (``LAYER:heads``), of which every key/value group loses the same ones.
    """

    name: str
    filters: int
    places: tuple[Place, ...]
    kind: Kind = "filters"

    @property
    def layers(self) -> tuple[Part, ...]:
        return self._parts("writes")

    @property
    def norms(self) -> tuple[Part, ...]:
        return self._parts("carries")

    @property
    def consumers(self) -> tuple[Part, ...]:
        return self._parts("reads")

    @property
    def unit(self) -> str:
        """What one filter stands for, in words; empty where it is one filter of each layer."""
        taken: dict[str, dict[str, list[Place]]] = {}
        for place in self.places:
            if place.role == "writes":
                by_tensor = taken.setdefault(_part(place).module, {})
                by_tensor.setdefault(place.tensor, []).append(place)
        shown = [
            _words(layer, next(iter(tensors.values())))
            for layer, tensors in taken.items()
            if any(place.inner * place.outer > 1 for place in next(iter(tensors.values())))
        ]
        return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")

    @property
    def members(self) -> tuple[str, ...]:
        """The names of all modules that lose something with a filter."""
        parts = (*self.layers, *self.norms, *self.consumers)
        return tuple(dict.fromkeys(part.module for part in parts))

    def _parts(self, role: Role) -> tuple[Part, ...]:
        """The places of a role as parts of modules; a bias or running mean is no separate part."""
        found: dict[Part, None] = {}
        for place in self.places:
            if place.role == role:
                found[_part(place)] = None
        parts = list(found)
        if role == "reads":
            return tuple(parts)
        first = {part.module: part for part in reversed(parts)}
        return tuple(part for part in parts if first[part.module] is part)


def _words(layer: str, places: Sequence[Place]) -> str:
    """How many filters of a layer are removed together, and how they lie."""
    count = sum(place.inner * place.outer for place in places)
    inner = {place.inner for place in places}
    if inner == {count}:
        return f"{count} neighbouring filters of {layer}"
    if inner == {1}:
        return f"{count} filters of {layer}, one of each of {count} blocks"
    return f"{count} filters of {layer}"


def is_of_layer(name: str) -> bool:
    """Whether a tensor or number of this name (the last of a path) belongs to a layer."""
    return name in _OF_LAYERS or _OF_RECURRENT.fullmatch(name) is not None


def _part(place: Place) -> Part:
    is_layers = is_of_layer(place.tensor.rpartition(".")[2]) and place.owner
    return Part(
        place.owner if is_layers else place.tensor,
        place.inner,
        place.offset,
        None if is_layers else place.axis,
        place.outer,
    )


@dataclass(frozen=True)
class GroupMap:
    """The prunable groups of a network, in forward order, and why other layers are refused."""

    groups: dict[str, Group] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, layers: Iterable[str], reason: str) -> None:
        """Note why layers that belong together cannot be pruned."""
        names = list(layers)
        for name in names:
            others = [other for other in names if other != name]
            shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            self.refused[name] = f"with {shown}: {reason}" if others else reason


def filter_weights(network: nn.Module, group: Group) -> Tensor:
    """The weights ``[filters, n]`` that make up each filter of a group, over all its layers.

    For attention these are a head's rows of the input projection.
    """
    parts = [by_filter(rows, weight) for rows, weight in layer_weights(network, group).values()]
    return torch.cat(parts, dim=1)


def layer_weights(
    network: nn.Module, group: Group
) -> dict[str, tuple[tuple[int, tuple[Place, ...]], Tensor]]:
    """The weights that make up a group's filters, by their names, and where the filters lie.

    Each value is a pair: the first argument of :func:`by_filter`, and the weight. Only weights of
    two axes or more are listed, so no biases.
    """
    places: dict[str, list[Place]] = {}
    for place in group.places:
        if place.role == "writes":
            places.setdefault(place.tensor, []).append(place)
    found: dict[str, tuple[tuple[int, tuple[Place, ...]], Tensor]] = {}
    for name, here in places.items():
        weight = network.get_parameter(name)
        if weight.ndim > 1:
            found[name] = ((group.filters, tuple(here)), weight)
    return found


def by_filter(rows: tuple[int, Sequence[Place]], values: Tensor) -> Tensor:
    """Rearrange numbers that are shaped like a layer's weights to ``[filters, n]``."""
    count, places = rows
    filters = torch.arange(count, device=values.device)
    parts = [
        values.movedim(place.axis or 0, 0)[place.entries(filters, count)].reshape(count, -1)
        for place in places
    ]
    return torch.cat(parts, dim=1)
