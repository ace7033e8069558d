"""Removing filters physically: the pruned network is smaller, not masked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.pruning.groups import Group, Reader

__all__ = ["Kept", "l1_survivors", "prune"]

Kept = Mapping[str, Sequence[int] | np.ndarray]
"""For every pruned group's name, the indices of the kept filters, ascending."""


def prune(
    dense: nn.Module, groups: Sequence[Group], kept: Kept, read: Kept | None = None
) -> nn.Module:
    """A copy of ``dense`` with only the ``kept`` filters of each group.

    The layer's own weights are cut to ``kept``; the norms and consumers to the channels ``read``.
    Left out, ``read`` is ``kept``: exact surgery, which computes the same function as zeroing the
    channels (``masks.masked``). The paper's released code instead lets ``read`` be the survivors
    of one L1 pass, whatever the candidate keeps (``l1_survivors``).
    """
    network = copy.deepcopy(dense)
    modules = dict(network.named_modules())
    with torch.no_grad():
        for group in groups:
            own = torch.as_tensor(np.asarray(kept[group.name]))
            channels = own if read is None else torch.as_tensor(np.asarray(read[group.name]))
            _cut_outputs(modules[group.name], own)
            for norm in group.norms:
                _cut_norm(modules[norm.module], inputs_of(norm, channels))
            for consumer in group.consumers:
                _cut_inputs(modules[consumer.module], inputs_of(consumer, channels))
    return network


def l1_survivors(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> dict[str, np.ndarray]:
    """The filters ``[K]`` of largest mean |w| in each group, as many as ``kept`` has, ascending.

    The L1 pass of the paper's released code, which decides there what following layers read.
    """
    survivors = {}
    for group in groups:
        weight = dense.get_parameter(f"{group.name}.weight")
        magnitude = weight.detach().abs().flatten(1).mean(1).cpu().numpy()
        largest = np.argsort(-magnitude, kind="stable")[: len(kept[group.name])]
        survivors[group.name] = np.sort(largest)
    return survivors


def inputs_of(reader: Reader, channels: Tensor) -> Tensor:
    """The inputs of ``reader`` that belong to ``channels``: ``spread`` neighbours for each."""
    return (channels[:, None] * reader.spread + torch.arange(reader.spread)).flatten()


def _cut(module: nn.Module, name: str, axis: int, index: Tensor) -> None:
    """Keep ``index`` of one axis of a parameter or buffer, where the module has it."""
    value = getattr(module, name, None)
    if value is None:
        return
    cut = value.detach().index_select(axis, index.to(value.device)).clone()
    if isinstance(value, nn.Parameter):
        cut = nn.Parameter(cut, requires_grad=value.requires_grad)
    setattr(module, name, cut)


def _cut_outputs(layer: nn.Module, index: Tensor) -> None:
    _cut(layer, "weight", 0, index)
    _cut(layer, "bias", 0, index)
    setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", len(index))


def _cut_inputs(layer: nn.Module, index: Tensor) -> None:
    _cut(layer, "weight", 1, index)
    setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", len(index))


def _cut_norm(norm: nn.Module, index: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _cut(norm, name, 0, index)
    cast(nn.BatchNorm2d, norm).num_features = len(index)
