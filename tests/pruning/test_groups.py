from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.pruning.groups import Reader, find_groups

IMAGES = torch.zeros(2, 1, 32, 32)


def test_lenet5_mini_has_four_prunable_layers() -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    found = find_groups(network, IMAGES)
    assert {name: group.filters for name, group in found.groups.items()} == {
        "conv1": 10,
        "conv2": 10,
        "conv3": 10,
        "fc1": 10,
    }
    assert found.groups["conv3"].consumers == (Reader("fc1", spread=1),)
    assert found.refused == {"fc2": "its output is the network's output"}


def test_flattening_spreads_a_filter_over_several_inputs() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 5), nn.MaxPool2d(7), nn.Flatten(), nn.Linear(48, 2))
    assert find_groups(network, IMAGES).groups["0"].consumers == (Reader("3", spread=16),)


def test_norms_belong_to_the_group() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 5), nn.Flatten(),
        nn.Linear(1152, 2),
    )  # fmt: skip
    group = find_groups(network, IMAGES).groups["0"]
    assert group.norms == (Reader("1"),)
    assert group.consumers == (Reader("3"),)


class Branching(nn.Module):
    """One of everything that keeps a layer from being pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.added = nn.Conv2d(1, 2, 3, padding=1)
        self.feeds_depthwise = nn.Conv2d(2, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.feeds_fixed_view = nn.Conv2d(4, 2, 1)
        self.normed = nn.Linear(1800, 6)
        self.norm = nn.LayerNorm(6)
        self.shared = nn.Linear(6, 6)
        self.free = nn.Linear(6, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.added(x)
        x = self.feeds_depthwise(x + 1)
        x = self.feeds_fixed_view(functional.relu(self.depthwise(x)))
        x = x.view(-1, 1800)
        x = self.shared(self.shared(self.norm(self.normed(x))))
        return self.out(functional.gelu(self.free(x)))  # type: ignore[no-any-return]


def test_what_cannot_be_pruned_says_why() -> None:
    found = find_groups(Branching(), IMAGES)
    assert set(found.groups) == {"free"}
    reasons = {
        "added": "'add'",
        "feeds_depthwise": "grouped convolution (depthwise)",
        "depthwise": "grouped convolution",
        "feeds_fixed_view": "fixed 1800 features",
        "normed": "LayerNorm",
        "shared": "more than once",
        "out": "network's output",
    }
    assert set(found.refused) == set(reasons)
    for name, words in reasons.items():
        assert words in found.refused[name]


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(InputError, match="cannot trace DataDependent"):
        find_groups(DataDependent(), IMAGES)


def test_images_of_the_wrong_shape_are_refused() -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    with pytest.raises(InputError, match=r"images of shape \[3, 32, 32\]"):
        find_groups(network, torch.zeros(2, 3, 32, 32))
