"""Pruning without surgery: the dense network, its pruned channels zeroed where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.pruning.groups import Group, Place
from trueoracle.pruning.surgery import Kept

__all__ = ["masked"]


@contextmanager
def masked(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> Iterator[nn.Module]:
    """Within the block, ``dense`` computes what it would without the filters not ``kept``.

    The input weights of each consumer are zeroed where the pruned filters lie. Zeroing there,
    after norm and activation, is right also where a zero before them would not stay one (a batch
    norm's bias, a sigmoid). A layer norm, whose statistics mix the channels, takes those of the
    kept ones only. When the block ends, the weights are what they were.
    """
    before: dict[str, tuple[Tensor, Tensor]] = {}
    norms: dict[str, Tensor] = {}
    handles = []
    try:
        with torch.no_grad():
            for group in groups:
                goes = torch.ones(group.filters, dtype=torch.bool)
                goes[torch.as_tensor(np.asarray(kept[group.name]), dtype=torch.int64)] = False
                for place in group.places:
                    if place.role == "reads":
                        _zero(dense, place, goes, before)
                    elif place.role in ("carries", "counts"):
                        _mask_norm(dense, place, goes, norms)
        for name, mask in norms.items():
            norm = dense.get_submodule(name)
            handles.append(norm.register_forward_hook(_MaskedNorm(mask), with_kwargs=True))
        yield dense
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for value, old in before.values():
                value.copy_(old)


def _zero(
    dense: nn.Module, place: Place, goes: Tensor, before: dict[str, tuple[Tensor, Tensor]]
) -> None:
    value: Tensor = getattr(dense.get_submodule(place.owner), place.tensor.rpartition(".")[2])
    if place.tensor not in before:
        before[place.tensor] = value, value.detach().clone()
    entries = place.entries(goes.nonzero()[:, 0], len(goes)).to(value.device)
    value.index_fill_(place.axis or 0, entries, 0)


def _mask_norm(dense: nn.Module, place: Place, goes: Tensor, norms: dict[str, Tensor]) -> None:
    module = dense.get_submodule(place.owner) if _is_module(dense, place.owner) else None
    if not isinstance(module, nn.LayerNorm):
        return
    if place.owner not in norms:
        norms[place.owner] = torch.ones(module.normalized_shape[0])
    norms[place.owner][place.entries(goes.nonzero()[:, 0], len(goes))] = 0


def _is_module(network: nn.Module, path: str) -> bool:
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True


class _MaskedNorm:
    """A forward hook that norms over the kept channels only."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(
        self, module: nn.LayerNorm, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        inputs = args[0] if args else kwargs["input"]
        mask = self.mask.to(inputs)
        count = mask.sum()
        centred = (inputs - (inputs * mask).sum(-1, keepdim=True) / count) * mask
        variance = centred.square().sum(-1, keepdim=True) / count
        normed = centred / (variance + module.eps).sqrt()
        if module.elementwise_affine:
            normed = normed * module.weight
        if module.bias is not None:
            normed = normed + module.bias
        return normed * mask
