"""What an engine is: a way to train networks of equal shapes on one device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.engines.continuing import MemberState
from trueoracle.training.loop import Stream
from trueoracle.training.recipe import Recipe

__all__ = ["Engine", "Measured", "Memory", "Population"]

Measured = dict[str, Mapping[str, Tensor]]
"""Every metric of every split, float64 ``[P]``, by the names of split and metric."""


class Memory(NamedTuple):
    """Bytes that a population takes: ``fixed`` ones, and more for ``each`` member."""

    fixed: int = 0
    each: int = 0


class Population(Protocol):
    """Networks of one shape in training."""

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training examples; ``epoch`` is counted from 0."""

    def measure(self) -> Measured:
        """All metrics on every split, in evaluation mode."""

    def write_back(self) -> None:
        """The weights as they are now into the networks given."""

    def states(self) -> list[MemberState]:
        """What the optimiser remembers of each member: all that going on needs, but weights."""


class Engine(ABC):
    """A way to train a population. Each member ends as the loop would leave it, but for rounding.

    ``handicap`` multiplies the time of its trial, so that near ties always fall the same way;
    ``uses_threads``: each thread trains a group of its own.
    """

    name: ClassVar[str]
    handicap: ClassVar[float] = 1.0
    uses_threads: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        """Why it cannot train networks like this one, in a few words; None where it can."""

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
        """A population of these networks; with ``states`` it goes on from an earlier one's."""

    def memory(self, network: nn.Module, data: Splits, recipe: Recipe) -> Memory:
        """What a population needs beyond the data."""
        return Memory()

    def lanes(self, network: nn.Module, data: Splits) -> int:
        """How many members are computed side by side, wanted or not."""
        return 1

    def trial_members(self, lanes: int, room: int) -> int:
        """How many members to try it with, where memory has room for so many."""
        return 1

    def group(self, lanes: int, room: int, wanted: int, *, on_cpu: bool) -> int:
        """How many members to compute as one: ``wanted`` keep it busy for as long as it should."""
        return lanes
