"""The network after the contributions, for a block of candidates at once, on native kernels.

A candidate's choice of contributions is a 1×1 convolution with weights 0 and 1, so that a block of
candidates is a population whose members differ in the first layer only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trueoracle.native.lowering import CannotLowerError, lower_chain
from trueoracle.native.program import Images, Program

__all__ = ["NativeTail"]


class NativeTail:
    """Summed losses of candidates that differ only in their choice of contributions.

    ``tail`` is the network after the contributions, ``shape`` the contributions' ``[C, F, …]`` for
    one image. Raises :class:`CannotLowerError` for a tail that the kernels cannot express.
    """

    def __init__(self, tail: Sequence[nn.Module], shape: Sequence[int], dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise CannotLowerError(f"its activations are {dtype}")
        self._image = (shape[0], 1, math.prod(shape[1:]))
        named = [(str(place), module) for place, module in enumerate(tail)]
        with torch.random.fork_rng(devices=[]):  # its weights are drawn, and never used
            first = nn.Conv2d(shape[0], 1, 1, bias=False)
        chain: list[tuple[str, nn.Module]] = [("sum", first)]
        chain += [("flat", nn.Flatten()), *named]
        if len(shape) == 4:
            chain.insert(2, ("maps", nn.Unflatten(1, tuple(shape[1:]))))
        self._program = Program(lower_chain(chain, self._image), dtype)
        modules = dict(named)
        numbers = [
            getattr(modules[name.split(".")[0]], name.split(".")[1]).detach().flatten()
            for name in self._program.lowered.parameters[1:]
        ]
        self._tail = torch.cat([torch.empty(0, dtype=dtype), *numbers])[:, None]

    @property
    def candidate_bytes(self) -> int:
        """The bytes of one candidate's weights."""
        return self._program.lowered.weights * self._program.dtype.itemsize

    def pack(self, selection: Tensor) -> list[Tensor]:
        """Choices ``[P, C]`` of 0 and 1 as lane groups ``[weights, lanes]``, the last filled up."""
        lanes = self._program.lanes
        groups = []
        for some in selection.to(self._program.dtype).split(lanes):
            full = torch.cat([some, some[:1].expand(lanes - len(some), -1)])
            groups.append(torch.cat([full.t(), self._tail.expand(-1, lanes)]).contiguous())
        return groups

    def sum_losses(self, groups: Sequence[Tensor], maps: Tensor, labels: Tensor) -> Tensor:
        """Sums of cross-entropy float64 ``[groups · lanes]``; ``maps`` are ``[N, C, F, …]``."""
        seen = Images(maps.contiguous().view(len(maps), *self._image), labels.contiguous())
        losses = [loss[0] for loss, _ in self._program.evaluate(groups, [seen] * len(groups))]
        return torch.cat(losses)
