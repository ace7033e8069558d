"""Folders of images that are too large for memory: decoded when they are needed.

Threads decode, some batches ahead of the computation. Pillow lets go of the interpreter while it
decodes and resizes, so that threads keep as many cores busy as processes would, and need no copies,
no pickling, no shared memory, and no second import of a user's code.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trueoracle.data.augmentation import crop_box, draw_crops
from trueoracle.data.splits import Split
from trueoracle.errors import InputError, first_line

__all__ = ["SUFFIXES", "StreamedSplit", "class_names", "open_folder", "parts_of"]

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
"""Files that are images; all others are passed over."""

BATCHES_AHEAD = 3
"""Batches being decoded at a time: one is waited for, the others keep all threads busy."""

_CPU = torch.device("cpu")
_RESIZED = 256 / 224
"""The shorter side before the middle is cut out, over the image size: as usual for ImageNet."""


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Images in files, and their classes; the same interface as an in-memory ``Split``.

    Images are handed out on ``device`` as float32 ``[N, 3, image_size, image_size]``, normalised by
    ``mean`` and ``std`` (one value a channel); grey ones get three equal channels. Without
    augmentation the shorter side is resized to 256/224 of the image size (bilinear, antialiased),
    and the middle cut out. ``names`` are paths below ``folder``; ``labels`` is int64 ``[N]``.
    ``threads`` decode at a time; None: one a core.
    """

    folder: Path
    names: tuple[str, ...]
    labels: Tensor
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device = _CPU
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.labels):
            raise InputError(
                f"a streamed split needs a label for each of at least one image, got "
                f"{len(self.labels)} for {len(self.names)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> NoReturn:
        raise InputError(
            f"the {len(self):,} images in {self.folder} are streamed, not in memory: "
            "take(index) reads some of them, batches(size) all, one batch after the other"
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def is_streamed(self) -> bool:
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def to(self, device: torch.device) -> StreamedSplit:
        return replace(self, labels=self.labels.to(device), device=device)

    def select(self, index: Tensor) -> StreamedSplit:
        names = tuple(self.names[i] for i in index.tolist())
        return replace(self, names=names, labels=self.labels[index.to(self.device)])

    def take(self, index: Tensor) -> Split:
        ((images, labels),) = self._decoded([index], None, seed=0)
        return Split(images, labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._decoded(torch.arange(len(self)).split(size), None, seed=0)

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self._decoded(indices, resized_crop, seed)

    def add_to(self, digest: hashlib._Hash) -> None:
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            size = (self.folder / name).stat().st_size
            digest.update(f"{name} {size} {label}\n".encode())

    def _decoded(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of ``indices`` in order; threads decode the next ones meanwhile.

        Crops are drawn here, batch after batch, so that they depend on no thread's pace.
        """
        generator = torch.Generator().manual_seed(seed)
        threads = self.threads or _cores()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        ahead: deque[tuple[Tensor, Tensor, list[Future[None]]]] = deque()

        def start(index: Tensor) -> None:
            crops: Sequence[Sequence[float] | None] = [None] * len(index)
            if resized_crop is not None:
                crops = draw_crops(len(index), generator)
            # Pinned memory is copied to a GPU while it computes.
            pixels = torch.empty(
                (len(index), self.image_size, self.image_size, 3),
                dtype=torch.uint8,
                pin_memory=self.device.type == "cuda",
            )
            rows, places = pixels.numpy(), index.tolist()

            def decode(position: int) -> None:
                path = self.folder / self.names[places[position]]
                rows[position] = _read(path, self.image_size, crops[position], resized_crop or 1.0)

            ahead.append((index, pixels, [pool.submit(decode, i) for i in range(len(index))]))

        try:
            waiting = iter(indices)
            for index in waiting:
                start(index)
                if len(ahead) == BATCHES_AHEAD:
                    break
            while ahead:
                index, pixels, decoded = ahead.popleft()
                for one in decoded:
                    one.result()
                for following in waiting:
                    start(following)
                    break
                yield self._normalised(pixels), self.labels[index.to(self.device)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 ``[N, H, W, 3]`` to normalised float32 ``[N, 3, H, W]`` on the device."""
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # no macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path, size: int, crop: Sequence[float] | None, least_area: float) -> np.ndarray:
    """One image, cut and resized: uint8 ``[size, size, 3]``; an error names the file."""
    try:
        with Image.open(path) as opened:
            image = _in_colour(opened)
        if crop is None:
            return np.asarray(_middle(image, size))
        top, left, height, width = crop_box(crop, image.height, image.width, least_area)
        part = image.crop((left, top, left + width, top + height))
        return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # a damaged file brings Pillow to many kinds of error
        raise InputError(
            f"{path} cannot be read as an image ({first_line(error)}): replace or remove it"
        ) from error


def _in_colour(image: Image.Image) -> Image.Image:
    """Red, green and blue of 8 bits; Pillow itself would turn 16 bits of grey to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(
            (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        )
    return image.convert("RGB")


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to 256/224 of ``size``, and the middle of that."""
    shorter, longer = sorted(image.size)
    side = round(size * _RESIZED)
    other = int(side * longer / shorter)
    shape = (side, other) if image.width <= image.height else (other, side)
    image = image.resize(shape, Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


# Folders


def parts_of(path: Path) -> tuple[Path, Path]:
    """The folders of the training and of the test images: ``train``, and ``val`` or ``test``."""
    found = [path / name for name in ("train", "val", "test") if (path / name).is_dir()]
    if len(found) < 2 or found[0].name != "train":
        raise InputError(
            f"{path} is no image folder: expected {path / 'train'} and {path / 'val'} (or test), "
            "each with one folder of images a class"
        )
    return found[0], found[1]


def class_names(path: Path) -> list[str]:
    """The classes of an image folder: the folders in ``train``, sorted.

    Raises :class:`InputError` where the test images have other classes.
    """
    train, test = parts_of(path)
    names, others = _folders(train), _folders(test)
    if not names:
        raise InputError(f"{train} has no folders: expected one a class, with its images")
    if different := sorted(set(names) ^ set(others)):
        here, there = (train, test) if different[0] in names else (test, train)
        raise InputError(
            f"class {different[0]!r} is in {here} but not in {there}: both need the same folders"
        )
    return names


def open_folder(
    path: Path,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[StreamedSplit, StreamedSplit]:
    """The training and the test images of an image folder; nothing is decoded yet.

    Classes are numbered in the order of their folders' names. Raises :class:`InputError` for a
    class without images, and for an empty file.
    """
    names = class_names(path)
    train, test = (
        StreamedSplit(part, files, torch.tensor(labels), image_size, mean, std)
        for part, (files, labels) in ((part, _list(part, names)) for part in parts_of(path))
    )
    return train, test


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _list(part: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """The images of all classes, as paths below ``part`` in order, and their classes."""
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(part, name))
        if not found:
            raise InputError(f"{part / name} holds no images ({', '.join(SUFFIXES)})")
        files += found
        labels += [label] * len(found)
    return tuple(files), labels


def _images(part: Path, folder: str) -> Iterator[str]:
    """The images in a folder below ``part``, and in folders within it."""
    try:
        with os.scandir(part / folder) as found:
            entries = list(found)
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.name.startswith("."):  # such as macOS's own notes on files
                continue
            if entry.is_dir():
                yield from _images(part, name)
            elif entry.name.lower().endswith(SUFFIXES):
                if entry.stat().st_size == 0:
                    raise InputError(f"{entry.path} is empty: replace or remove it")
                yield name
    except OSError as error:  # a link to nothing, a folder that may not be read
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
