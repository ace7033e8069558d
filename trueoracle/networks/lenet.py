"""LeNet-5 (LeCun et al., 1998) and the paper's LeNet5-Mini, with width and depth as arguments."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from trueoracle.networks.activation import make_activation
from trueoracle.networks.registry import network

__all__ = ["lenet5", "lenet5_mini"]


def _lenet(
    filters: tuple[int, int, int],
    hidden: tuple[int, ...],
    input_shape: tuple[int, ...],
    classes: int,
    activation: str,
) -> nn.Module:
    """Three 5x5 convolutions, the first two with 2x2 max-pooling, then linear layers."""
    channels, height, width = input_shape
    after_conv3 = [((size - 4) // 2 - 4) // 2 - 4 for size in (height, width)]
    if min(after_conv3) < 1:
        raise ValueError(f"images must be at least 32x32, got {height}x{width}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, count in enumerate(filters, start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, count, 5)
        layers[f"relu{i}"] = make_activation(activation)
        if i < 3:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels = count
    layers["flatten"] = nn.Flatten()
    features = channels * after_conv3[0] * after_conv3[1]
    for i, count in enumerate(hidden, start=1):
        layers[f"fc{i}"] = nn.Linear(features, count)
        layers[f"relu{i + 3}"] = make_activation(activation)
        features = count
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(features, classes)
    return nn.Sequential(layers)


@network("lenet5-mini")
def lenet5_mini(
    input_shape: tuple[int, ...] = (1, 32, 32),
    classes: int = 10,
    *,
    width: int = 10,
    depth: int = 5,
    activation: str = "relu",
) -> nn.Module:
    """The paper's LeNet5-Mini: conv1/2/3 and fc1/2, ten filters each.

    ``width`` is the number of conv1's filters (the paper's w20, w30 and w40). ``depth`` is the
    number of layers with weights, 5 to 9; those beyond 5 are linear layers of 10 units (the paper's
    d6 … d9). ``activation`` is "relu", or "identity" for the paper's linear variant (in which only
    the pooling is not linear).
    """
    if not 5 <= depth <= 9:
        raise ValueError(f"depth must be 5 to 9, got {depth}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return _lenet((width, 10, 10), (10,) * (depth - 4), input_shape, classes, activation)


@network("lenet5")
def lenet5(
    input_shape: tuple[int, ...] = (1, 32, 32), classes: int = 10, *, activation: str = "relu"
) -> nn.Module:
    """LeNet-5 with max-pooling: 6, 16 and 120 filters, then 84 units.

    ``activation`` is "relu", or "identity".
    """
    return _lenet((6, 16, 120), (84,), input_shape, classes, activation)
