"""Training, validation and test images: what every later stage reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trueoracle.data.augmentation import crop_box, cut_out, draw_crops
from trueoracle.data.reading import read_images, read_items, read_labels
from trueoracle.errors import InputError, first_line

__all__ = [
    "AnySplit",
    "Split",
    "Splits",
    "as_split",
    "as_splits",
    "capped",
    "fraction",
    "stratified",
]


class AnySplit(Protocol):
    """Images and their classes, in memory (:class:`Split`) or streamed (``StreamedSplit``)."""

    @property
    def images(self) -> Tensor:
        """All of them, float32 ``[N, C, H, W]``; :class:`InputError` where they are streamed."""

    @property
    def labels(self) -> Tensor:
        """Their classes, int64 ``[N]``, counted from 0."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image, ``(C, H, W)``."""

    @property
    def device(self) -> torch.device:
        """Where images and labels are handed out."""

    @property
    def is_streamed(self) -> bool:
        """Whether the images are read from files whenever they are needed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images and labels were read, where another reading was possible.

        Each goes on from the split's name, such as "images are uint8: read as they are".
        """

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The same, handed out on another device."""

    def select(self, index: Tensor) -> Self:
        """Some of the images, streamed where these are."""

    def take(self, index: Tensor) -> Split:
        """Some of the images in memory."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and labels in order, ``size`` at a time."""

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels of each of ``indices`` (int64 ``[N]``, on the CPU).

        Where ``resized_crop`` is given, a random part of at least that area is cut out of each
        image and resized; ``seed`` says which.
        """

    def add_to(self, digest: hashlib._Hash) -> None:
        """Let a hash know of every image and label."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes.

    ``images`` is float32 ``[N, C, H, W]`` (or any ``[N, ...]`` that the network takes), already
    normalised; ``labels`` is int64 ``[N]``, counted from 0. ``notes`` say how they were read, as
    :class:`AnySplit` has it.
    """

    images: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or len(self.labels) != len(self.images):
            raise InputError(
                f"labels must be [N], one class an image, for images [N, ...]: got labels "
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

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def is_streamed(self) -> bool:
        return False

    def to(self, device: torch.device) -> Split:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def select(self, index: Tensor) -> Split:
        return self.take(index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(size), self.labels.split(size), strict=True)

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for index in indices:
            batch = self.take(index.to(self.device))
            images = batch.images
            if resized_crop is not None:
                height, width = images.shape[2:]
                numbers = draw_crops(len(images), generator)
                images = cut_out(
                    images, [crop_box(one, height, width, resized_crop) for one in numbers]
                )
            yield images, batch.labels

    def add_to(self, digest: hashlib._Hash) -> None:
        digest.update(self.images.detach().cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.detach().cpu().contiguous().numpy().tobytes())


@dataclass(frozen=True, eq=False)
class Splits:
    """The training, validation and test splits of one data set.

    ``classes`` is the number of classes; ``fill`` (one value a channel) is what an image's
    outside looks like after normalisation, for shifts. ``validation`` may be absent. ``measured``
    is the part of the training images on which train loss is measured, where it is not all.
    """

    train: AnySplit
    validation: AnySplit | None
    test: AnySplit
    classes: int
    fill: tuple[float, ...] = field(default=(0.0,))
    measured: AnySplit | None = None

    def __post_init__(self) -> None:
        shape = self.train.image_shape
        if len(self.fill) not in (1, shape[0]):
            raise InputError(f"fill has {len(self.fill)} values for {shape[0]} channels")
        for name, split in self._distinct():
            if split.image_shape != shape:
                raise InputError(
                    f"{name} images are {list(split.image_shape)} but train images are "
                    f"{list(shape)}: all splits need one shape"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.classes:
                raise InputError(
                    f"labels out of range in the {name} split: found {low}…{high}, "
                    f"expected 0…{self.classes - 1} for {self.classes} classes"
                )
            if not split.is_streamed and not torch.isfinite(split.images).all():
                raise InputError(f"the {name} images hold values that are not finite")

    @property
    def measured_train(self) -> AnySplit:
        """The training images on which train loss is measured, before and after retraining."""
        return self.train if self.measured is None else self.measured

    @property
    def notes(self) -> list[str]:
        """How the splits were read, where another reading was possible: one line for each note."""
        names: dict[str, list[str]] = {}
        for name, split in self._distinct():
            if split is not self.measured:  # a part of the training images
                for note in split.notes:
                    names.setdefault(note, []).append(name)
        return [f"{', '.join(where)} {note}" for note, where in names.items()]

    def named(self) -> list[tuple[str, AnySplit]]:
        """What is evaluated, as (name, split), in the order train, validation, test.

        The first is :attr:`measured_train`; those that do not exist are left out.
        """
        found = [
            ("train", self.measured_train),
            ("validation", self.validation),
            ("test", self.test),
        ]
        return [(name, split) for name, split in found if split is not None]

    def _distinct(self) -> list[tuple[str, AnySplit]]:
        """Every split there is, as (name, split)."""
        also = [("measured", self.measured)] if self.measured is not None else []
        return [("train", self.train), *self.named()[1:], *also]

    def measured_in_part(self, share: float, seed: int) -> Splits:
        """The same, with train loss measured on a share (0 … 1) of each class's images."""
        if share == 1:
            return self
        return replace(
            self, measured=self.train.select(fraction(self.train.labels.cpu(), share, seed))
        )

    def to(self, device: torch.device) -> Splits:
        validation = None if self.validation is None else self.validation.to(device)
        measured = None if self.measured is None else self.measured.to(device)
        return replace(
            self,
            train=self.train.to(device),
            validation=validation,
            test=self.test.to(device),
            measured=measured,
        )

    def fingerprint(self) -> str:
        """SHA-256 over every image and label: the identity of data given in Python.

        Of streamed images, over the names and sizes of their files instead.
        """
        digest = hashlib.sha256(f"{self.classes} {self.fill}".encode())
        for name, split in self._distinct():
            digest.update(f"{name} {(len(split), *split.image_shape)}".encode())
            split.add_to(digest)
        return digest.hexdigest()


def as_split(data: AnySplit | tuple[Tensor, Tensor] | Dataset[Any]) -> AnySplit:
    """A split from a ``(images, labels)`` tuple of tensors or from a map-style ``Dataset``.

    A ``Dataset`` is read through once, so its transforms are applied once: leave random ones out.
    Raises :class:`InputError` where items are not ``(image tensor, label)``, and where float32
    images and int64 labels do not hold the numbers that are given.
    """
    if hasattr(data, "is_streamed"):  # a split already
        return cast(AnySplit, data)
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise InputError(
                f"expected (images, labels), got a {type(data).__name__} of {len(data)}"
            )
        images, image_note = read_images(data[0])
        labels, label_note = read_labels(data[1])
        return Split(images, labels, tuple(filter(None, [image_note, label_note])))
    try:
        items = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    except Exception as error:  # a user's Dataset runs: anything can come out
        raise InputError(
            "a split must be (images, labels), or a Dataset with a length whose items are "
            f"(image tensor, label): {type(error).__name__}: {first_line(error)}"
        ) from error
    return Split(*read_items(items))


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
    Raises :class:`InputError` where a class would have no image left.
    """
    places = _by_class(labels)
    shares = _even_shares(count, len(places))
    for (label, where), wanted in zip(places.items(), shares, strict=True):
        if wanted >= len(where):
            raise InputError(
                f"data.validation_images = {count} takes {wanted} of class {label}, "
                f"which has {len(where)} images"
            )
    return _draw(places, shares, seed)


def capped(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of a draw of at most ``count`` images with equal shares of each class, ascending.

    A class that has fewer gives all that it has; the others do not give more for it.
    """
    places = _by_class(labels)
    if count >= len(labels):
        return torch.arange(len(labels))
    shares = _even_shares(count, len(places))
    most = [min(s, len(where)) for s, where in zip(shares, places.values(), strict=True)]
    return _draw(places, most, seed)


def fraction(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices of a draw of one ``share`` of every class's images, at least one, ascending."""
    places = _by_class(labels)
    return _draw(places, [max(1, round(share * len(where))) for where in places.values()], seed)


def _by_class(labels: Tensor) -> dict[int, np.ndarray]:
    """Where the images of each class are, ascending."""
    order = labels.argsort(stable=True).numpy()
    classes, counts = labels.unique(return_counts=True)
    ends = counts.cumsum(0)[:-1].tolist()
    return dict(zip(classes.tolist(), np.split(order, ends), strict=True))


def _even_shares(count: int, classes: int) -> list[int]:
    share, extra = divmod(count, classes)
    return [share + (position < extra) for position in range(classes)]


def _draw(places: dict[int, np.ndarray], counts: Sequence[int], seed: int) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn: list[int] = []
    for where, count in zip(places.values(), counts, strict=True):
        drawn.extend(generator.permutation(where)[:count].tolist())
    return torch.tensor(sorted(drawn), dtype=torch.int64)


def without(count: int, index: Iterable[int]) -> Tensor:
    """The indices below ``count`` that are not in ``index``, ascending."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[list(index)] = False
    return keep.nonzero()[:, 0]
