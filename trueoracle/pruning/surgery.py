"""Removing filters physically: the pruned network is smaller, not masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.networks.attention import Attention
from trueoracle.networks.copying import copied
from trueoracle.pruning.groups import Group, Part, filter_weights

__all__ = ["Kept", "l1_survivors", "prune"]

Kept = Mapping[str, Sequence[int] | np.ndarray]
"""For every pruned group's name, the indices of the kept filters, ascending."""


def prune(
    dense: nn.Module, groups: Sequence[Group], kept: Kept, read: Kept | None = None
) -> nn.Module:
    """A copy of ``dense`` with only the ``kept`` filters of each group.

    The layers' own weights are cut to ``kept``; the norms and consumers to the channels ``read``.
    Left out, ``read`` is ``kept``: exact surgery, which computes the same function as zeroing the
    channels (``masks.masked``). The paper's released code instead lets ``read`` be the survivors
    of one L1 pass, whatever the candidate keeps (``l1_survivors``).
    """
    network = copied(dense)
    cuts = _Cuts()
    for group in groups:
        own = torch.as_tensor(np.asarray(kept[group.name]))
        channels = own if read is None else torch.as_tensor(np.asarray(read[group.name]))
        cuts.add("outputs", group.layers, group.filters, own)
        cuts.add("channels", group.norms, group.filters, channels)
        cuts.add("inputs", group.consumers, group.filters, channels)
    with torch.no_grad():
        cuts.carry_out(network)
    return network


def l1_survivors(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> dict[str, np.ndarray]:
    """The filters ``[K]`` of largest mean |w| in each group, as many as ``kept`` has, ascending.

    The L1 pass of the paper's released code, which decides there what following layers read.
    """
    survivors = {}
    for group in groups:
        magnitude = filter_weights(dense, group).detach().abs().mean(1).cpu().numpy()
        largest = np.argsort(-magnitude, kind="stable")[: len(kept[group.name])]
        survivors[group.name] = np.sort(largest)
    return survivors


class _Cuts:
    """What is to be kept of each module, group by group: behind a concatenation, one layer reads
    the channels of several, and all of them are cut at once.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[tuple[Part, int, Tensor]]] = {}

    def add(self, side: str, parts: Sequence[Part], filters: int, kept: Tensor) -> None:
        for part in parts:
            self._found.setdefault((part.module, side), []).append((part, filters, kept))

    def carry_out(self, network: nn.Module) -> None:
        modules = dict(network.named_modules())
        for (name, side), cuts in self._found.items():
            if cuts[0][0].axis is not None:  # a parameter that is no layer's
                owner, _, parameter = name.rpartition(".")
                _cut(modules[owner], parameter, cuts[0][0].axis, cuts)
            elif side == "outputs":
                _cut_outputs(modules[name], cuts)
            elif side == "inputs":
                _cut_inputs(modules[name], cuts)
            else:
                _cut_channels(modules[name], cuts)


def _kept_entries(width: int, cuts: Sequence[tuple[Part, int, Tensor]]) -> Tensor:
    """What is kept of an axis: of each group's stretch its kept filters, of the rest everything."""
    pieces, end = [], 0
    for part, filters, kept in sorted(cuts, key=lambda cut: cut[0].offset):
        pieces += [torch.arange(end, part.offset), part.entries(kept)]
        end = part.offset + filters * part.spread
    return torch.cat([*pieces, torch.arange(end, width)])


def _cut(
    module: nn.Module, name: str, axis: int, cuts: Sequence[tuple[Part, int, Tensor]]
) -> int | None:
    """Cut one axis of a parameter or buffer, where the module has it; returns what is left."""
    value = getattr(module, name, None)
    if value is None:
        return None
    index = _kept_entries(value.shape[axis], cuts)
    cut = value.detach().index_select(axis, index.to(value.device)).clone()
    if isinstance(value, nn.Parameter):
        cut = nn.Parameter(cut, requires_grad=value.requires_grad)
    setattr(module, name, cut)
    return len(index)


def _cut_outputs(layer: nn.Module, cuts: Sequence[tuple[Part, int, Tensor]]) -> None:
    if isinstance(layer, Attention):
        _cut_heads(layer, cuts[0][2])
        return
    left = _cut(layer, "weight", 0, cuts)
    _cut(layer, "bias", 0, cuts)
    setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", left)


def _cut_heads(attention: Attention, kept: Tensor) -> None:
    """Rows of the input projection; the output projection's columns go as any consumer's."""
    rows = Part("", spread=attention.head_dim)
    width = attention.heads * attention.head_dim
    index = torch.cat([third * width + rows.entries(kept) for third in range(3)])
    for name in ("in_proj_weight", "in_proj_bias"):
        value = cast(nn.Parameter, getattr(attention, name))
        cut = value.detach().index_select(0, index.to(value.device)).clone()
        setattr(attention, name, nn.Parameter(cut, requires_grad=value.requires_grad))
    attention.heads = len(kept)


def _cut_inputs(layer: nn.Module, cuts: Sequence[tuple[Part, int, Tensor]]) -> None:
    if isinstance(layer, Attention):
        _cut(layer, "in_proj_weight", 1, cuts)
        return
    left = _cut(layer, "weight", 1, cuts)
    setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", left)


def _cut_channels(module: nn.Module, cuts: Sequence[tuple[Part, int, Tensor]]) -> None:
    """Cut what has one entry a channel: a norm, a depthwise convolution, a PReLU."""
    left = None
    for name in ("weight", "bias", "running_mean", "running_var"):
        found = _cut(module, name, 0, cuts)
        left = left if found is None else found
    if left is None:  # a norm without parameters of its own
        left = len(_kept_entries(_width(module), cuts))
    if isinstance(module, nn.Conv2d):
        module.in_channels = module.out_channels = module.groups = left
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (left,)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = left
    else:
        cast(nn.BatchNorm2d, module).num_features = left


def _width(norm: nn.Module) -> int:
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape[0]
    return cast(nn.BatchNorm2d, norm).num_features
