"""Data sets as whole tensors: what every later stage reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trueoracle.errors import InputError, first_line

__all__ = ["Split", "Splits", "as_split", "as_splits", "stratified"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes.

    ``images`` is float32 ``[N, C, H, W]`` (or any ``[N, ...]`` that the network takes), already
    normalised; ``labels`` is int64 ``[N]``, counted from 0.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or len(self.labels) != len(self.images):
            raise InputError(
                f"labels must be [N] for images [N, ...]: got labels "
                f"{list(self.labels.shape)} for images {list(self.images.shape)}"
            )
        if len(self.labels) == 0:
            raise InputError("a split needs at least one image")
        if self.images.ndim < 2:
            raise InputError(f"images must be [N, …], got {list(self.images.shape)}")
        if self.images.dtype != torch.float32 or self.labels.dtype != torch.int64:
            raise InputError(
                f"images must be float32 and labels int64, got {self.images.dtype} and "
                f"{self.labels.dtype}: as_split((images, labels)) converts them"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Splits:
    """The training, validation and test splits of one data set.

    ``classes`` is the number of classes; ``fill`` (one value a channel) is what an image's
    outside looks like after normalisation, for shifts. ``validation`` may be absent.
    """

    train: Split
    validation: Split | None
    test: Split
    classes: int
    fill: tuple[float, ...] = field(default=(0.0,))

    def __post_init__(self) -> None:
        shape = self.train.images.shape[1:]
        if len(self.fill) not in (1, shape[0]):
            raise InputError(f"fill has {len(self.fill)} values for {shape[0]} channels")
        for name, split in self.named():
            if split.images.shape[1:] != shape:
                raise InputError(
                    f"{name} images are {list(split.images.shape[1:])} but train images are "
                    f"{list(shape)}: all splits need one shape"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.classes:
                raise InputError(
                    f"labels out of range in the {name} split: found {low}…{high}, "
                    f"expected 0…{self.classes - 1} for {self.classes} classes"
                )
            if not torch.isfinite(split.images).all():
                raise InputError(f"the {name} images hold values that are not finite")

    def named(self) -> list[tuple[str, Split]]:
        """The splits that exist, as (name, split), in the order train, validation, test."""
        found = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        return [(name, split) for name, split in found if split is not None]

    def to(self, device: torch.device) -> Splits:
        validation = None if self.validation is None else self.validation.to(device)
        return replace(
            self, train=self.train.to(device), validation=validation, test=self.test.to(device)
        )

    def fingerprint(self) -> str:
        """SHA-256 over every image and label: the identity of data given in Python."""
        digest = hashlib.sha256(f"{self.classes} {self.fill}".encode())
        for name, split in self.named():
            digest.update(f"{name} {tuple(split.images.shape)}".encode())
            digest.update(split.images.detach().cpu().contiguous().numpy().tobytes())
            digest.update(split.labels.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def as_split(data: Split | tuple[Tensor, Tensor] | Dataset[Any]) -> Split:
    """A split from a ``(images, labels)`` tuple of tensors or from a map-style ``Dataset``.

    A ``Dataset`` is read through once, so its transforms are applied once: leave random ones out.
    Raises :class:`InputError` where items are not ``(image tensor, label)``.
    """
    if isinstance(data, Split):
        return data
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise InputError(
                f"expected (images, labels), got a {type(data).__name__} of {len(data)}"
            )
        try:
            images, labels = (torch.as_tensor(part) for part in data)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"(images, labels) must be tensors or arrays of numbers: {first_line(error)}"
            ) from error
        if labels.is_floating_point() and not torch.equal(labels, labels.round()):
            raise InputError("labels must be whole numbers, counted from 0: these are fractions")
        return Split(images.to(torch.float32), labels.to(torch.int64))
    try:
        items = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
        images = torch.stack([torch.as_tensor(image, dtype=torch.float32) for image, _ in items])
        labels = torch.tensor([int(label) for _, label in items])
    except Exception as error:  # a user's Dataset runs: anything can come out
        raise InputError(
            "the Dataset's items must be (image tensor, label), all of one shape: "
            f"{first_line(error)}"
        ) from error
    return Split(images, labels)


def as_splits(data: object) -> Splits:
    """Splits from what a user has: ``Splits``, ``(train, test)`` or ``(train, validation, test)``.

    Each part is whatever :func:`as_split` takes; a validation part of None is allowed. The number
    of classes is one more than the largest training label.
    """
    if isinstance(data, Splits):
        return data
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise InputError("data must be Splits, (train, test) or (train, validation, test)")
    train, test = as_split(data[0]), as_split(data[-1])
    validation = as_split(data[1]) if len(data) == 3 and data[1] is not None else None
    return Splits(train, validation, test, classes=int(train.labels.max()) + 1)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices ``[count]`` of a random draw with equal shares of each class, ascending.

    ``count`` is spread as evenly as it goes over the classes present (the first ones get one more).
    Raises :class:`InputError` where a class has too few images.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    classes = labels.unique().tolist()
    share, extra = divmod(count, len(classes))
    drawn: list[int] = []
    for position, label in enumerate(classes):
        where = (labels == label).nonzero()[:, 0].numpy()
        wanted = share + (position < extra)
        if wanted >= len(where):
            raise InputError(
                f"data.validation_images = {count} takes {wanted} of class {label}, "
                f"which has {len(where)} images"
            )
        drawn.extend(generator.permutation(where)[:wanted].tolist())
    return torch.tensor(sorted(drawn), dtype=torch.int64)


def without(count: int, index: Iterable[int]) -> Tensor:
    """The indices below ``count`` that are not in ``index``, ascending."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[list(index)] = False
    return keep.nonzero()[:, 0]
