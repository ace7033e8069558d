"""What an optimiser remembers, member by member: so that a training can stop, lose members, go on.

A state maps ``kind/parameter`` (``momentum_buffer/conv1.weight``, as torch calls its kinds) to a
tensor. All engines give and take the same ones, so that weights and state are all a member is.
Where a network is trained by adapters, its state holds them too, and the weights under them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, optim

__all__ = ["BASE", "STEP", "STREAM", "VALUE", "MemberState", "restore", "state_of"]

MemberState = Mapping[str, Tensor]
"""One network's optimiser, by ``kind/parameter``; empty before the first step."""

STEP = "step"
"""The kind that counts steps: one number per parameter, the same for all members."""

VALUE, BASE = "value", "base"
"""The kinds of what adapters train, and of the weights that they are added to."""

STREAM = "stream"
"""The kind that says how far an epoch has come: its step, and the state of random numbers."""

_NOT_THE_OPTIMIZERS = {VALUE, BASE, STREAM}


def state_of(
    optimizer: optim.Optimizer, parameters: Mapping[str, Tensor], member: int | None = None
) -> MemberState:
    """A copy of what ``optimizer`` remembers of its ``parameters``, on the CPU.

    ``member``: where they are stacked ``[P, ...]``, whose.
    """
    found = {}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                own = value if member is None or kind == STEP else value[member]
                found[f"{kind}/{name}"] = own.detach().cpu().clone()
    return found


def restore(
    optimizer: optim.Optimizer,
    parameters: Mapping[str, Tensor],
    states: Sequence[MemberState],
    *,
    stacked: bool,
) -> None:
    """Put an optimiser where :func:`state_of` found it: of one network, or of all, stacked."""
    kinds = {key.partition("/")[0] for key in states[0]} - _NOT_THE_OPTIMIZERS
    for name, parameter in parameters.items():
        for kind in kinds:
            values = [state[f"{kind}/{name}"] for state in states if f"{kind}/{name}" in state]
            if not values:
                continue
            if kind == STEP:
                value = values[0].clone()
            else:
                whole = torch.stack(values) if stacked else values[0].clone()
                value = whole.to(parameter)
            optimizer.state[parameter][kind] = value
