"""Data and networks that many tests share."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trueoracle.criteria.base import CRITERIA
from trueoracle.data import datasets
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.figures import scatter
from trueoracle.networks.registry import build
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import Results
from trueoracle.study import Study
from trueoracle.tasks.classification import Classification

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test asks it
# Sums depend on the number of threads: one here, and in the processes that tests start. Tests run
# side by side, and with so little work more threads only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


def kept_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test register criteria that are gone when it ends."""
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA))
    monkeypatch.setattr(CRITERIA, "_origins", dict(CRITERIA._origins))


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test draws the same weights and inputs, whichever tests ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end, all other processes would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture(scope="session")
def crosscheck() -> Path:
    """Losses from independent code, which are no part of the project."""
    folder = SHARED / "crosscheck"
    if not folder.is_dir():
        pytest.skip("needs ../shared/crosscheck")
    return folder


@pytest.fixture(scope="session")
def published() -> Path:
    """The paper's point clouds, which are no part of the project."""
    folder = SHARED / "published"
    if not folder.is_dir():
        pytest.skip("needs ../shared/published")
    return folder


@pytest.fixture(scope="session")
def digits() -> Splits:
    """4,000 training and 1,000 test digits, without a validation split."""
    return datasets.load("mnist-5k", validation_images=0, split_seed=0)


@pytest.fixture(scope="session")
def few_digits(digits: Splits) -> Splits:
    """Real digits, few enough to train on within a test: 300, 100 and 100."""
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    return Splits(
        digits.train.take(order[:300]),
        digits.train.take(order[300:400]),
        digits.test.take(torch.arange(0, 1000, 10)),
        task=Classification(10),
        fill=digits.fill,
    )


@pytest.fixture(scope="session")
def dense(few_digits: Splits) -> nn.Module:
    """A LeNet5-Mini with random weights: surgery and criteria need no training."""
    torch.manual_seed(0)
    return build("lenet5-mini", input_shape=(1, 32, 32), classes=10)


@pytest.fixture(scope="session")
def _tiny(few_digits: Splits) -> datasets.DatasetInfo:
    """A data set of 400 training and 100 test digits."""

    def uint8(split: AnySplit) -> tuple[np.ndarray, np.ndarray]:
        pixels = (split.inputs * 0.3081 + 0.1307) * 255
        return pixels[:, 0].round().to(torch.uint8).numpy(), split.targets.numpy()

    def read(_folder: Path) -> tuple[datasets.Arrays, datasets.Arrays]:
        assert few_digits.validation is not None
        train, more, test = map(uint8, (few_digits.train, few_digits.validation, few_digits.test))
        joined = (np.concatenate([train[0], more[0]]), np.concatenate([train[1], more[1]]))
        return joined, test

    info = datasets.DATASETS["mnist-5k"]
    return datasets.DatasetInfo(info.shape, info.classes, info.mean, info.std, read)


@pytest.fixture
def tiny_dataset(_tiny: datasets.DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered data set of 400 training and 100 test digits."""
    monkeypatch.setitem(datasets.DATASETS, "tiny", _tiny)
    return "tiny"


TINY: dict[str, Any] = {
    "name": "tiny",
    "network": {"name": "lenet5-mini"},
    "data": {"name": "tiny", "validation_images": 100},
    "dense": {"epochs": 4, "batch_size": 32, "learning_rate": 0.05},
    "pruning": {"layers": {"conv1": 0.1}},
    "criteria": ["oracle", "l1"],
    "retraining": {"epochs": 2, "batch_size": 64, "learning_rate": 0.01, "seeds": [0, 1]},
}


@pytest.fixture
def tiny_fields(tiny_dataset: str) -> dict[str, Any]:
    """The fields of a study that runs in a few seconds: 10 candidates, 2 seeds, 2 epochs."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def _finished(_tiny: datasets.DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the one run that all copies are of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "tiny", _tiny)
        folder = Study(**TINY, runs=tmp_path_factory.mktemp("finished")).run(progress=False).folder
    return folder


@pytest.fixture
def finished(_finished: Path, tiny_dataset: str, tmp_path: Path) -> Results:
    """The study of ``tiny_fields`` below ``runs``, run to its end; a copy of the test's own."""
    return Results(shutil.copytree(_finished, tmp_path / "runs" / _finished.name))


@pytest.fixture(scope="session")
def _three_networks(
    _tiny: datasets.DatasetInfo, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of runs that all copies are of, and the study's in it."""
    runs = tmp_path_factory.mktemp("networks")
    dense = {**TINY["dense"], "seeds": [0, 1, 2]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "tiny", _tiny)
        folder = Study(**{**TINY, "dense": dense}, runs=runs).run(progress=False).folder
    return runs, folder.name


@pytest.fixture
def three_networks(
    _three_networks: tuple[Path, str], tiny_dataset: str, tmp_path: Path
) -> PooledResults:
    """The study of ``tiny_fields`` over three dense networks, run to its end; a copy."""
    runs, name = _three_networks
    return PooledResults(shutil.copytree(runs, tmp_path / "runs") / name)


@pytest.fixture(autouse=True)
def _light_fonts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """TrueType fonts take most of the time of a report: only the tests of files embed them."""
    if "test_scatter" not in request.node.nodeid:
        monkeypatch.setattr(scatter, "PDF_FONTS", 3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Whatever a test sets, the next one begins with one thread."""
    yield
    torch.set_num_threads(1)


Writer = Callable[..., Path]


@pytest.fixture
def write_study(tmp_path: Path) -> Writer:
    """Write a study file and return its path."""

    def write(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
