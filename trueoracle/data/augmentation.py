"""Augmentation of whole batches, on the device, from an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["augment"]


def augment(
    images: Tensor, *, shift: int, flip: bool, fill: tuple[float, ...], generator: torch.Generator
) -> Tensor:
    """Shift each image ``[N, C, H, W]`` by up to ``shift`` pixels, and mirror half of them.

    Shifting is the usual crop after padding: independent per image and axis, uniform over
    -shift … shift; the uncovered border takes ``fill`` (one value, or one a channel). The random
    numbers are drawn on the CPU, so that every device sees the same ones.
    """
    if not shift and not flip:
        return images  # of any shape
    count, channels, height, width = images.shape
    if shift:
        padded = _pad(images, shift, fill)
        offsets = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
        down, right = offsets.to(images.device)
        rows = down[:, None] + torch.arange(height, device=images.device)
        columns = right[:, None] + torch.arange(width, device=images.device)
        which = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[None, :, None, None]
        images = padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]
    if flip:
        mirrored = torch.rand(count, generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def _pad(images: Tensor, border: int, fill: tuple[float, ...]) -> Tensor:
    """Pad all four sides by ``border`` pixels of ``fill``."""
    count, channels, rows, columns = images.shape
    padded = images.new_empty(count, channels, rows + 2 * border, columns + 2 * border)
    padded[:] = torch.tensor(fill, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    padded[:, :, border:-border, border:-border] = images
    return padded
