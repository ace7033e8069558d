"""What an engine is: a way to train networks of equal shapes on one device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.training.checkpoint import Keepable
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import Stream
from trueoracle.training.recipe import Recipe, Retraining

__all__ = ["Engine", "Measured", "Memory", "Population", "what_only_the_loop_does"]


class Measured(NamedTuple):
    """What was measured of P networks: float64 tensors by the names of split and metric.

    ``values`` ``[P]`` are the metrics. ``blocks`` ``[P, B]`` are the sums of each metric over each
    block of examples, for the splits that are divided into blocks.
    """

    values: dict[str, Mapping[str, Tensor]]
    blocks: dict[str, Mapping[str, Tensor]]


class Memory(NamedTuple):
    """Bytes that a population takes: a ``fixed`` number, and ``each`` more for every member."""

    fixed: int = 0
    each: int = 0


class Population(Protocol):
    """Networks of one shape that are being trained."""

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        """One pass over the training examples; ``epoch`` is counted from 0.

        A population that can be continued within an epoch calls ``between_steps`` after the steps
        where training could continue from what :meth:`kept` returns.
        """

    def measure(self, *, by_block: bool = False) -> Measured:
        """All metrics on every split in evaluation mode; ``by_block`` adds the blocks' sums."""

    def write_back(self) -> None:
        """Write the current weights into the networks that the population was made of."""

    def states(self) -> list[MemberState]:
        """What each member needs to continue later, apart from the weights written back."""

    def kept(self) -> list[Keepable] | None:
        """What each member needs to continue from the given networks; None if nothing is kept."""


def what_only_the_loop_does(recipe: Recipe) -> str | None:
    """What only the loop can do of this recipe, in words; None if every engine can do it all."""
    if isinstance(recipe, Retraining) and recipe.lora is not None:
        return "adapters (retraining.lora) are trained one network at a time"
    for name, off in (("accumulate", 1), ("gradient_checkpointing", False)):
        if (value := getattr(recipe, name)) != off:
            return f"{name} = {str(value).lower()} is done one network at a time"
    if recipe.precision == "bfloat16":
        return "weights in bfloat16 are trained one network at a time"
    return None


class Engine(ABC):
    """A way to train a population. Each member ends as the loop would leave it, but for rounding.

    - ``handicap``: factor on the time of the engine's trial, so that near ties always fall the
      same way;
    - ``uses_threads``: whether each thread trains a group of its own;
    - ``is_tried``: whether the engine can be tried beforehand; one that cannot is used only where
      it is asked for.
    """

    name: ClassVar[str]
    handicap: ClassVar[float] = 1.0
    uses_threads: ClassVar[bool] = False
    is_tried: ClassVar[bool] = True

    @abstractmethod
    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        """Why the engine cannot train networks like this one, in a few words; None if it can."""

    @abstractmethod
    def start(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        states: Sequence[MemberState] | None = None,
    ) -> Population:
        """A population of these networks; ``states`` continue an earlier population."""

    def memory(self, network: nn.Module, data: Splits, recipe: Recipe) -> Memory:
        """What a population needs beyond the data."""
        return Memory()

    def lanes(self, network: nn.Module, data: Splits) -> int:
        """How many members the engine always computes side by side."""
        return 1

    def trial_members(self, lanes: int, room: int) -> int:
        """How many members a trial of the engine trains; memory has room for ``room`` of them."""
        return 1

    def group(self, lanes: int, room: int, wanted: int, *, on_cpu: bool) -> int:
        """How many members to compute as one; ``wanted`` of them would fill the time of a call."""
        return lanes
