from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.formats import (
    Labelled,
    colours,
    expect,
    pack,
    real_images,
    write_cifar,
    write_idx,
)
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
        assert split.targets.bincount().tolist() == [each] * 10
        assert split.inputs.shape[1:] == (1, 32, 32)
    again = datasets.load("mnist-5k", validation_images=500, split_seed=0)
    assert again.fingerprint() == data.fingerprint()
    other = datasets.load("mnist-5k", validation_images=500, split_seed=1)
    assert other.fingerprint() != data.fingerprint()


def test_splits_share_no_image(digits: Splits) -> None:
    data = datasets.load("mnist-5k", validation_images=500, split_seed=0)
    rows = torch.cat([split.inputs.flatten(1) for _, split in data.named()])
    assert len(rows) == 5000
    # The 5,000 digits hold no duplicates, so that a shared image would show.
    assert len(torch.unique(rows, dim=0)) == 5000
    assert len(digits.train) == 4000


def test_pixels_are_normalised_by_mnists_mean_and_deviation(digits: Splits) -> None:
    black, white = -0.1307 / 0.3081, (1 - 0.1307) / 0.3081
    assert float(digits.train.inputs.min()) == pytest.approx(black)
    assert float(digits.train.inputs.max()) == pytest.approx(white)
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
    with pytest.raises(InputError, match=r"pip install '\.\[vision\]'"):
        datasets.load("mnist", validation_images=0, split_seed=0, folder=tmp_path)


def labelled(arrays: datasets.Arrays) -> Labelled:
    return [(image, int(label)) for image, label in zip(*arrays, strict=True)]


def some_digits() -> tuple[Labelled, Labelled]:
    """400 training and 100 test digits, as they are in files."""
    read = datasets.DATASETS["mnist-5k"].read
    assert read is not None
    train, test = (labelled(part) for part in read(Path()))
    return train[::10], test[::10]


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "class_name"),
    [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")],
)
def test_idx_files_placed_by_hand_are_read(
    tmp_path: Path, digits: Splits, name: str, class_name: str
) -> None:
    assert not datasets.at_hand(name, tmp_path)
    write_idx(tmp_path, class_name, *some_digits(), packed=False)
    assert datasets.at_hand(name, tmp_path)
    data = datasets.load(name, validation_images=100, split_seed=0, folder=tmp_path)
    assert {name: len(split) for name, split in data.named()} == {
        "train": 300,
        "validation": 100,
        "test": 100,
    }
    assert torch.equal(data.test.inputs, digits.test.inputs[::10])
    assert torch.equal(data.test.targets, digits.test.targets[::10])


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


def theirs(name: str) -> Any:
    from torchvision import datasets as of_torchvision

    return getattr(of_torchvision, name)


def no_network(name: str, patch: pytest.MonkeyPatch) -> None:
    """Downloads go to a port of this machine on which nothing listens."""
    dataset = theirs(name)
    if hasattr(dataset, "mirrors"):
        patch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/"])
    else:
        patch.setattr(dataset, "url", "http://127.0.0.1:9/cifar.tar.gz")


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "class_name", "files"),
    [("mnist", "MNIST", "mnist"), ("fashion-mnist", "FashionMNIST", "fashionMNIST")],
)
def test_real_images_packed_as_they_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, class_name: str, files: str
) -> None:
    images = real_images(files)
    write_idx(tmp_path, class_name, images[:12], images[12:], packed=True)
    expect(theirs(class_name), tmp_path, monkeypatch)
    no_network(class_name, monkeypatch)
    assert datasets.at_hand(name, tmp_path)
    data = datasets.load(name, validation_images=0, split_seed=0, folder=tmp_path, image_size=28)
    assert data.test.targets.tolist() == [label for _, label in images[12:]]
    pixels = np.stack([image for image, _ in images[:12]])[:, None] / 255
    torch.testing.assert_close(
        data.train.inputs, torch.from_numpy((pixels - 0.1307) / 0.3081).float()
    )


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [10, 100])
def test_cifars_batches_of_real_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    name = f"cifar{classes}"
    images = real_images(name)
    write_cifar(tmp_path, classes, images[:15], images[15:])
    expect(theirs(name.upper()), tmp_path, monkeypatch)
    no_network(name.upper(), monkeypatch)
    assert datasets.at_hand(name, tmp_path)
    data = datasets.load(name, validation_images=0, split_seed=0, folder=tmp_path)
    info = datasets.dataset_info(name)
    assert data.task.options() == {"classes": classes}
    assert data.image_shape == (3, 32, 32)
    assert data.test.targets.tolist() == [label for _, label in images[15:]]
    order = [i for first in range(5) for i in range(first, 15, 5)]
    order = order if classes == 10 else list(range(15))
    pixels = np.stack([images[i][0] for i in order]) / 255
    expected = torch.from_numpy((pixels - np.array(info.mean)) / np.array(info.std)).float()
    torch.testing.assert_close(data.train.inputs, expected.permute(0, 3, 1, 2))
    assert data.fill == pytest.approx([-m / s for m, s in zip(info.mean, info.std, strict=True)])
    smaller = datasets.load(name, validation_images=0, split_seed=0, folder=tmp_path, image_size=16)
    assert smaller.image_shape == (3, 16, 16)


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
def test_cifar_placed_by_hand_is_unpacked_and_damage_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"validation_images": 0, "split_seed": 0, "folder": tmp_path}
    images = colours(20, 32, 32)
    write_cifar(tmp_path, 10, images[:15], images[15:])
    expect(theirs("CIFAR10"), tmp_path, monkeypatch)
    no_network("CIFAR10", monkeypatch)
    base, archive = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz"
    pack(base, archive)
    monkeypatch.setattr(theirs("CIFAR10"), "tgz_md5", datasets._md5(archive))
    for path in base.iterdir():
        path.unlink()
    base.rmdir()
    assert datasets.at_hand("cifar10", tmp_path)
    assert len(datasets.load("cifar10", **options).train) == 15

    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    (base / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz is damaged .* in part \("):
        datasets.load("cifar10", **options)
    archive.unlink()
    assert not datasets.at_hand("cifar10", tmp_path)
    with pytest.raises(InputError, match=r"127\.0\.0\.1.* place cifar-10-python\.tar\.gz by hand"):
        datasets.load("cifar10", **options)
    (base / "data_batch_3").write_bytes(b"half")
    with pytest.raises(InputError, match=r"data_batch_3 is damaged .*\(4 bytes; its MD5 sum"):
        datasets.load("cifar10", **options)


@needs_torchvision
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_idx_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"validation_images": 0, "split_seed": 0, "folder": tmp_path}
    no_network("MNIST", monkeypatch)
    write_idx(tmp_path, "MNIST", *some_digits(), packed=False)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for broken, why in (
        (whole[:5000], r"5,000 bytes; its header says 78,416"),
        (whole[:7], "it ends within its header"),
        (b"<html>not found</html>", "does not begin as an IDX file"),
        (b"", "does not begin"),
    ):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=f"t10k-images-idx3-ubyte is damaged.*{why}"):
            datasets.load("mnist", **options)
    path.unlink()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz is damaged .*MD5"):
        datasets.load("mnist", **options)


def test_what_needs_no_download_is_at_hand(tiny_dataset: str, tmp_path: Path) -> None:
    assert datasets.at_hand("mnist-5k", tmp_path)
    assert datasets.at_hand(tiny_dataset, tmp_path)
    for name in ("mnist", "kmnist", "cifar10", "cifar100", "imagenet", "folder"):
        assert not datasets.at_hand(name, tmp_path)
    assert not datasets.at_hand("folder", path=str(tmp_path))
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    assert datasets.at_hand("folder", path=str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'cifar10"):
        datasets.at_hand("cifar")


def test_images_can_be_capped_and_resized() -> None:
    data = datasets.load(
        "mnist-5k",
        validation_images=20,
        split_seed=3,
        image_size=12,
        train_images=100,
        test_images=30,
    )
    sizes = {name: split.targets.bincount().tolist() for name, split in data.named()}
    assert sizes == {"train": [8] * 10, "validation": [2] * 10, "test": [3] * 10}
    assert data.image_shape == (1, 12, 12)
    other = datasets.load(
        "mnist-5k", validation_images=0, split_seed=4, image_size=12, train_images=100
    )
    assert not torch.equal(data.train.inputs[:8], other.train.inputs[:8])
    whole = datasets.load("mnist-5k", validation_images=0, split_seed=4, train_images=4000)
    assert torch.equal(whole.train.targets.bincount(), torch.full((10,), 400))


def test_train_loss_can_be_measured_in_part(digits: Splits) -> None:
    data = datasets.load("mnist-5k", validation_images=0, split_seed=0, measured_fraction=0.1)
    assert torch.equal(data.train.inputs, digits.train.inputs)
    named = dict(data.named())
    assert named["train"].targets.bincount().tolist() == [40] * 10
    assert data.measured_train is named["train"]
    rows = torch.cat([data.train.inputs, named["train"].inputs]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 4000  # all of them are training images
    again = datasets.load("mnist-5k", validation_images=0, split_seed=0, measured_fraction=0.1)
    assert torch.equal(again.measured_train.inputs, data.measured_train.inputs)
    assert data.fingerprint() != digits.fingerprint()
    assert digits.measured_in_part(1.0, seed=0) is digits
    assert digits.measured_train is digits.train
