"""Criteria of what filters put out, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, residual, score, summed
from trueoracle.errors import NotApplicableError

Statistic = Callable[[np.ndarray], np.ndarray]


def mean(maps: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, np.abs(maps).mean((0, 2, 3)))


def nonzero(maps: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, 1 - (maps == 0).mean((0, 2, 3)))


def ranks(maps: np.ndarray) -> np.ndarray:
    each = [[np.linalg.matrix_rank(one) for one in of_image] for of_image in maps]
    return cast(np.ndarray, np.array(each).mean(0))


def independence(maps: np.ndarray) -> np.ndarray:
    """What the nuclear norm loses without each row, by singular values, image by image."""
    losses = []
    for rows in maps.reshape(*maps.shape[:2], -1).astype(np.float64):
        whole = np.linalg.svd(rows, compute_uv=False).sum()
        each = [
            np.linalg.svd(np.delete(rows, i, 0), compute_uv=False).sum() for i in range(len(rows))
        ]
        losses.append(whole - np.array(each))
    return cast(np.ndarray, np.mean(losses, axis=0))


CASES = [
    ("activation-mean", mean),
    ("apoz", nonzero),
    ("hrank", ranks),
    ("chip", independence),
]


@pytest.mark.parametrize(("name", "statistic"), CASES)
@pytest.mark.parametrize("layer", [0, 3])
def test_activations_are_taken_behind_the_relu_and_before_pooling(
    name: str, statistic: Statistic, layer: int
) -> None:
    network = chain()
    candidates = every_way(network, {str(layer): 1 / 4 if layer == 0 else 1 / 3})
    with torch.no_grad():
        maps = network[: layer + 2](images().train.inputs).numpy()
    expected = summed({str(layer): statistic(maps)}, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "statistic"), CASES)
def test_a_residual_group_is_read_in_two_places(name: str, statistic: Statistic) -> None:
    network = residual()
    candidates = every_way(network, {"stem": 0.5})
    with torch.no_grad():
        x = functional.relu(network.bn(network.stem(images().train.inputs)))
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
        units = network[:3](images().train.inputs).numpy()
    means, zeros = np.abs(units).mean(0), (units == 0).mean(0)
    assert score("activation-mean", network, candidates) == pytest.approx(means)
    assert score("apoz", network, candidates) == pytest.approx(1 - zeros)


class Reshaped(nn.Module):
    """A convolution, pooled and flattened as the name says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.conv, self.head = how, nn.Conv2d(1, 4, 3), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv(x)), 2)
        if self.how == "view":
            x = x.view(x.size(0), -1)
        elif self.how == "reshape":
            x = torch.reshape(x, (x.shape[0], -1))
        else:
            x = x.flatten(1)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize(("name", "statistic"), CASES)
@pytest.mark.parametrize("how", ["flatten", "view", "reshape"])
def test_however_maps_are_flattened(name: str, statistic: Statistic, how: str) -> None:
    network = Reshaped(how)
    candidates = every_way(network, {"conv": 0.5})
    with torch.no_grad():
        maps = functional.relu(network.conv(images().train.inputs)).numpy()
    expected = summed({"conv": statistic(maps)}, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-5)


class Moved(nn.Module):
    """Units of pixels' rows, brought to another axis: ``last``, or ``first`` and back."""

    def __init__(self, axis: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.axis, self.units, self.head = axis, nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.units(x))  # [N, 1, 8, 4]
        if self.axis == "second":
            x = x.permute(0, 3, 1, 2).mean((2, 3))
        else:
            x = x.squeeze(1).transpose(1, 2).mean(-1)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize(("name", "statistic"), CASES[:2])
@pytest.mark.parametrize("axis", ["second", "third"])
def test_filters_are_found_on_whatever_axis(name: str, statistic: Statistic, axis: str) -> None:
    network = Moved(axis)
    candidates = every_way(network, {"units": 0.5})
    with torch.no_grad():
        maps = functional.relu(network.units(images().train.inputs)).permute(0, 3, 1, 2).numpy()
    expected = summed({"units": statistic(maps)}, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-5)


class Folded(nn.Module):
    """Rows of pixels are taken for images of their own, and averaged at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.units, self.head = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = functional.relu(self.units(x.reshape(-1, 8)))
        logits: Tensor = self.head(rows)
        return logits.view(-1, 8, 3).mean(1)


def test_what_is_folded_into_the_images_is_a_mean_as_well() -> None:
    network = Folded()
    candidates = every_way(network, {"units": 0.5})
    with torch.no_grad():
        rows = functional.relu(network.units(images().train.inputs.reshape(-1, 8)))
    expected = summed({"units": rows.mean(0).numpy()}, candidates)
    assert score("activation-mean", network, candidates) == pytest.approx(expected, rel=1e-5)
    for name in ("taylor", "fisher"):
        with pytest.raises(NotApplicableError, match="head reads 192 rows of 24 examples"):
            score(name, network, candidates)
