"""One network at a time on several devices, by processes that were launched together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine
from trueoracle.engines.loop import LoopPopulation
from trueoracle.errors import InputError
from trueoracle.pruning.held import held_weight
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import Stream
from trueoracle.training.recipe import Recipe, Retraining
from trueoracle.training.team import find_team

__all__ = ["DevicesEngine"]


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
        return LoopPopulation(networks, streams, data, recipe, states=states, team=team)
