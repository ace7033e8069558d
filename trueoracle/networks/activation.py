"""The activations between the layers of the small networks."""

from __future__ import annotations

from torch import nn

from trueoracle.errors import unknown

__all__ = ["make_activation"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "identity": nn.Identity}


def make_activation(name: str) -> nn.Module:
    """``relu``, or ``identity`` for a network that is linear except for its pooling.

    Raises :class:`InputError`, with the nearest names, for any other name.
    """
    if name not in _ACTIVATIONS:
        raise unknown("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]()
