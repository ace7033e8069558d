"""VGG for small images (Simonyan and Zisserman 2015, arXiv 1409.1556), with batch norm."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from trueoracle.networks.registry import network

__all__ = ["vgg11", "vgg13", "vgg16", "vgg19"]

_CHANNELS = (64, 128, 256, 512, 512)


def _vgg(
    convolutions: tuple[int, ...], input_shape: tuple[int, ...], classes: int, width: float
) -> nn.Module:
    """Five stages of 3x3 convolutions with 2x2 max-pooling between, then one linear layer.

    ``convolutions`` is the number of convolutions in each stage. Layers are conv1, norm1, relu1,
    conv2, …; the convolutions have no biases, which the norms would cancel. The output of the last
    stage is averaged over all positions.
    """
    channels, height, breadth = input_shape
    if min(height, breadth) < 16:
        raise ValueError(f"images must be at least 16x16, got {height}x{breadth}")
    if not width > 0:
        raise ValueError(f"width must be above 0, got {width}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    i = 0
    for stage, (count, base) in enumerate(zip(convolutions, _CHANNELS, strict=True)):
        if stage > 0:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        filters = max(1, round(base * width))
        for _ in range(count):
            i += 1
            layers[f"conv{i}"] = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
            layers[f"norm{i}"] = nn.BatchNorm2d(filters)
            layers[f"relu{i}"] = nn.ReLU()
            channels = filters
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layers)


@network("vgg11")
def vgg11(
    input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, width: float = 1.0
) -> nn.Module:
    """VGG-11 with batch norm: conv1 … conv8 and fc. ``width`` multiplies the channels."""
    return _vgg((1, 1, 2, 2, 2), input_shape, classes, width)


@network("vgg13")
def vgg13(
    input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, width: float = 1.0
) -> nn.Module:
    """VGG-13 with batch norm: conv1 … conv10 and fc. ``width`` multiplies the channels."""
    return _vgg((2, 2, 2, 2, 2), input_shape, classes, width)


@network("vgg16")
def vgg16(
    input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, width: float = 1.0
) -> nn.Module:
    """VGG-16 with batch norm: conv1 … conv13 and fc. ``width`` multiplies the channels."""
    return _vgg((2, 2, 3, 3, 3), input_shape, classes, width)


@network("vgg19")
def vgg19(
    input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, width: float = 1.0
) -> nn.Module:
    """VGG-19 with batch norm: conv1 … conv16 and fc. ``width`` multiplies the channels."""
    return _vgg((2, 2, 4, 4, 4), input_shape, classes, width)
