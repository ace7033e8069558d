"""An optimiser's state, member by member, so that training can stop, lose members and continue.

A state maps ``kind/parameter`` (such as ``momentum_buffer/conv1.weight``; the kinds have torch's
names) to a tensor. All engines use the same states, so that a member is no more than its weights
and its state. Where a network is trained by adapters, its state also holds the adapters and the
weights under them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, optim

__all__ = ["BASE", "STEP", "STREAM", "VALUE", "Begun", "MemberState", "restore", "state_of"]

MemberState = Mapping[str, Tensor]
"""The optimiser's state of one network, by ``kind/parameter``; empty before the first step."""

STEP = "step"
"""The kind that counts the steps: one number per parameter, the same for all members."""

VALUE, BASE = "value", "base"
"""The kinds of the values that adapters train, and of the weights that adapters are added to."""

STREAM = "stream"
"""The kind for progress within an epoch: the finished steps, and the state of random numbers."""

_NOT_THE_OPTIMIZERS = {VALUE, BASE, STREAM}


@dataclass(frozen=True, eq=False)
class Begun:
    """How far an epoch has come: its finished steps, and where the random numbers stand."""

    step: int
    cpu: Tensor
    cuda: Tensor | None = None

    @classmethod
    def now(cls, step: int, device: torch.device) -> Begun:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(step, torch.get_rng_state(), cuda)

    @classmethod
    def read(cls, state: MemberState) -> Begun | None:
        """Read the progress from a state; None where the state is one between epochs."""
        if f"{STREAM}/step" not in state:
            return None
        return cls(
            int(state[f"{STREAM}/step"]), state[f"{STREAM}/cpu"], state.get(f"{STREAM}/cuda")
        )

    def as_state(self) -> MemberState:
        numbers = {"step": torch.tensor(self.step), "cpu": self.cpu, "cuda": self.cuda}
        return {f"{STREAM}/{name}": v for name, v in numbers.items() if v is not None}

    def go_on(self, device: torch.device) -> None:
        """Set torch's random number generators to where they stood."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def state_of(
    optimizer: optim.Optimizer, parameters: Mapping[str, Tensor], member: int | None = None
) -> MemberState:
    """A copy of the optimiser's state of its ``parameters``, on the CPU.

    Where the parameters are stacked ``[P, ...]``, ``member`` says whose state is copied.
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
    """Put states from :func:`state_of` into the optimiser of one network, or of all, stacked."""
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
