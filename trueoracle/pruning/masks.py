"""Pruning without surgery: the dense network, with pruned channels zeroed where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.pruning.groups import Group, Place
from trueoracle.pruning.surgery import Kept, prune

__all__ = ["masked"]


@contextmanager
def masked(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> Iterator[nn.Module]:
    """Within the block, ``dense`` computes what the network with only the ``kept`` filters would.

    The input weights of each consumer are zeroed where the pruned filters lie. Zeroing there, after
    norm and activation, is right even where a zero before them would not stay zero (a batch norm's
    bias, a sigmoid). A norm whose statistics mix the channels (a layer norm) uses the statistics of
    the kept channels only. When the block ends, the weights are restored.
    """
    before: list[tuple[Tensor, int, Tensor, Tensor]] = []
    handles = []
    try:
        with torch.no_grad():
            for group in groups:
                for place in group.places:
                    if place.role == "reads":
                        _zero(
                            dense, place, place.entries(_gone(group, kept), group.filters), before
                        )
        for name in _mixing(groups):
            norm = dense.get_submodule(name)
            hook = _MaskedNorm(norm, name, groups, kept)
            handles.append(norm.register_forward_hook(hook, with_kwargs=True))
        yield dense
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for value, axis, entries, old in reversed(before):
                value.index_copy_(axis, entries, old)


def _gone(group: Group, kept: Kept) -> Tensor:
    """The pruned filters."""
    goes = torch.ones(group.filters, dtype=torch.bool)
    goes[torch.as_tensor(np.asarray(kept[group.name]), dtype=torch.int64)] = False
    return goes.nonzero()[:, 0]


def _mixing(groups: Sequence[Group]) -> list[str]:
    places = (place for group in groups for place in group.places if place.role == "mixes")
    return list(dict.fromkeys(place.tensor for place in places))


def _zero(
    dense: nn.Module,
    place: Place,
    entries: Tensor,
    before: list[tuple[Tensor, int, Tensor, Tensor]],
) -> None:
    value: Tensor = getattr(dense.get_submodule(place.owner), place.tensor.rpartition(".")[2])
    axis, entries = place.axis or 0, entries.to(value.device)
    before.append((value, axis, entries, value.detach().index_select(axis, entries)))
    value.index_fill_(axis, entries, 0)


class _MaskedNorm:
    """A forward hook that normalises the kept channels only, as the pruned norm would.

    The other channels become zero. Where the pruned norm of a class that torch does not have is no
    such norm (it still divides by the number of channels that there were), this is the dense norm
    of the other channels at zero, with which the pruned network then does not agree.
    """

    def __init__(self, norm: nn.Module, name: str, groups: Sequence[Group], kept: Kept) -> None:
        self._gone: dict[int, list[Tensor]] = {}
        within = []
        for group in groups:
            gone = _gone(group, kept)
            own = []
            for place in group.places:
                if place.role == "mixes" and place.tensor == name:
                    entries = place.entries(gone, group.filters)
                    self._gone.setdefault(place.axis or 0, []).append(entries)
                elif place.role != "mixes" and place.tensor.startswith(f"{name}."):
                    own.append(replace(place, tensor=place.tensor.removeprefix(f"{name}.")))
            within.append(replace(group, places=tuple(own)))
        self._small = prune(norm, within, kept)

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        places = []
        for axis, gone in self._gone.items():
            stays = torch.ones(inputs.shape[axis], dtype=torch.bool)
            stays[torch.cat(gone)] = False
            places.append((axis, stays.nonzero()[:, 0].to(inputs.device)))
        small = _selected(inputs, places)
        result: Tensor = self._small(small)
        if not type(module).__module__.startswith("torch.nn"):
            zeroed = module.forward(_spread(small, inputs.shape, places))
            of_zeroed = _selected(zeroed, places)
            if not _alike(result, of_zeroed) and not self._has_any_width(module, inputs, places):
                result = of_zeroed
        return _spread(result, inputs.shape, places)

    def _has_any_width(self, module: nn.Module, inputs: Tensor, places: Places) -> bool:
        """Whether the dense and the pruned norm do the same to channels that are all alike.

        Alike ones have the same mean and the same mean square however many there are.
        """
        alike = torch.full_like(inputs, 1.5)
        dense: Tensor = module.forward(alike)
        return _alike(self._small(_selected(alike, places)), _selected(dense, places))


Places = Sequence[tuple[int, Tensor]]
"""By axis, the entries that stay."""


def _selected(values: Tensor, places: Places) -> Tensor:
    for axis, index in places:
        values = values.index_select(axis, index)
    return values


def _spread(values: Tensor, shape: Sequence[int], places: Places) -> Tensor:
    """The values of kept entries among zeros."""
    for axis, index in places:
        whole = list(values.shape)
        whole[axis] = shape[axis]
        values = values.new_zeros(whole).index_copy(axis, index, values)
    return values


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)
