"""Folders of images that are too large for memory: decoded when they are needed.

Threads decode some batches ahead of the computation. Pillow releases the interpreter's lock while
it decodes and resizes, so that threads keep as many cores busy as processes would, and need no
copies, no pickling, no shared memory, and no second import of a user's code.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trueoracle.data.augmentation import crop_box, draw_crops
from trueoracle.data.splits import Split
from trueoracle.errors import InputError, first_line
from trueoracle.tasks.base import INPUT, TARGET, Batch

__all__ = [
    "BATCHES_AHEAD",
    "SUFFIXES",
    "Look",
    "StreamedSplit",
    "class_names",
    "decoding_threads",
    "in_colour",
    "look",
    "open_folder",
    "opened",
    "parts_of",
    "printable",
    "seconds_to_read",
]

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
"""The suffixes of image files; all other files are skipped."""

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may hold, whatever its name: of the formats that Pillow reads, some are programs
(EPS), which it would run."""

MOST_PIXELS = 178_956_970
"""The most pixels of an image that is decoded, which is Pillow's own limit, or to which it is
resized: a few bytes can say that they are more than there is memory for."""

BATCHES_AHEAD = 3
"""Batches that are decoded at a time: one is waited for, the others keep all threads busy."""

MOST_LOOKED_AT = 10_000
"""The most images whose headers are read before a study begins, which takes about a second."""

_CPU = torch.device("cpu")
_RESIZED = 256 / 224
"""The shorter side before the middle is cut out, relative to the image size: ImageNet's usual."""


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Images in files, and their classes; the same interface as an in-memory ``Split``.

    Images are handed out on ``device`` as float32 ``[N, 3, image_size, image_size]``, normalised by
    ``mean`` and ``std`` (one value per channel); grey ones get three equal channels. Without
    augmentation, the shorter side is resized to 256/224 of the image size (bilinear, antialiased),
    and the middle is cut out. ``names`` are paths below ``folder``; ``labels`` is int64 ``[N]``.
    ``threads`` is the number of threads that decode; None: one per core.
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
    def inputs(self) -> NoReturn:
        raise InputError(
            f"the {len(self):,} images in {self.folder} are streamed, not in memory: "
            "take(index) reads some of them, batches(size) all, one batch after the other"
        )

    @property
    def targets(self) -> Tensor:
        return self.labels

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {INPUT: (3, self.image_size, self.image_size), TARGET: ()}

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
        (batch,) = self._decoded([index], None, seed=0)
        return Split(batch)

    def batches(self, size: int) -> Iterator[Batch]:
        return self._decoded(torch.arange(len(self)).split(size), None, seed=0)

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[Batch]:
        return self._decoded(indices, resized_crop, seed)

    def add_to(self, digest: hashlib._Hash) -> None:
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            size = (self.folder / name).stat().st_size
            digest.update(os.fsencode(name) + f" {size} {label}\n".encode())  # any bytes, on Linux

    def _decoded(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[Batch]:
        """The batches of ``indices`` in order; threads decode the next ones meanwhile.

        Crops are drawn here, batch after batch, so that they do not depend on the threads' speed.
        """
        generator = torch.Generator().manual_seed(seed)
        threads = decoding_threads(self)
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
                yield {INPUT: self._normalised(pixels), TARGET: self.labels[index.to(self.device)]}
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
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path, size: int, crop: Sequence[float] | None, least_area: float) -> np.ndarray:
    """One image, cut and resized: uint8 ``[size, size, 3]``; an error names the file."""
    try:
        with opened(path) as file:
            _check_resized(*file.size, size)
            file.load()
            image = in_colour(file)
        if crop is None:
            return np.asarray(_middle(image, size))
        top, left, height, width = crop_box(crop, image.height, image.width, least_area)
        part = image.crop((left, top, left + width, top + height))
        return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # a damaged file brings Pillow to many kinds of error
        raise _unreadable(path, error) from error


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file of a usual format, not decoded yet; raises ``ValueError`` where it is huge."""
    with Image.open(path, formats=_FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"it has {image.width:,} × {image.height:,} pixels, more than {MOST_PIXELS:,}"
            )
        yield image


def _check_resized(width: int, height: int, size: int) -> None:
    if prod(_resized_shape(width, height, size)) > MOST_PIXELS:
        raise ValueError(f"it is {width:,} × {height:,} pixels: too narrow to be resized to {size}")


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{printable(path)} cannot be read as an image ({first_line(error)}): replace or remove it"
    )


def in_colour(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; Pillow's own conversion would turn 16-bit grey to white."""
    if image.mode == "F":  # Pillow would clip the values to whole numbers from 0 to 255
        raise ValueError("its pixels are floating-point numbers, whose range nothing tells")
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"its pixels are from {deep.min()} to {deep.max()}: beyond 16 bits")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized_shape(width: int, height: int, size: int) -> tuple[int, int]:
    """The width and height at which the shorter side is 256/224 of ``size``."""
    side = round(size * _RESIZED)
    other = int(side * max(width, height) / min(width, height))
    return (side, other) if width <= height else (other, side)


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The middle of the image, after its shorter side was resized to 256/224 of ``size``."""
    image = image.resize(_resized_shape(*image.size, size), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


# The memory and time that reading takes


@dataclass(frozen=True)
class Look:
    """What the headers of some images say; nothing is decoded.

    ``largest`` is the image that takes most memory to decode, ``largest_shape`` its width and
    height in pixels, ``largest_bytes`` that memory. ``at_once_bytes`` is the memory of the largest
    images, as many as are decoded at a time. ``pixels`` is the mean number of pixels of an image,
    ``typical`` an image that is near to this mean. ``losses`` says what in the files is lost when
    they are read.
    """

    images: int
    pixels: float
    typical: str
    typical_pixels: int
    largest: str
    largest_shape: tuple[int, int]
    largest_bytes: int
    at_once_bytes: int
    losses: tuple[str, ...]


def look(split: StreamedSplit) -> Look:
    """Read the headers of a split's images, or of an evenly spread part where there are many.

    Raises :class:`InputError`, which names the file, where one cannot be read.
    """
    step = max(1, len(split) / MOST_LOOKED_AT)
    names = [split.names[int(i * step)] for i in range(min(len(split), MOST_LOOKED_AT))]
    seen = [_header(split.folder / name, split.image_size) for name in names]
    order = sorted(range(len(seen)), key=lambda i: seen[i].needs)
    mean = sum(header.pixels for header in seen) / len(seen)
    largest = order[-1]
    typical = min(order, key=lambda i: abs(seen[i].pixels - mean))
    at_once = order[-decoding_threads(split) :]
    return Look(
        images=len(seen),
        pixels=mean,
        typical=names[typical],
        typical_pixels=seen[typical].pixels,
        largest=names[largest],
        largest_shape=(seen[largest].width, seen[largest].height),
        largest_bytes=seen[largest].needs,
        at_once_bytes=sum(seen[i].needs for i in at_once),
        losses=_losses(seen),
    )


def seconds_to_read(split: StreamedSplit, name: str) -> float:
    """Seconds in which one thread reads an image: the shorter of two times, or one slow time."""
    times: list[float] = []
    while not times or (len(times) < 2 and times[0] < 1):
        started = time.perf_counter()
        _read(split.folder / name, split.image_size, None, 1.0)
        times.append(time.perf_counter() - started)
    return min(times)


def decoding_threads(split: StreamedSplit) -> int:
    """How many images are decoded at a time."""
    return split.threads or _cores()


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    needs: int
    mode: str
    is_transparent: bool
    frames: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def printable(path: str | os.PathLike[str]) -> str:
    """A path for messages: bytes that are not UTF-8, which Linux allows, become ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _header(path: Path, size: int) -> _Header:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; here the memory that they take is computed instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with opened(path) as image:
                _check_resized(*image.size, size)
                resized = _BYTES["RGB"] * prod(_resized_shape(*image.size, size))
                return _Header(
                    *image.size,
                    needs=image.width * image.height * _bytes_a_pixel(image.mode) + resized,
                    mode=image.mode,
                    is_transparent=image.has_transparency_data,
                    frames=getattr(image, "n_frames", 1),
                )
    except Exception as error:  # as in _read
        raise _unreadable(path, error) from error


_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "RGB": 4}
"""Bytes that Pillow takes per pixel, by mode; all other modes take four."""


def _bytes_a_pixel(mode: str) -> int:
    own, colour = _BYTES.get(mode, 4), _BYTES["RGB"]
    if mode == "RGB":
        return own
    # The image, its array, and the shifted array; then 8-bit grey, twice.
    return (3 * own + 2 if mode.startswith("I") else own) + colour


def _losses(seen: Sequence[_Header]) -> tuple[str, ...]:
    found = (
        ("are transparent in parts, which are read as opaque", lambda h: h.is_transparent),
        ("have 16 bits, of which the upper 8 are read", lambda h: h.mode.startswith("I")),
        ("have several pictures, of which the first is read", lambda h: h.frames > 1),
    )
    counts = [(sum(map(test, seen)), what) for what, test in found]
    return tuple(f"images: {n:,} of {len(seen):,} {what}" for n, what in counts if n)


# Folders


def parts_of(path: Path) -> tuple[Path, Path]:
    """The folders of the training and the test images: ``train``, and ``val`` or ``test``."""
    found = [path / name for name in ("train", "val", "test") if (path / name).is_dir()]
    if len(found) < 2 or found[0].name != "train":
        raise InputError(
            f"{path} is no image folder: expected {path / 'train'} and {path / 'val'} (or test), "
            "each with one folder of images per class"
        )
    return found[0], found[1]


def class_names(path: Path) -> list[str]:
    """The classes of an image folder: the folders in ``train``, sorted.

    Raises :class:`InputError` where the test images have other classes.
    """
    train, test = parts_of(path)
    names, others = _folders(train), _folders(test)
    if not names:
        raise InputError(f"{train} has no folders: expected one per class, with its images")
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
            raise InputError(f"{printable(part / name)} holds no images ({', '.join(SUFFIXES)})")
        files += found
        labels += [label] * len(found)
    return tuple(files), labels


_Chain = tuple[tuple[int, int], "_Chain | None"]
"""A folder (device and inode), and the chain of the folders above it."""


def _images(part: Path, folder: str) -> Iterator[str]:
    """The images in a folder below ``part``, and in its subfolders at any depth."""
    try:
        waiting: list[tuple[str, _Chain]] = [(folder, (_identity(part / folder), None))]
        while waiting:
            inside, chain = waiting.pop()
            with os.scandir(part / inside) as found:
                entries = list(found)
            for entry in entries:
                name = f"{inside}/{entry.name}"
                if entry.name.startswith("."):  # such as files with macOS's metadata
                    continue
                if entry.is_dir():
                    identity = _identity(entry)
                    if _is_within(identity, chain):
                        raise InputError(
                            f"{printable(entry.path)} is a link to a folder that it lies in"
                        )
                    waiting.append((name, (identity, chain)))
                elif entry.name.lower().endswith(SUFFIXES):
                    if entry.stat().st_size == 0:
                        raise InputError(f"{printable(entry.path)} is empty: replace or remove it")
                    yield name
    except OSError as error:  # a broken link, or a folder without permission to read
        raise InputError(f"cannot read {printable(error.filename)}: {error.strerror}") from error


def _identity(folder: Path | os.DirEntry[str]) -> tuple[int, int]:
    found = Path(folder).stat()
    return found.st_dev, found.st_ino


def _is_within(identity: tuple[int, int], chain: _Chain | None) -> bool:
    while chain is not None:
        if chain[0] == identity:
            return True
        chain = chain[1]
    return False
