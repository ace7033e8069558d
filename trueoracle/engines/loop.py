"""The reference as an engine: each network is trained by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import ClassVar

import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine, Measured
from trueoracle.training.checkpoint import Keepable
from trueoracle.training.continuing import MemberState
from trueoracle.training.evaluate import evaluate_together
from trueoracle.training.loop import Stream, Training
from trueoracle.training.recipe import Recipe
from trueoracle.training.team import Team

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
        team: Team | None = None,
    ) -> None:
        self._data = data
        self._trainings = [
            Training(network, data, recipe, stream, state, team)
            for network, stream, state in zip(
                networks, streams, states or [{}] * len(networks), strict=True
            )
        ]

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        alone = len(self._trainings) == 1  # else the others are at another place
        for training in self._trainings:
            training.train_epoch(epoch, between_steps if alone else None)

    def measure(self) -> Measured:
        measured: Measured = {}
        with ExitStack() as stack:
            networks = [stack.enter_context(one.measured()) for one in self._trainings]
            for name, split in self._data.named():
                found = evaluate_together(networks, split, self._data.task)
                measured[name] = {
                    metric: torch.tensor([own[metric] for own in found], dtype=torch.float64)
                    for metric in found[0]
                }
        return measured

    def write_back(self) -> None:
        for training in self._trainings:
            training.finish()

    def kept(self) -> list[Keepable] | None:
        return [training.kept() for training in self._trainings]

    def states(self) -> list[MemberState]:
        return [training.state() for training in self._trainings]


class LoopEngine(Engine):
    """One network at a time, by plain PyTorch: takes everything."""

    name: ClassVar[str] = "loop"
    handicap: ClassVar[float] = 0.95

    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        return None

    start = LoopPopulation
