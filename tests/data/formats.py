"""Small data sets in the real formats on disk, for the real readers."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import struct
import tarfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Labelled = list[tuple[np.ndarray, int]]
"""uint8 images ``[H, W]`` or ``[H, W, 3]`` and their classes."""


def real_files(name: str) -> list[tuple[Path, int]]:
    """The 20 labelled image files of a data set (such as ``cifar10``) inside foolbox's wheel."""
    try:
        files = metadata.files("foolbox") or []
    except metadata.PackageNotFoundError:
        pytest.skip("needs the images inside foolbox")
    pattern = re.compile(rf"foolbox/data/{name}_\d+_(\d+)\.(?:png|jpg)")
    matches = [(file, pattern.fullmatch(file.as_posix())) for file in files]
    found = sorted((Path(str(file.locate())), int(m[1])) for file, m in matches if m is not None)
    assert len(found) == 20
    return found


def real_images(name: str) -> Labelled:
    """The same, decoded."""
    images = []
    for path, label in real_files(name):
        with Image.open(path) as image:
            images.append((np.asarray(image), label))
    return images


def colours(count: int, height: int = 40, width: int = 56) -> Labelled:
    """Images of three classes, each mostly of one colour, no two alike."""
    generator = np.random.Generator(np.random.PCG64(0))
    images: Labelled = []
    for i in range(count):
        slope = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 30, height)[:, None, None]
        image = slope + generator.uniform(0, 60, 3)
        image[:, :, i % 3] += 100
        images.append((image.astype(np.uint8), i % 3))
    return images


def write_idx(
    folder: Path, class_name: str, train: Labelled, test: Labelled, *, packed: bool
) -> None:
    """MNIST's four files (big-endian IDX) where torchvision looks for them; packed: as ``.gz``."""
    raw = folder / class_name / "raw"
    raw.mkdir(parents=True)
    for part, images in (("train", train), ("t10k", test)):
        pixels = np.stack([image for image, _ in images])
        labels = np.array([label for _, label in images], dtype=np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            path = raw / f"{part}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(
                    gzip.compress(header + array.tobytes())
                )
            else:
                path.write_bytes(header + array.tobytes())


def write_cifar(folder: Path, classes: int, train: Labelled, test: Labelled) -> None:
    """CIFAR-10's or -100's pickled batches, in its folder."""
    names = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
    key = "labels" if classes == 10 else "fine_labels"
    batches: dict[str, Labelled] = {"train": train, "test": test}
    if classes == 10:
        batches = {f"data_batch_{i + 1}": train[i::5] for i in range(5)} | {"test_batch": test}
    base = folder / names[classes]
    base.mkdir(parents=True)
    for name, images in batches.items():
        rows = [image.transpose(2, 0, 1).reshape(-1) for image, _ in images]
        entry = {"data": np.stack(rows), key: [label for _, label in images]}
        (base / name).write_bytes(pickle.dumps(entry, protocol=2))
    words = {("label_names" if classes == 10 else "fine_label_names"): ["?"] * classes}
    meta = "batches.meta" if classes == 10 else "meta"
    (base / meta).write_bytes(pickle.dumps(words, protocol=2))


def pack(base: Path, archive: Path) -> None:
    """A folder into a ``.tar.gz``, as CIFAR is downloaded."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, arcname=base.name)


def expect(dataset: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let torchvision take the sums of the files in ``folder`` for the right ones."""

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    if hasattr(dataset, "resources"):
        raw = folder / dataset.__name__ / "raw"
        patch.setattr(dataset, "resources", [(n, md5(raw / n)) for n, _ in dataset.resources])
        return
    base = folder / dataset.base_folder
    for field in ("train_list", "test_list"):
        sums = [[name, md5(base / name)] for name, _ in getattr(dataset, field)]
        patch.setattr(dataset, field, sums)
    patch.setattr(dataset, "meta", dataset.meta | {"md5": md5(base / dataset.meta["filename"])})


def write_folder(
    path: Path, parts: Mapping[str, Iterable[tuple[np.ndarray, int]]], suffix: str = "jpeg"
) -> Path:
    """Images as files: ``path/PART/class N/0001.SUFFIX``."""
    for part, images in parts.items():
        for i, (image, label) in enumerate(images):
            file = path / part / f"class {label}" / f"{i:04d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return path
