"""The reference as an engine: each network is trained by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine, Measured
from trueoracle.engines.continuing import MemberState, restore, state_of
from trueoracle.training.evaluate import evaluate_together
from trueoracle.training.loop import Stream, make_optimizer, train_epoch
from trueoracle.training.recipe import Recipe

__all__ = ["LoopEngine", "LoopPopulation"]


class LoopPopulation:
    """Networks that are trained one after the other, epoch by epoch."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        states: Sequence[MemberState] | None = None,
    ) -> None:
        self._networks, self._streams = networks, streams
        self._data, self._recipe = data, recipe
        self._optimizers = [make_optimizer(n.parameters(), recipe) for n in networks]
        for network, optimizer, state in zip(
            networks, self._optimizers, states or (), strict=False
        ):
            restore(optimizer, dict(network.named_parameters()), [state], stacked=False)

    def train_epoch(self, epoch: int) -> None:
        for network, optimizer, stream in zip(
            self._networks, self._optimizers, self._streams, strict=True
        ):
            train_epoch(network, optimizer, self._data, self._recipe, epoch, stream)

    def measure(self) -> Measured:
        measured: Measured = {}
        for name, split in self._data.named():
            found = evaluate_together(self._networks, split, self._data.task)
            measured[name] = {
                metric: torch.tensor([own[metric] for own in found], dtype=torch.float64)
                for metric in found[0]
            }
        return measured

    def write_back(self) -> None:
        """They were trained in place."""

    def states(self) -> list[MemberState]:
        return [
            state_of(optimizer, dict(network.named_parameters()))
            for network, optimizer in zip(self._networks, self._optimizers, strict=True)
        ]


class LoopEngine(Engine):
    """One network at a time, by plain PyTorch: takes everything."""

    name: ClassVar[str] = "loop"
    handicap: ClassVar[float] = 0.95

    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        return None

    start = LoopPopulation
