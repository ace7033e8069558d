"""Residual networks (He et al. 2016, arXiv 1512.03385), for small images and for ImageNet.

Modules and tensors have the names that torchvision gives them (conv1, bn1, layer1.0.conv1, …, fc),
so that weights can be taken from there.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from trueoracle.networks.registry import network

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "PaddedShortcut",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet110",
]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ``stride`` is that of the first convolution."""

    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; ``stride`` is that of the 3x3 convolution.

    In the paper, the first convolution has the stride; torchvision's weights belong to networks
    like this one.
    """

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class PaddedShortcut(nn.Module):
    """A shortcut without parameters (the paper's option A).

    It takes every ``stride``-th row and column of ``[N, C, H, W]``, and adds ``before`` channels of
    zeros before the C channels and ``after`` channels of zeros after them.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        fewer = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(fewer, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"


def _shortcut(option: str, channels: int, outputs: int, stride: int) -> nn.Module | None:
    """A module that gives a block's input the shape of its output; None if they are equal."""
    if channels == outputs and stride == 1:
        return None
    if option == "A":
        before = (outputs - channels) // 2
        return PaddedShortcut(stride, before, outputs - channels - before)
    projection = nn.Conv2d(channels, outputs, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


def _resnet(
    stem: OrderedDict[str, nn.Module],
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    width: int,
    classes: int,
    shortcut: str,
) -> nn.Module:
    """``stem``, then stages of ``blocks[i]`` blocks, each twice as wide as the one before."""
    layers = OrderedDict(stem)
    channels = width
    for i, count in enumerate(blocks):
        inner, stage = width * 2**i, []
        outputs = inner * block.expansion
        for j in range(count):
            stride = 2 if i > 0 and j == 0 else 1
            downsample = _shortcut(shortcut, channels, outputs, stride)
            stage.append(block(channels, inner, stride, downsample))
            channels = outputs
        layers[f"layer{i + 1}"] = nn.Sequential(*stage)
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    whole = nn.Sequential(layers)
    for module in whole.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return whole


def _check_width(width: int) -> None:
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")


def _small(
    blocks: int, input_shape: tuple[int, ...], classes: int, width: int, shortcut: str
) -> nn.Module:
    """A network for small images: three stages of ``blocks`` blocks each."""
    _check_width(width)
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}")
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
    )
    return _resnet(stem, BasicBlock, (blocks,) * 3, width, classes, shortcut)


def _large(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    input_shape: tuple[int, ...],
    classes: int,
    width: int,
) -> nn.Module:
    """A network for ImageNet, whose stem reduces height and width to a quarter."""
    _check_width(width)
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], width, 7, 2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, padding=1),
    )
    return _resnet(stem, block, blocks, width, classes, "B")


@network("resnet20")
def resnet20(
    input_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    *,
    width: int = 16,
    shortcut: str = "A",
) -> nn.Module:
    """ResNet-20 for small images; ``width`` is that of the first stage.

    ``shortcut`` says how a block's input reaches the shape of its output where they differ: "A" by
    leaving out every other row and column and padding with channels of zeros, "B" by a 1x1
    convolution.
    """
    return _small(3, input_shape, classes, width, shortcut)


@network("resnet56")
def resnet56(
    input_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    *,
    width: int = 16,
    shortcut: str = "A",
) -> nn.Module:
    """ResNet-56 for small images, with the arguments of :func:`resnet20`."""
    return _small(9, input_shape, classes, width, shortcut)


@network("resnet110")
def resnet110(
    input_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    *,
    width: int = 16,
    shortcut: str = "A",
) -> nn.Module:
    """ResNet-110 for small images, with the arguments of :func:`resnet20`."""
    return _small(18, input_shape, classes, width, shortcut)


@network("resnet18")
def resnet18(
    input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, *, width: int = 64
) -> nn.Module:
    """ResNet-18 for ImageNet; ``width`` is that of the first stage."""
    return _large(BasicBlock, (2, 2, 2, 2), input_shape, classes, width)


@network("resnet34")
def resnet34(
    input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, *, width: int = 64
) -> nn.Module:
    """ResNet-34 for ImageNet; ``width`` is that of the first stage."""
    return _large(BasicBlock, (3, 4, 6, 3), input_shape, classes, width)


@network("resnet50")
def resnet50(
    input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, *, width: int = 64
) -> nn.Module:
    """ResNet-50 for ImageNet; ``width`` is that of the first stage's 3x3 convolutions."""
    return _large(Bottleneck, (3, 4, 6, 3), input_shape, classes, width)
