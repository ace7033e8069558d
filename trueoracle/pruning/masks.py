"""Pruning without surgery: the dense network, its pruned channels zeroed where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.networks.attention import Attention
from trueoracle.pruning.groups import Group
from trueoracle.pruning.surgery import Kept

__all__ = ["masked"]


@contextmanager
def masked(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> Iterator[nn.Module]:
    """Within the block, ``dense`` computes what it would without the filters not ``kept``.

    Each consumer's input is multiplied by the group's mask (1 = kept, 0 = pruned). Zeroing there,
    after norm and activation, is right also where a zero before them would not stay one (a batch
    norm's bias, a sigmoid). A layer norm, whose statistics mix the channels, takes those of the
    kept ones only. The weights are untouched, and the hooks go when the block ends.
    """
    modules = dict(dense.named_modules())
    masks: dict[str, Tensor] = {}
    for group in groups:
        pruned = torch.ones(group.filters, dtype=torch.bool)
        pruned[torch.as_tensor(list(kept[group.name]), dtype=torch.int64)] = False
        for part in (*group.norms, *group.consumers):
            module = modules.get(part.module)
            if part in group.consumers or isinstance(module, nn.LayerNorm):
                if part.module not in masks:
                    masks[part.module] = torch.ones(_width(modules[part.module]))
                masks[part.module][part.entries(pruned.nonzero()[:, 0])] = 0
    handles = []
    for name, mask in masks.items():
        module = modules[name]
        if isinstance(module, nn.LayerNorm):
            handles.append(module.register_forward_hook(_MaskedNorm(mask), with_kwargs=True))
        else:
            axis = 1 if isinstance(module, nn.Conv2d) else -1
            handles.append(module.register_forward_pre_hook(_Mask(mask, axis), with_kwargs=True))
    try:
        yield dense
    finally:
        for handle in handles:
            handle.remove()


def _width(module: nn.Module) -> int:
    """How many channels a consumer or layer norm reads."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0]
    name = "in_proj_weight" if isinstance(module, Attention) else "weight"
    return module.get_parameter(name).shape[1]


class _Mask:
    """A forward pre-hook that multiplies the channels of a module's input."""

    def __init__(self, mask: Tensor, axis: int) -> None:
        self.mask, self.axis = mask, axis

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        if args:
            return (self._masked(args[0]), *args[1:]), kwargs
        return args, kwargs | {"input": self._masked(kwargs["input"])}

    def _masked(self, inputs: Tensor) -> Tensor:
        behind = inputs.ndim - 1 - self.axis % inputs.ndim
        return inputs * self.mask.to(inputs).view(-1, *[1] * behind)


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
