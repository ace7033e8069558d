"""What memory a study needs is computed, and refused where it is not there, before anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.data.formats import colours, write_folder
from trueoracle.data import datasets, streaming
from trueoracle.data.splits import Splits
from trueoracle.engines import choose
from trueoracle.engines.choose import plan
from trueoracle.engines.memory import readable_bytes, training_bytes
from trueoracle.errors import InputError
from trueoracle.run import footprint, prepare, trials
from trueoracle.run.footprint import held_bytes, part_sizes
from trueoracle.run.material import list_study
from trueoracle.spec.file import spec_from
from trueoracle.spec.spec import DataSpec
from trueoracle.study import Study
from trueoracle.tasks.classification import Classification
from trueoracle.training.recipe import Recipe

FIELDS: dict[str, Any] = {
    "name": "large",
    "network": {"name": "lenet5-mini"},
    "data": {"name": "mnist-5k"},
    "pruning": {"layers": {"conv1": 0.1}},
    "criteria": ["l1"],
}


TASK = Classification(10)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that so many bytes are free."""

    def pretend(count: int) -> None:
        for module in (footprint, choose):
            monkeypatch.setattr(module, "available_memory", lambda _: count)

    return pretend


def prepared(**changes: Any) -> Any:
    return prepare.prepare(spec_from(FIELDS, changes), device="cpu")


@pytest.mark.parametrize("name", ["mnist-5k"])
def test_the_images_of_a_data_set_are_as_many_as_is_said(name: str) -> None:
    data = datasets.load(name, validation_images=500, split_seed=0)
    assert data.validation is not None
    found = (len(data.train), len(data.validation), len(data.test))
    assert part_sizes(DataSpec(name=name)) == found
    known = {name for name, info in datasets.DATASETS.items() if info.images is not None}
    assert set(datasets.DATASETS) - known <= {"folder", "tiny"}


def test_images_that_do_not_fit_are_refused_before_they_are_loaded(
    monkeypatch: pytest.MonkeyPatch, free: Any
) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(datasets, "load", none)
    # 2 x 4,000 + 1,000 images of 2,000 x 2,000 numbers of 4 bytes.
    free(144_000_000_000 - 1)
    with pytest.raises(InputError) as caught:
        prepared(**{"data.image_size": 2000})
    assert str(caught.value) == (
        "data set 'mnist-5k': 5,000 images of 1x2000x2000 numbers need 144 GB of memory while they "
        "are loaded, and 144 GB are free: lower data.image_size, data.train_images or "
        "data.test_images"
    )
    free(9_000 * 32 * 32 * 4)
    with pytest.raises(AssertionError, match="loaded"):
        prepared(**{"dense.batch_size": 1})
    free(1_000_000)
    caps = {"data.train_images": 100, "data.validation_images": 10, "data.test_images": 40}
    with pytest.raises(AssertionError, match="loaded"):
        prepared(**caps, **{"dense.batch_size": 1})


def test_weights_that_do_not_fit_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(footprint, "check_images", lambda *_: None)
    for changes in (
        {"network.arguments.width": 10**9},
        {"data.image_size": 100_000, "data.train_images": 20, "data.validation_images": 0},
    ):
        with pytest.raises(InputError, match=r"network 'lenet5-mini' for .* has weights of .* GB"):
            list_study(spec_from(FIELDS, changes))


def test_a_batch_that_does_not_fit_is_refused(few_digits: Splits, free: Any) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
    spec = spec_from(FIELDS | {"dense": {"batch_size": 10_000}})
    example = few_digits.example(1)
    needed = training_bytes(network, example, 300, spec.dense, TASK)
    free(needed)
    footprint.check_training(spec, network, TASK, example, 300, torch.device("cpu"))
    free(needed - 1)
    with pytest.raises(InputError, match=r"training the dense network on 300 .* lower"):
        footprint.check_training(spec, network, TASK, example, 300, torch.device("cpu"))
    trained = spec_from(FIELDS | {"network": {"name": "mine", "fingerprint": "ab"}})
    footprint.check_training(trained, network, TASK, example, 300, torch.device("cpu"))
    recipe = Recipe(batch_size=10_000, epochs=1)
    free(training_bytes(network, example, 300, recipe, TASK) - 1)
    with pytest.raises(InputError, match="retraining one network on 300 examples"):
        plan(network, few_digits, recipe, members=3, engine="loop")


def test_what_is_held_is_the_images_and_a_network(few_digits: Splits) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    spec = spec_from(FIELDS)
    training = training_bytes(network, few_digits.example(1), 256, spec.dense, TASK)
    assert held_bytes(spec, network, few_digits) == 500 * (1024 * 4 + 8) + training
    part = few_digits.measured_in_part(0.2, seed=0)
    more = len(part.measured_train) * (1024 * 4 + 8)
    assert held_bytes(spec, network, part) == 500 * (1024 * 4 + 8) + more + training


@pytest.fixture
def grown(tmp_path: Path) -> Splits:
    """Small images and a large one."""
    path = write_folder(tmp_path, {"train": colours(9), "val": colours(6)}, suffix="png")
    large = path / "train" / "class 1" / "large.png"
    Image.fromarray(np.zeros((2000, 1500, 3), dtype=np.uint8)).save(large)
    return datasets.load("folder", path=str(path), image_size=14, validation_images=0, split_seed=0)


def test_a_grown_image_is_told_with_what_it_takes(grown: Splits, free: Any) -> None:
    reading = footprint.check_reading(grown, batch=4)
    (line,) = reading.notes
    assert line.startswith("images: reading all 16 once takes about ")
    needs = 4 * 2000 * 1500 + 4 * 16 * int(16 * 2000 / 1500)
    assert "large.png of 1,500 x 2,000 pixels, takes " in line
    assert line.endswith(f" s and {readable_bytes(needs)}")
    assert reading.seconds > 0


def test_images_that_do_not_fit_while_they_are_decoded_are_refused(
    grown: Splits, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_cores", lambda: 2)
    others = 4 * 40 * 56 + 4 * 16 * int(16 * 56 / 40)
    needs = 4 * 2000 * 1500 + 4 * 16 * int(16 * 2000 / 1500) + others
    ahead = 3 * 4 * 3 * 14 * 14
    free(needs + ahead)
    footprint.check_reading(grown, batch=4)
    free(needs + ahead - 1)
    with pytest.raises(InputError, match=r"reading images, 2 at a time .*large\.png of 1,500"):
        footprint.check_reading(grown, batch=4)


def test_images_in_memory_are_not_read(few_digits: Splits) -> None:
    assert footprint.check_reading(few_digits, batch=4) == (0.0, ())


def test_a_shift_out_of_sight_is_refused(few_digits: Splits) -> None:
    for shift, fits in ((31, True), (32, False)):
        study = Study(
            name="shifted",
            network=nn.Sequential(nn.Conv2d(1, 4, 32), nn.Flatten(), nn.Linear(4, 10)),
            data=few_digits,
            pruning={"layers": {"0": 0.5}},
            criteria=["l1"],
            overrides={"retraining.shift": shift},
        )
        if fits:
            study.prepare("cpu")
            continue
        with pytest.raises(InputError, match=r"retraining\.shift = 32 moves images of 32x32"):
            study.prepare("cpu")


def test_a_slow_network_is_told_of_before_the_checks(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    network = nn.Sequential(nn.Conv2d(1, 4, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
    spec = Study(name="slow", network=network, data=few_digits, pruning={"layers": {"0": 0.5}}).spec

    def groups(*_: object) -> None:
        raise InputError("the checks begin")

    monkeypatch.setattr(prepare, "find_groups", groups)
    times = iter(range(0, 1000, 6))
    for seconds, expected in (
        (1e9, []),
        (1.0, ["the network takes 6 s for 3 examples on the CPU"]),
    ):
        monkeypatch.setattr(trials, "_SLOW_SECONDS", seconds)
        monkeypatch.setattr("time.perf_counter", lambda: next(times))
        with pytest.raises(InputError, match="the checks begin"):
            prepare.prepare(spec, network=network, data=few_digits, device="cpu", say=said.append)
        assert [line.partition(":")[0] for line in said] == expected
    assert "about 1 h 40 min for each of 30 epochs and 1,000 examples" in said[0]
