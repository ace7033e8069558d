"""Pruning without surgery: the dense network, its pruned channels zeroed where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trueoracle.pruning.groups import Group
from trueoracle.pruning.surgery import Kept

__all__ = ["masked"]


@contextmanager
def masked(dense: nn.Module, groups: Sequence[Group], kept: Kept) -> Iterator[nn.Module]:
    """Within the block, ``dense`` computes what it would without the filters not ``kept``.

    Each consumer's input is multiplied by the group's mask (1 = kept, 0 = pruned). Zeroing there,
    after norm and activation, is right also where a zero before them would not stay one (a batch
    norm's bias, a sigmoid). The weights are untouched, and the hooks go when the block ends.
    """
    modules = dict(dense.named_modules())
    handles = []
    for group in groups:
        mask = torch.zeros(group.filters)
        mask[torch.as_tensor(list(kept[group.name]), dtype=torch.int64)] = 1
        for consumer in group.consumers:
            hook = _Mask(mask.repeat_interleave(consumer.spread))
            module = modules[consumer.module]
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield dense
    finally:
        for handle in handles:
            handle.remove()


class _Mask:
    """A forward pre-hook that multiplies the channels (axis 1) of a module's input."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        if args:
            return (self._masked(args[0]), *args[1:]), kwargs
        return args, kwargs | {"input": self._masked(kwargs["input"])}

    def _masked(self, inputs: Tensor) -> Tensor:
        return inputs * self.mask.to(inputs).view(1, -1, *(1 for _ in inputs.shape[2:]))
