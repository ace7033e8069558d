"""Each filter's contribution to its consumer's output, and fast versions of later operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.criteria.shared.choices import CannotShareError

__all__ = [
    "contributions_of",
    "covers",
    "cross_entropy",
    "max_pool",
    "plain_pool",
    "summed",
    "whole_conv",
]


def contributions_of(module: nn.Module, given: Tensor, spread: int, count: int) -> Tensor:
    """Each input filter's part ``[N, C, F, …]`` of a consumer's output.

    A candidate adds up ``count`` parts, so that each part includes 1 / ``count`` of the bias.
    """
    if isinstance(module, nn.Conv2d):
        parts = _conv_contributions(module, given)
        bias = None if module.bias is None else module.bias.view(-1, 1, 1)
    elif isinstance(module, nn.Linear):
        each = given.unflatten(1, (-1, spread))
        weight = module.weight.unflatten(1, (-1, spread))
        parts = torch.einsum("ncs,fcs->ncf", each, weight).contiguous()
        bias = module.bias
    else:
        raise CannotShareError(f"{type(module).__name__} consumes a pruned layer")
    return parts if bias is None else parts.add_(bias / count)


def _conv_contributions(conv: nn.Conv2d, given: Tensor) -> Tensor:
    """As :func:`contributions_of`, by a grouped convolution that keeps input channels apart.

    In the channels-last layout, grouped convolutions, pooling and later operations were fastest on
    CPUs: 20 ms against 75 ms for 10 filters of 4,000 digits, and 40-150 ms by other ways.
    """
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        around = conv._reversed_padding_repeated_twice
        given, padding = functional.pad(given, around, mode=conv.padding_mode), 0
    channels = conv.in_channels
    weight = conv.weight.transpose(0, 1).reshape(-1, 1, *conv.kernel_size)
    maps = functional.conv2d(given, weight, None, conv.stride, padding, conv.dilation, channels)
    by_filter: Tensor = maps.permute(0, 2, 3, 1).unflatten(3, (channels, -1))
    return by_filter.permute(0, 3, 1, 2, 4).contiguous().permute(0, 1, 4, 2, 3)


def summed(parts: Tensor, chosen: Tensor) -> Tensor:
    """Contributions ``[N, C, F, …]`` summed by the choices bool ``[P, C]``: ``[N·P, F, …]``."""
    if parts.ndim == 3:
        return torch.matmul(chosen.to(parts.dtype), parts).flatten(0, 1)
    images, _, filters, height, width = parts.shape
    flat = parts.permute(0, 1, 3, 4, 2).flatten(2)
    sums = torch.matmul(chosen.to(parts.dtype), flat)
    return sums.view(images * len(chosen), height, width, filters).permute(0, 3, 1, 2)


def plain_pool(module: nn.Module) -> int:
    """The side of a max-pooling of whole, separate squares; 0 for any other module."""
    if type(module) is not nn.MaxPool2d:
        return 0
    side = module.kernel_size
    plain = (side, side, 0, 1, False, False)
    found = (
        *(module.kernel_size, module.stride, module.padding),
        *(module.dilation, module.ceil_mode, module.return_indices),
    )
    return side if isinstance(side, int) and found == plain else 0


def max_pool(images: Tensor, side: int) -> Tensor:
    """Max-pooling of ``[N, C, H, W]`` by element-wise maxima: 6 times as fast on CPUs."""
    for axis in (2, 3):
        end = images.shape[axis] // side * side
        pooled = _every(images, axis, 0, end, side)
        for start in range(1, side):
            pooled = torch.maximum(pooled, _every(images, axis, start, end, side))
        images = pooled
    return images


def covers(module: nn.Module, images: Tensor) -> bool:
    """Whether a module is a convolution whose kernel is as large as the images."""
    return (
        type(module) is nn.Conv2d
        and tuple(images.shape[2:]) == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def whole_conv(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """A convolution that :func:`covers` its images, as a matrix product: twice as fast on CPUs."""
    flat = images.permute(0, 2, 3, 1).flatten(1)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(flat, weight, conv.bias)[:, :, None, None]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy ``[B]`` of each row, computed by columns: 5 times as fast on CPUs."""
    log_probabilities = functional.log_softmax(logits.t().contiguous(), 0)
    return -log_probabilities.gather(0, labels[None])[0]


def _every(images: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    return images[:, :, start:end:step] if axis == 2 else images[:, :, :, start:end:step]
