"""Removes filters, so that the pruned network is physically smaller, not masked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from trueoracle.networks.attention import Attention
from trueoracle.networks.copying import copied
from trueoracle.networks.heads import fit_heads, free_heads
from trueoracle.pruning.groups import Group, Place, filter_weights

__all__ = ["Kept", "l1_survivors", "prune"]

Kept = Mapping[str, Sequence[int] | np.ndarray]
"""For every pruned group, by name, the indices of the kept filters, ascending."""


def prune(
    dense: nn.Module,
    groups: Sequence[Group],
    kept: Kept,
    read: Kept | None = None,
    *,
    is_shared: bool = False,
) -> nn.Module:
    """A copy of ``dense`` with only the ``kept`` filters of each group.

    The weights of the layers themselves are cut to ``kept``, the norms and consumers to ``read``.
    Without ``read``, norms and consumers are cut to ``kept`` as well: this is exact surgery, which
    gives the same function as zeroing the channels (``masks.masked``). The paper's released code
    instead uses the survivors of one L1 pass as ``read``, whatever the candidate keeps
    (``l1_survivors``). With ``is_shared``, the copy shares with ``dense`` all parameters that are
    not cut, so it may be run but not trained.
    """
    touched = {place.tensor for group in groups for place in group.places}
    rest = [value for name, value in dense.named_parameters() if name not in touched]
    network = copied(dense, sharing=rest if is_shared else ())
    free_heads(network, touched)
    cuts: dict[tuple[str, int], list[tuple[Place, int, Tensor]]] = {}
    counts: dict[str, list[tuple[Place, int, int]]] = {}
    with torch.no_grad():
        for group in groups:
            own = _indices(kept[group.name])
            channels = own if read is None else _indices(read[group.name])
            for place in group.places:
                if place.role == "mixes":
                    continue
                left = own if place.role in ("writes", "counts") else channels
                if place.axis is None:
                    counts.setdefault(place.tensor, []).append((place, group.filters, len(left)))
                else:
                    cuts.setdefault((place.tensor, place.axis), []).append(
                        (place, group.filters, left)
                    )
        holders = _holders(network) if cuts else {}
        for (tensor, axis), found in cuts.items():
            _cut(holders[tensor], axis, found)
        for number, lowered in counts.items():
            _count_down(network, number, lowered)
        for owner in dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in cuts):
            _fit(network.get_submodule(owner))
            fit_heads(network, owner)
    return network


def l1_survivors(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> dict[str, np.ndarray]:
    """For each group, the filters of the largest mean |w|, ascending, as many as ``kept`` has.

    This is the L1 pass of the paper's released code, which decides in that code which channels the
    later layers read.
    """
    survivors = {}
    for group in groups:
        magnitude = filter_weights(dense, group).detach().abs().mean(1).cpu().numpy()
        largest = np.argsort(-magnitude, kind="stable")[: len(kept[group.name])]
        survivors[group.name] = np.sort(largest)
    return survivors


def _indices(given: Sequence[int] | np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(given), dtype=torch.int64)


def _holders(network: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The modules that hold each parameter and buffer, and its key there, by its dotted name.

    A shared tensor has several holders, and is listed under each of its names.
    """
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    named = {}
    for path, module in network.named_modules():
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                same = found.setdefault(id(value), [])
                same.append((module, key))
                named[f"{path}.{key}" if path else key] = same
    return named


def _cut(
    holders: Sequence[tuple[nn.Module, str]],
    axis: int,
    found: Sequence[tuple[Place, int, Tensor]],
) -> None:
    """Cut one axis of a parameter or buffer in all modules that hold it."""
    module, key = holders[0]
    value: Tensor = getattr(module, key)
    index = _left(value.shape[axis], found).to(value.device)
    made = value.detach().index_select(axis, index).clone()
    if isinstance(value, nn.Parameter):
        made = nn.Parameter(made, requires_grad=value.requires_grad)
    for module, key in holders:
        setattr(module, key, made)


def _left(width: int, found: Sequence[tuple[Place, int, Tensor]]) -> Tensor:
    """The indices of an axis that stay: the kept filters of each group, and all outside groups."""
    if all((kept.diff() > 0).all() for _, _, kept in found):
        stays = torch.ones(width, dtype=torch.bool)
        for place, count, kept in found:
            goes = torch.ones(count, dtype=torch.bool)
            goes[kept] = False
            stays[place.entries(goes.nonzero()[:, 0], count)] = False
        return stays.nonzero()[:, 0]
    # The kept filters are not in ascending order, or repeated: build each block of a group anew.
    blocks = sorted(
        (place.offset + i * count * place.inner, count * place.inner, place.inner, kept)
        for place, count, kept in found
        for i in range(place.outer)
    )
    pieces, end = [], 0
    for start, length, inner, kept in blocks:
        own = (start + kept[:, None] * inner + torch.arange(inner)).flatten()
        pieces += [torch.arange(end, start), own]
        end = start + length
    return torch.cat([*pieces, torch.arange(end, width)])


def _count_down(network: nn.Module, number: str, lowered: Sequence[tuple[Place, int, int]]) -> None:
    """Lower a number that counts filters, or the size of the last axis where it is a shape.

    ``lowered`` has the places of the number, each with how many filters there were and how many
    are left.
    """
    module = _module_of(network, number)
    owner: Any = network.get_submodule(module)
    path = number.removeprefix(module).lstrip(".").split(".")
    for step in path[:-1]:  # to a configuration, which other modules may share
        own = copy.copy(getattr(owner, step))
        setattr(owner, step, own)
        owner = own
    value = getattr(owner, path[-1])
    whole = value[-1] if isinstance(value, tuple) else value
    if all(count * place.outer * place.inner == whole for place, count, _ in lowered):
        left = whole  # the number is one group's, or a product of several groups' numbers
        for _, count, kept in lowered:
            left = left // count * kept
    else:
        gone = ((count - kept) * place.outer * place.inner for place, count, kept in lowered)
        left = whole - sum(gone)
    setattr(owner, path[-1], (*value[:-1], left) if isinstance(value, tuple) else left)


def _module_of(network: nn.Module, name: str) -> str:
    """The longest prefix of a dotted name that is the path of a module."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        try:
            network.get_submodule(path)
        except AttributeError:
            continue
        return path
    return ""


def _fit(module: nn.Module) -> None:
    """Set the sizes that a layer states in its attributes to those of its tensors."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, Attention):
        module.heads = module.in_proj_weight.shape[0] // (3 * module.head_dim)
    elif isinstance(module, _ConvNd):
        _fit_convolution(module)
    elif isinstance(module, nn.RNNBase):
        _fit_recurrent(module)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif hasattr(module, "num_features"):
        held = (weight, getattr(module, "running_mean", None), getattr(module, "bias", None))
        named: Any = module
        named.num_features = next((len(one) for one in held if one is not None), 0)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
        module.nx, module.nf = weight.shape


def _fit_convolution(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.in_channels, module.out_channels = second * module.groups, first


def _fit_recurrent(module: nn.RNNBase) -> None:
    inputs, states = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
    module.input_size = inputs.shape[1]
    module.hidden_size = len(inputs) // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if module.proj_size:
        module.proj_size = states.shape[1]
    module.flatten_parameters()
