"""Weights that are held at zero while the network is retrained."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from trueoracle.networks.copying import copied

__all__ = ["Masked", "held_weight", "unmasked"]


class Masked(nn.Module):
    """Multiplies a weight by a mask: what is zero stays zero, and so does its gradient.

    The mask has the weight's dtype, so that networks can be stacked and computed as one.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask").to(weight.dtype)


def held_weight(layer: nn.Module) -> tuple[nn.Parameter, Tensor] | None:
    """The parameter and the mask that a layer's weight is computed from; None for a plain weight.

    The mask has the weight's shape, and is 1 where a weight is kept.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    held = layer.get_submodule("parametrizations.weight")
    first = held.get_submodule("0")
    if not isinstance(first, Masked):
        return None
    return held.get_parameter("original"), first.get_buffer("mask")


def unmasked(network: nn.Module) -> nn.Module:
    """A copy of a pruned network with plain weights, some of them zero, to save or pass on."""
    plain = copied(network)
    for module in list(plain.modules()):
        if (held := held_weight(module)) is None:
            continue
        trains = held[0].requires_grad
        weight = nn.Parameter(cast(Tensor, module.weight).detach(), requires_grad=trains)
        # remove_parametrizations would change a class that copies share with the original.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        module.register_parameter("weight", weight)
    return plain
