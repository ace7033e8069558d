"""Augmentation of whole batches, on the device, from an explicit generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augment", "crop_box", "cut_out", "draw_crops", "mix"]

CROP_ATTEMPTS = 10
"""Shapes tried for one random crop; if none fits, the largest part that does is taken."""

_LARGEST_ASPECT = 4 / 3


def augment(
    images: Tensor, *, shift: int, flip: bool, fill: tuple[float, ...], generator: torch.Generator
) -> Tensor:
    """Shift each image ``[N, C, H, W]`` by up to ``shift`` pixels, and mirror half of them.

    Shifting is the usual crop after padding: independent per image and axis, uniform over
    -shift … shift; the uncovered border takes ``fill`` (one value, or one per channel). The random
    numbers are drawn on the CPU, so that every device sees the same ones.
    """
    if not shift and not flip:
        return images  # inputs of any shape are allowed here
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


def draw_crops(count: int, generator: torch.Generator) -> list[list[float]]:
    """The random numbers of ``count`` crops, each for one :func:`crop_box`, from 0 to 1.

    Every crop gets equally many, so that the crop of one image does not change that of the next.
    """
    return torch.rand(count, 2 * CROP_ATTEMPTS + 2, generator=generator).tolist()


def crop_box(
    numbers: Sequence[float], height: int, width: int, least_area: float
) -> tuple[int, int, int, int]:
    """A random part of an image, as (top, left, height, width) in pixels.

    Its share of the area is uniform from ``least_area`` to 1, its aspect ratio log-uniform from 3/4
    to 4/3, its place uniform (Szegedy et al. 2015, arXiv 1409.4842, section 6). A shape that does
    not fit is drawn again. Where no drawn shape fits, the part is the largest one in the middle
    with such an aspect ratio.
    """
    *shapes, down, right = numbers
    for share, tilt in zip(shapes[::2], shapes[1::2], strict=True):
        area = (least_area + share * (1 - least_area)) * height * width
        aspect = _LARGEST_ASPECT ** (2 * tilt - 1)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            # The product should stay below its bound, but can be rounded up to it.
            top = min(int(down * (height - high + 1)), height - high)
            left = min(int(right * (width - wide + 1)), width - wide)
            return top, left, high, wide
    high = max(1, min(height, round(width * _LARGEST_ASPECT)))
    wide = max(1, min(width, round(height * _LARGEST_ASPECT)))
    return (height - high) // 2, (width - wide) // 2, high, wide


def cut_out(images: Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Cut a box (top, left, height, width) out of each image, resized to the image's size.

    Images are ``[N, C, H, W]``. Resizing is bilinear and reads no pixel outside the box, like
    ``interpolate`` of the part alone.
    """
    height, width = images.shape[2:]
    top, left, high, wide = torch.tensor(boxes, dtype=images.dtype, device=images.device).t()
    rows = _source_centres(top, high, height)
    columns = _source_centres(left, wide, width)
    # grid_sample counts from -1 to 1 between the outer edges, and takes (x, y).
    grid = torch.stack(
        [
            ((2 * columns + 1) / width - 1)[:, None, :].expand(-1, height, -1),
            ((2 * rows + 1) / height - 1)[:, :, None].expand(-1, -1, width),
        ],
        dim=3,
    )
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _source_centres(start: Tensor, extent: Tensor, size: int) -> Tensor:
    """Where in the image, in pixels, each of the ``size`` new pixels is read: ``[N, size]``."""
    places = (torch.arange(size, device=start.device) + 0.5) / size * extent[:, None] - 0.5
    within = torch.minimum(places.clamp(min=0), extent[:, None] - 1)
    return start[:, None] + within


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another image of the batch, and their labels in proportion.

    Takes images ``[N, C, H, W]`` (mixup takes any ``[N, ...]``) and classes ``[N]`` or class
    probabilities ``[N, classes]``; returns images and float32 class probabilities. ``mixup`` (Zhang
    et al. 2018, arXiv 1710.09412) adds images; ``cutmix`` (Yun et al. 2019, arXiv 1905.04899) puts
    a rectangle of the other image into each. Both values are the alpha of Beta(alpha, alpha), from
    which one share is drawn per batch; 0 is off. With both on, each batch takes one of them, with
    equal chances. With both off, the labels are returned unchanged.
    """
    if not mixup and not cutmix:
        return images, labels
    of_mixup = bool(mixup)
    if mixup and cutmix:
        of_mixup = float(torch.rand((), generator=generator)) < 0.5
    partners = torch.randperm(len(images), generator=generator).to(images.device)
    share = _beta(mixup if of_mixup else cutmix, generator)
    if of_mixup:
        images = share * images + (1 - share) * images[partners]
    else:
        height, width = images.shape[2:]
        rows, columns = _rectangle(height, width, share, generator)
        images = images.clone()
        images[:, :, rows, columns] = images[partners, :, rows, columns]
        covered = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - covered / (height * width)
    own = labels if labels.is_floating_point() else functional.one_hot(labels, classes).float()
    return images, share * own + (1 - share) * own[partners]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One number from Beta(alpha, alpha), which torch cannot draw with a generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha))


def _rectangle(
    height: int, width: int, share: float, generator: torch.Generator
) -> tuple[slice, slice]:
    """A rectangle of 1 - ``share`` of the area around a uniform centre, cut off at the borders."""
    scale = math.sqrt(1 - share)
    place = torch.rand(2, generator=generator).tolist()
    sides = []
    for size, centre in zip((height, width), place, strict=True):
        middle, half = int(centre * size), int(scale * size) // 2
        sides.append(slice(max(middle - half, 0), min(middle + half, size)))
    return sides[0], sides[1]
