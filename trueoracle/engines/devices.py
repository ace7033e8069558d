"""One network at a time on several devices, by processes that were launched together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine
from trueoracle.engines.loop import LoopPopulation
from trueoracle.errors import InputError
from trueoracle.pruning.held import held_weight
from trueoracle.training.checkpoint import Keepable
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import Stream
from trueoracle.training.recipe import Recipe, Retraining
from trueoracle.training.team import Team, find_team

__all__ = ["DevicesEngine"]


class _DevicesPopulation(LoopPopulation):
    """Networks that all processes train in step, one after the other."""

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
        super().__init__(networks, streams, data, recipe, states=states, team=team)
        self._keeps = team is not None and team.is_main and not team.is_sharded

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        super().train_epoch(epoch, between_steps if self._keeps else None)

    def kept(self) -> list[Keepable] | None:
        """What the first process keeps for all; None where no process holds a whole network."""
        return super().kept() if self._keeps else None


class DevicesEngine(Engine):
    """One network at a time, trained by all processes of a launch together."""

    name: ClassVar[str] = "devices"
    is_tried: ClassVar[bool] = False

    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        team = find_team()
        if team is None:
            return "this process was started alone, and not by 'accelerate launch'"
        if any(isinstance(module, _BatchNorm) for module in network.modules()):
            return "each device's batch norms would see a part of the batch alone"
        lora = isinstance(recipe, Retraining) and recipe.lora is not None
        if lora and team.is_sharded and any(map(held_weight, network.modules())):
            return "adapters that keep zeros need the whole weights: launch without --use_fsdp"
        if recipe.batch_size < team.size:
            return f"{team.size} devices cannot share a batch of {recipe.batch_size}"
        return None

    def start(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        states: Sequence[MemberState] | None = None,
    ) -> LoopPopulation:
        if (team := find_team()) is None:
            raise InputError("engine 'devices' is started by 'accelerate launch' alone")
        return _DevicesPopulation(networks, streams, data, recipe, states=states, team=team)
