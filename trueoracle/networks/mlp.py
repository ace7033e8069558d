"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from trueoracle.networks.activation import make_activation
from trueoracle.networks.registry import network

__all__ = ["mlp"]


@network("mlp")
def mlp(
    input_shape: tuple[int, ...] = (1, 32, 32),
    classes: int = 10,
    *,
    hidden: Sequence[int] = (100, 100),
    batch_norm: bool = False,
    activation: str = "relu",
) -> nn.Module:
    """Linear layers fc1, fc2, … with ReLUs between; ``hidden`` has the units of all but the last.

    ``batch_norm`` puts a batch norm (norm1, …) before each ReLU; ``activation = "identity"`` leaves
    the ReLUs out.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must list at least one layer of at least one unit, got {hidden}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = math.prod(input_shape)
    for i, units in enumerate(hidden, start=1):
        layers[f"fc{i}"] = nn.Linear(features, units)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm1d(units)
        layers[f"relu{i}"] = make_activation(activation)
        features = units
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(features, classes)
    return nn.Sequential(layers)
