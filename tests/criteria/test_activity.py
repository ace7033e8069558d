"""Criteria of what filters put out, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, residual, score, summed

Statistic = Callable[[np.ndarray], np.ndarray]


def mean(maps: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, np.abs(maps).mean((0, 2, 3)))


def nonzero(maps: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, 1 - (maps == 0).mean((0, 2, 3)))


def ranks(maps: np.ndarray) -> np.ndarray:
    each = [[np.linalg.matrix_rank(one) for one in of_image] for of_image in maps]
    return cast(np.ndarray, np.array(each).mean(0))


CASES = [("activation-mean", mean), ("apoz", nonzero), ("hrank", ranks)]


@pytest.mark.parametrize(("name", "statistic"), CASES)
@pytest.mark.parametrize("layer", [0, 3])
def test_activations_are_taken_behind_the_relu_and_before_pooling(
    name: str, statistic: Statistic, layer: int
) -> None:
    network = chain()
    candidates = every_way(network, {str(layer): 1 / 4 if layer == 0 else 1 / 3})
    with torch.no_grad():
        maps = network[: layer + 2](images().train.images).numpy()
    expected = summed({str(layer): statistic(maps)}, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "statistic"), CASES)
def test_a_residual_group_is_read_in_two_places(name: str, statistic: Statistic) -> None:
    network = residual()
    candidates = every_way(network, {"stem": 0.5})
    with torch.no_grad():
        x = functional.relu(network.bn(network.stem(images().train.images)))
        y = functional.relu(network.bn1(network.first(x)))
        z = functional.relu(x + network.bn2(network.last(y)))
    expected = summed({"stem": statistic(x.numpy()) + statistic(z.numpy())}, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-5)


def test_units_of_linear_layers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3))
    )
    candidates = every_way(network, {"1": 0.25})
    with torch.no_grad():
        units = network[:3](images().train.images).numpy()
    means, zeros = np.abs(units).mean(0), (units == 0).mean(0)
    assert score("activation-mean", network, candidates) == pytest.approx(means)
    assert score("apoz", network, candidates) == pytest.approx(1 - zeros)
