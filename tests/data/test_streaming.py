"""Image folders: read as they are needed, and the same as if they were in memory."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.data.formats import colours, real_files, write_folder
from trueoracle.criteria.shared import evaluate_all, evaluate_each
from trueoracle.data import datasets, streaming
from trueoracle.data.given import as_splits
from trueoracle.data.splits import Split, Splits
from trueoracle.data.streaming import StreamedSplit
from trueoracle.engines import native
from trueoracle.engines.choose import plan, train_population
from trueoracle.errors import InputError
from trueoracle.networks.mlp import mlp
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.walk import find_groups
from trueoracle.study import Study
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate
from trueoracle.training.loop import batches, train
from trueoracle.training.recipe import Recipe

SIZE = 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = colours(42)
    return write_folder(tmp_path / "images", {"train": images[:30], "val": images[30:]})


@pytest.fixture
def data(folder: Path) -> Splits:
    return load(folder)


def load(folder: Path, **options: float) -> Splits:
    settings = {"validation_images": 0, "split_seed": 0, "image_size": SIZE} | options
    return datasets.load("folder", path=str(folder), **settings)  # type: ignore[arg-type]


def streamed(split: object) -> StreamedSplit:
    assert isinstance(split, StreamedSplit)
    return split


def in_memory(data: Splits) -> Splits:
    """The same images, decoded."""
    train, test = (s.take(torch.arange(len(s))) for s in (data.train, data.test))
    return Splits(train, None, test, data.task, data.fill)


def test_classes_are_the_folders_in_order(folder: Path) -> None:
    info = datasets.dataset_info("folder", path=str(folder), image_size=SIZE)
    assert info.classes == 3
    assert info.shape == (3, SIZE, SIZE)
    (folder / "train" / "class 0" / "notes.txt").write_text("no image")
    (folder / "train" / "class 0" / "._0000.jpeg").write_bytes(b"no image either")
    deeper = folder / "train" / "class 2" / "more"
    deeper.mkdir()
    (folder / "train" / "class 2" / "0002.jpeg").rename(deeper / "0002.JPEG")
    data = load(folder)
    assert data.train.targets.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert data.test.targets.bincount().tolist() == [4, 4, 4]
    assert data.task.options() == {"classes": 3}
    assert data.image_shape == (3, SIZE, SIZE)
    assert streamed(data.train).names[-1] == "class 2/more/0002.JPEG"
    assert sorted(data.train.take(torch.arange(30)).targets.tolist()) == data.train.targets.tolist()


def test_test_images_may_lie_in_a_folder_test(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    assert len(load(folder).test) == 12


def test_an_image_is_resized_cut_and_normalised(tmp_path: Path) -> None:
    """Each step anew, by hand; wide, tall and grey images."""
    generator = np.random.Generator(np.random.PCG64(1))
    images = [
        (generator.integers(0, 256, shape, dtype=np.uint8), 0)
        for shape in ((40, 61, 3), (57, 33, 3), (32, 32, 3), (50, 41))
    ]
    path = write_folder(tmp_path, {"train": images, "val": images}, suffix="png")
    data = datasets.load("folder", path=str(path), image_size=28, validation_images=0, split_seed=0)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for (pixels, _), found in zip(images, data.train.take(torch.arange(4)).inputs, strict=True):
        image = Image.fromarray(pixels).convert("RGB")
        height, width = pixels.shape[:2]
        new = (32, height * 32 // width) if width <= height else (width * 32 // height, 32)
        resized = np.asarray(image.resize(new, Image.Resampling.BILINEAR))
        top, left = round((new[1] - 28) / 2), round((new[0] - 28) / 2)
        part = resized[top : top + 28, left : left + 28] / 255
        expected = torch.tensor((part - mean) / std).permute(2, 0, 1).float()
        torch.testing.assert_close(found, expected)


def test_it_is_what_torchvision_makes_of_real_images(tmp_path: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
    usual = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    )
    files = real_files("imagenet")
    for part in ("train", "val"):
        for path, label in files:
            (tmp_path / part / f"n{label:08d}").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / part / f"n{label:08d}" / path.name)
    data = datasets.load("folder", path=str(tmp_path), validation_images=0, split_seed=0)
    train = streamed(data.train)
    some = train.take(torch.arange(6))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (train.mean, train.std))
    assert data.task.options() == {"classes": 19}
    labels = sorted({label for _, label in files})
    for name, image, label in zip(train.names, some.inputs, some.targets.tolist(), strict=False):
        with Image.open(train.folder / name) as opened:
            expected = usual(opened.convert("RGB"))
        torch.testing.assert_close(image * std + mean, expected, atol=1e-6, rtol=0)
        assert name.startswith(f"n{labels[label]:08d}")


def test_threads_and_batches_change_nothing(data: Splits) -> None:
    split = streamed(data.train)
    indices = torch.randperm(30).split(7)
    for crop in (None, 0.2):
        one, many = (
            list(replace(split, threads=n).training_batches(indices, crop, seed=3)) for n in (1, 5)
        )
        assert [len(batch["target"]) for batch in one] == [7, 7, 7, 7, 2]
        assert all(torch.equal(a["input"], b["input"]) for a, b in zip(one, many, strict=True))
        assert all(torch.equal(a["target"], b["target"]) for a, b in zip(one, many, strict=True))
        other = next(iter(split.training_batches(indices, crop, seed=4)))
        assert torch.equal(other["input"], one[0]["input"]) == (crop is None)
    whole = split.take(torch.arange(30))
    again = list(split.batches(4))
    assert torch.equal(torch.cat([batch["input"] for batch in again]), whole.inputs)
    assert torch.equal(torch.cat([batch["target"] for batch in again]), whole.targets)


def test_random_parts_come_from_the_whole_image(tmp_path: Path) -> None:
    """Not from the middle that is left of it for evaluation."""
    image = np.zeros((64, 128, 3), dtype=np.uint8)
    image[:, :8] = 255
    path = write_folder(tmp_path, {"train": [(image, 0)], "val": [(image, 0)]}, suffix="png")
    data = load(path)
    dark = data.train.take(torch.tensor([0])).inputs.max()
    index = [torch.zeros(40, dtype=torch.int64)]
    (batch,) = data.train.training_batches(index, 0.1, seed=0)
    bright = (batch["input"].amax((1, 2, 3)) > dark + 1).sum()
    assert 0 < int(bright) < 40


def test_stopping_early_leaves_no_threads_waiting(data: Splits) -> None:
    iterator = data.train.batches(2)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert len(list(data.train.batches(30))) == 1


def test_a_damaged_image_is_named(folder: Path) -> None:
    victim = folder / "train" / "class 1" / "0004.jpeg"
    victim.write_bytes(victim.read_bytes()[:-200])
    data = load(folder)  # found when it is read: opening a million files takes too long
    with pytest.raises(InputError, match=r"class 1/0004\.jpeg cannot be read as an image \(.+\)"):
        evaluate(mlp((3, SIZE, SIZE), 3, hidden=(4,)), data.train, Classification(10))
    victim.write_text("no image at all")
    with pytest.raises(InputError, match=r"class 1/0004\.jpeg cannot be read"):
        data.train.take(torch.arange(30))
    victim.write_bytes(b"")
    with pytest.raises(InputError, match=r"class 1/0004\.jpeg is empty"):
        load(folder)


def test_folders_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set 'folder' needs data\.path"):
        datasets.load("folder", validation_images=0, split_seed=0)
    with pytest.raises(InputError, match=r"nowhere is no image folder: expected .*nowhere/train"):
        load(tmp_path / "nowhere")
    extra = folder / "train" / "class 11"
    extra.mkdir()
    with pytest.raises(InputError, match=r"class 'class 11' is in .*train but not in .*val"):
        load(folder)
    (folder / "val" / "class 11").mkdir()
    with pytest.raises(InputError, match=r"class 11 holds no images \(\.jpeg, "):
        load(folder)
    with pytest.raises(InputError, match=r"data\.path = '.*' is for image folders"):
        datasets.load("mnist-5k", path=str(folder), validation_images=0, split_seed=0)


def test_imagenet_has_a_thousand_classes(folder: Path, tmp_path: Path) -> None:
    options = {"validation_images": 0, "split_seed": 0}
    with pytest.raises(InputError, match=r"3 classes, and ImageNet-1K 1000: .* 'folder'"):
        datasets.load("imagenet", path=str(folder), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data/imagenet .*https://image-net\.org.*n01440764"):
        datasets.load("imagenet", folder=tmp_path / "data", **options)  # type: ignore[arg-type]
    assert not datasets.at_hand("imagenet", tmp_path / "data")
    image = next((folder / "train" / "class 0").iterdir()).read_bytes()
    for part in ("train", "val"):
        for i in range(1000):
            path = tmp_path / "data" / "imagenet" / part / f"n{i:08d}"
            path.mkdir(parents=True)
            (path / "ILSVRC2012_1.JPEG").write_bytes(image)
    assert datasets.at_hand("imagenet", tmp_path / "data")
    data = datasets.load("imagenet", folder=tmp_path / "data", test_images=20, **options)  # type: ignore[arg-type]
    assert (len(data.train), len(data.test), data.task.options()) == (1000, 20, {"classes": 1000})
    assert data.test.take(torch.tensor([0])).inputs.shape == (1, 3, 224, 224)


def test_all_images_at_once_are_refused_with_what_to_use(data: Splits) -> None:
    with pytest.raises(InputError, match=r"30 images in .* are streamed.*take\(index\)"):
        _ = data.train.inputs


def test_streamed_splits_can_be_given_to_a_study(data: Splits) -> None:
    given = as_splits((data.train, data.test))
    assert given.train is data.train
    assert given.task.options() == {"classes": 3}


def test_a_fingerprint_sees_names_sizes_and_labels(folder: Path) -> None:
    before = load(folder).fingerprint()
    assert load(folder).fingerprint() == before
    file = folder / "val" / "class 0" / "0000.jpeg"
    file.write_bytes(file.read_bytes() + b"\0")
    assert load(folder).fingerprint() != before


def test_training_is_that_on_images_in_memory(data: Splits) -> None:
    """To the bit, but for random crops, which are cut from the files' whole images."""
    recipe = Recipe(epochs=2, batch_size=8, shift=2, flip=True, mixup=0.4)
    networks = []
    records = []
    for splits in (data, in_memory(data)):
        torch.manual_seed(0)
        networks.append(mlp((3, SIZE, SIZE), 3, hidden=(6,)))
        records.append(train(networks[-1], splits, recipe, seed=1))
    assert repr(records[0]) == repr(records[1])
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_wide_populations_share_what_is_decoded(data: Splits) -> None:
    recipe = Recipe(epochs=2, batch_size=8, resized_crop=0.3, flip=True, learning_rate=0.005)
    torch.manual_seed(0)
    networks: list[nn.Module] = [mlp((3, SIZE, SIZE), 3, hidden=(6,)) for _ in range(2)]
    alone = mlp((3, SIZE, SIZE), 3, hidden=(6,))
    alone.load_state_dict(networks[1].state_dict())
    found = train_population(networks, [(0, "")] * 2, data, recipe, engine="wide")
    expected = train(alone, data, recipe, seed=0)
    for one, other in zip(found[1], expected, strict=True):
        assert one.values["test_loss"] == pytest.approx(other.values["test_loss"], abs=1e-5)
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)
    assert native.refusal(alone, data, recipe) is not None
    chosen = plan(alone, data, recipe, members=4, engine="loop")
    assert chosen.engine == "loop"


def test_criteria_score_streamed_images(data: Splits) -> None:
    torch.manual_seed(0)
    network = mlp((3, SIZE, SIZE), 3, hidden=(6, 5)).eval()
    candidates = list_candidates(
        find_groups(network, torch.rand(2, 3, SIZE, SIZE)), {"fc1": 0.5}, count="all"
    )
    expected = evaluate_each(network, candidates, in_memory(data).train, data.task)
    assert len(expected) == 20
    np.testing.assert_allclose(
        evaluate_all(network, candidates, data.train, data.task), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        evaluate_each(network, candidates, data.train, data.task), expected, rtol=1e-6
    )


def test_a_study_of_a_folder_of_ones_own(folder: Path, tmp_path: Path) -> None:
    study = Study(
        name="colours",
        runs=tmp_path / "runs",
        network={"name": "mlp", "arguments": {"hidden": (4,)}},
        data={
            "name": "folder",
            "path": str(folder),
            "image_size": SIZE,
            "validation_images": 6,
            "train_images": 27,
            "measured_fraction": 0.5,
        },
        dense={"epochs": 6, "batch_size": 7, "learning_rate": 0.02, "resized_crop": 0.5},
        pruning={"layers": {"fc1": 0.5}},
        retraining={"epochs": 1, "batch_size": 7, "seeds": [0], "flip": True},
    )
    prepared = study.prepare(device="cpu")
    sizes = {name: len(split) for name, split in prepared.data.named()}
    # Half of the 7 images that each class is left with, rounded to even.
    assert sizes == {"train": 12, "validation": 6, "test": 12}
    assert len(prepared.data.train) == 21
    results = study.run(progress=False, device="cpu")
    assert results.finished
    expected = evaluate_each(
        results_network(study),
        prepared.candidates,
        prepared.data.measured_train,
        prepared.data.task,
    )
    found = results.points("oracle")["score"].to_numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-5)


def results_network(study: Study) -> nn.Module:
    from trueoracle.networks.weights import load_weights
    from trueoracle.record.paths import DENSE

    network = study.prepare(device="cpu").network
    load_weights(network, study.folder / DENSE)
    return network.eval()


def test_batches_are_common_within_a_seed(data: Splits) -> None:
    recipe = Recipe(batch_size=8, resized_crop=0.2, flip=True)
    first, again, other = (
        [batch["input"] for batch in batches(data, recipe, seed, 2)] for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert isinstance(data.train.take(torch.tensor([0])), Split)


def test_what_is_in_a_folder_is_part_of_the_study(folder: Path, tmp_path: Path) -> None:
    def study(name: str) -> Study:
        return Study(
            name=name,
            runs=tmp_path / "runs",
            network={"name": "mlp", "arguments": {"hidden": (4,)}},
            data={
                "name": "folder",
                "path": str(folder),
                "image_size": SIZE,
                "validation_images": 0,
            },
            dense={"epochs": 1, "batch_size": 16},
            pruning={"layers": {"fc1": 0.5}},
            retraining={"epochs": 1, "batch_size": 16, "seeds": [0]},
        )

    before = study("mine").run(progress=False, device="cpu")
    victim = next((folder / "train" / "class 1").iterdir())
    victim.rename(victim.with_name("another.jpeg"))
    with pytest.raises(InputError, match="what is in the folder of data set 'folder' has changed"):
        study("mine").run(progress=False, device="cpu")
    beside = study("beside").run(progress=False, device="cpu")
    assert before.dense is not None
    assert beside.dense is not None
    assert beside.dense["origin"] == "trained"
    victim.with_name("another.jpeg").rename(victim)
    assert study("mine").run(progress=False, device="cpu").finished


def test_sixteen_bits_of_grey_keep_their_shades(folder: Path) -> None:
    ramp = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    path = folder / "train" / "class 1" / "deep.png"
    Image.fromarray(ramp).save(path)
    read = streaming._read(path, SIZE, None, 1.0)
    assert read.min() < 40
    assert read.max() > 215
    assert 110 < read.mean() < 145


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    (folder / "train" / "class 1" / "gone.jpeg").symlink_to(folder / "nowhere.jpeg")
    with pytest.raises(InputError, match=r"cannot read .*gone\.jpeg: No such file"):
        load(folder)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def test_names_may_be_any_bytes(folder: Path) -> None:
    """Linux takes them; those that are no UTF-8 are read, told apart and named in errors."""
    before = load(folder).fingerprint()
    for part in ("train", "val"):
        (folder / part / "class 2").rename(folder / part / os.fsdecode(b"class \xff"))
    odd = folder / "train" / os.fsdecode(b"class \xff") / os.fsdecode(b"n\xe9w.png")
    save(odd, colours(1)[0][0])
    data = load(folder)
    assert len(data.train) == 31
    assert data.train.take(torch.tensor([30])).inputs.shape == (1, 3, SIZE, SIZE)
    assert data.fingerprint() != before
    odd.write_text("no image")
    with pytest.raises(InputError, match=r"class \\xff/n\\xe9w\.png cannot be read") as caught:
        data.train.take(torch.tensor([30]))
    assert "\n" not in str(caught.value)


def test_a_folder_may_be_a_thousand_levels_deep(folder: Path) -> None:
    deep = folder / "train" / "class 1"
    levels = [deep := deep / "d" for _ in range(1000)]
    for level in levels:
        level.mkdir()
    save(deep / "x.png", colours(1)[0][0])
    data = load(folder)
    assert len(data.train) == 31
    assert data.train.take(torch.arange(31)).targets.bincount().tolist() == [10, 11, 10]
    (deep / "x.png").unlink()
    for level in reversed(levels):  # what removes folders after a test does not go so deep
        level.rmdir()


def test_a_link_back_is_named(folder: Path) -> None:
    inner = folder / "train" / "class 1" / "inner"
    inner.mkdir()
    (inner / "back").symlink_to(folder / "train" / "class 1")
    with pytest.raises(InputError, match=r"inner/back is a link to a folder that it lies in"):
        load(folder)
    (inner / "back").unlink()
    (inner / "elsewhere").symlink_to(folder / "val" / "class 1")
    assert len(load(folder).train) == 34


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((20, 20), 0.5, dtype=np.float32), "floating-point numbers"),
        (np.full((20, 20), 70_000, dtype=np.int32), "from 70000 to 70000: beyond 16 bits"),
        (np.full((20, 20), -1, dtype=np.int32), "from -1 to -1: beyond 16 bits"),
    ],
)
def test_pixels_that_would_be_cut_are_refused(
    folder: Path, pixels: np.ndarray, message: str
) -> None:
    path = save(folder / "train" / "class 1" / "odd.tif", pixels)
    with pytest.raises(InputError, match=rf"odd\.tif cannot be read as an image \(.*{message}"):
        streaming._read(path, SIZE, None, 1.0)


def test_what_is_left_out_of_images_is_said(folder: Path) -> None:
    pixels = colours(1)[0][0]
    within = folder / "train" / "class 1"
    seen = streaming.look(streamed(load(folder).train))
    assert seen.losses == ()
    save(within / "a.png", np.dstack([pixels, pixels[:, :, :1]]))
    save(within / "b.png", pixels[:, :, 0].astype(np.uint16))
    more = [Image.fromarray(pixels), Image.fromarray(pixels[::-1])]
    more[0].save(within / "c.tif", save_all=True, append_images=more[1:])
    assert streaming.look(streamed(load(folder).train)).losses == (
        "images: 1 of 33 are transparent in parts, which are read as opaque",
        "images: 1 of 33 have 16 bits, of which the upper 8 are read",
        "images: 1 of 33 have several pictures, of which the first is read",
    )


def test_a_look_finds_what_takes_most_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = replace(streamed(load(folder).train), threads=2)
    seen = streaming.look(split)
    # 40 x 56 pixels of four bytes, and the same with a shorter side of 16.
    small = 4 * 40 * 56 + 4 * 16 * int(16 * 56 / 40)
    assert (seen.images, seen.pixels, seen.typical_pixels) == (30, 40 * 56, 40 * 56)
    assert (seen.largest_bytes, seen.at_once_bytes) == (small, 2 * small)
    thin = save(folder / "val" / "class 0" / "thin.png", np.zeros((1, 5000, 3), dtype=np.uint8))
    grey = save(folder / "val" / "class 0" / "grey.png", np.zeros((300, 200), dtype=np.uint8))
    test = replace(streamed(load(folder).test), threads=2)
    seen = streaming.look(test)
    # Made as wide as it is thin.
    thin_bytes = 4 * 5000 + 4 * 16 * (16 * 5000)
    grey_bytes = 5 * 300 * 200 + 4 * 16 * 24
    assert (seen.largest, seen.largest_shape) == ("class 0/thin.png", (5000, 1))
    assert (seen.largest_bytes, seen.at_once_bytes) == (thin_bytes, thin_bytes + grey_bytes)
    monkeypatch.setattr(streaming, "MOST_LOOKED_AT", 7)
    assert streaming.look(split).images == 7
    thin.unlink()
    grey.write_text("no image")
    monkeypatch.setattr(streaming, "MOST_LOOKED_AT", 100)
    with pytest.raises(InputError, match=r"grey\.png cannot be read as an image"):
        streaming.look(streamed(load(folder).test))
