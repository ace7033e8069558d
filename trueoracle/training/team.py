"""Several processes, each with a device of its own, that train one network together.

``accelerate launch`` (or ``torchrun``) starts them. Each computes the gradients of its part of
every batch, and all take the same step: data parallel training (Li et al. 2020, arXiv 2006.15704).
Launched with ``--use_fsdp``, each also holds only its share of the weights, gradients and
optimiser's state (Zhao et al. 2023, arXiv 2304.11277).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trueoracle.errors import InputError
from trueoracle.training.savings import blocks_of

__all__ = ["Team", "find_team"]

_LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SHARDED = "ACCELERATE_USE_FSDP"

_PATIENCE = timedelta(days=7)
"""How long the other processes wait for the first to train and score the dense network."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Team:
    """The processes that train one network; this one is ``rank`` of ``size``, on ``device``.

    ``is_sharded`` says whether each holds only its share of a network in training.
    """

    rank: int
    size: int
    device: torch.device
    is_sharded: bool
    messages: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process decides, records and prints."""
        return self.rank == 0

    def tell(self, message: object) -> None:
        """Send all other processes a message; called by the first process."""
        torch.distributed.broadcast_object_list([message], src=0, group=self.messages)

    def hear(self) -> Any:
        """Wait for the first process's next message; called by all others."""
        heard: list[Any] = [None]
        torch.distributed.broadcast_object_list(heard, src=0, group=self.messages)
        return heard[0]

    def own(self, parts: Sequence[T]) -> Iterator[tuple[int, T, bool]]:
        """This process's parts of a batch: the place of each, the part, and whether it counts.

        All processes get equally many parts, since they compute in step: where too few are left, a
        process computes another one's part again, which then does not count.
        """
        for start in range(0, len(parts), self.size):
            place = start + self.rank
            counts = place < len(parts)
            place = place if counts else start
            yield place, parts[place], counts

    def shard(self, network: nn.Module) -> None:
        """Split the network's weights among the processes, block by block."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks_of(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def shard_again(self, network: nn.Module) -> None:
        """Free the other processes' shares that a forward pass without gradients gathered."""
        from torch.distributed.fsdp import FSDPModule

        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes; a sharded network already has it."""
        if self.is_sharded:
            return
        by_kind: dict[torch.dtype, list[Tensor]] = {}
        for one in parameters:
            if one.requires_grad:  # an expert that met no token of this process has no gradient
                one.grad = torch.zeros_like(one) if one.grad is None else one.grad
                by_kind.setdefault(one.grad.dtype, []).append(one.grad)
        for gradients in by_kind.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            means = flat.split([gradient.numel() for gradient in gradients])
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean.view_as(gradient))

    @contextmanager
    def leading(self) -> Iterator[None]:
        """In this context, the other processes wait for messages; at its end, they are released."""
        try:
            yield
        finally:
            self.tell(None)


@lru_cache(maxsize=1)
def find_team() -> Team | None:
    """The processes that this one was launched with; None where it was started alone."""
    if any(name not in os.environ for name in _LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
        return None
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise InputError(
            "training on several devices needs accelerate: pip install '.[large]'"
        ) from error
    state = PartialState(cpu=not torch.cuda.is_available())
    messages = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    device = state.device if state.device.type == "cuda" else torch.device("cpu")
    sharded = bool(parse_flag_from_env(_SHARDED))
    return Team(state.process_index, state.num_processes, device, sharded, messages)
