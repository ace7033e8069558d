"""The reference as an engine: each network is trained by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar

import torch
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine, Measured
from trueoracle.training.checkpoint import Keepable
from trueoracle.training.continuing import MemberState
from trueoracle.training.evaluate import tally_together
from trueoracle.training.loop import Stream, Training
from trueoracle.training.recipe import Recipe
from trueoracle.training.team import Team

__all__ = ["LoopEngine", "LoopPopulation"]


class LoopPopulation:
    """Networks that are trained one after the other, epoch by epoch; by a ``team``, all together.

    The first process of a team keeps trainings for all; where no process holds a whole network,
    none is kept.
    """

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
        self._keeps = team is None or (team.is_main and not team.is_sharded)
        self._trainings = [
            Training(network, data, recipe, stream, state, team)
            for network, stream, state in zip(
                networks, streams, states or [{}] * len(networks), strict=True
            )
        ]

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        keep = between_steps if self._keeps else None
        for training in self._trainings:
            training.train_epoch(epoch, keep)
            training.wait()
            if keep is not None and training is not self._trainings[-1]:
                keep()
        for training in self._trainings:
            training.go_on()

    def measure(self, *, by_block: bool = False) -> Measured:
        measured = Measured({}, {})
        with ExitStack() as stack:
            networks = [stack.enter_context(one.measured()) for one in self._trainings]
            for name, split in self._data.named():
                blocks = self._data.blocks.get(name) if by_block else None
                found = tally_together(networks, split, self._data.task, blocks=blocks)
                measured.values[name] = _side_by_side([own.metrics() for own in found])
                if blocks is not None:
                    measured.blocks[name] = _side_by_side([own.by_block() for own in found])
        return measured

    def write_back(self) -> None:
        for training in self._trainings:
            training.finish()

    def kept(self) -> list[Keepable] | None:
        return [training.kept() for training in self._trainings] if self._keeps else None

    def states(self) -> list[MemberState]:
        return [training.state() for training in self._trainings]


def _side_by_side(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([own[name].double() for own in found]) for name in found[0]}


class LoopEngine(Engine):
    """One network at a time, by plain PyTorch: it can train every network."""

    name: ClassVar[str] = "loop"
    handicap: ClassVar[float] = 0.95

    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        return None

    start = LoopPopulation
