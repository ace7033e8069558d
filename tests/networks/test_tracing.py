from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.networks.tracing import trace
from trueoracle.networks.weights import architecture_sha256, weights_sha256
from trueoracle.pruning.walk import find_groups

IMAGES = torch.rand(3, 3, 8, 8)


class Constants(nn.Module):
    """Makes constants in its forward, and keeps what it has computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean = nn.Buffer(torch.rand(3))
        self.a, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean.view(1, 3, 1, 1) - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
        self.last = self.a(x)
        self.kept["a"] = self.last
        return self.fc(torch.relu(self.last).mean((2, 3)))  # type: ignore[no-any-return]


def test_tracing_leaves_nothing_on_the_network() -> None:
    network = Constants().eval()
    before = set(vars(network))
    graphs = [trace(network), trace(network)]
    assert set(vars(network)) == before
    assert network.kept == {}
    assert graphs[0].code == graphs[1].code
    assert graphs[0].get_submodule("a") is network.a
    assert torch.equal(graphs[0](IMAGES), network(IMAGES))


def test_a_network_names_the_same_run_however_often_it_is_looked_at() -> None:
    network = Constants()
    first = weights_sha256(network), architecture_sha256(network)
    find_groups(network, IMAGES)
    assert (weights_sha256(network), architecture_sha256(network)) == first


def test_constants_made_in_forward_are_no_other_behaviour_in_training() -> None:
    found = find_groups(Constants(), IMAGES)
    assert set(found.groups) == {"a"}
    assert set(found.refused) == {"fc"}


class Plain(nn.Conv2d):
    """Changes nothing."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:  # it is whatever the memory held until someone writes it
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return "plain"

    def penalty(self) -> Tensor:
        return self.weight.abs().sum()


class Same(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Doubled(nn.Conv2d):
    """Another method than ``forward``, which torch's forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)  # type: ignore[no-any-return]


class PlainLinear(nn.Linear):
    pass


class PlainNorm(nn.BatchNorm2d):
    pass


def chain(conv: type[nn.Conv2d]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        conv(3, 6, 3), PlainNorm(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), PlainLinear(5, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Plain, ""),
        (Same, ""),
        (Doubled, "it computes its weights from others"),
    ],
)
def test_layers_that_inherit_are_pruned_by_what_they_compute(
    kind: type[nn.Conv2d], reason: str
) -> None:
    found = find_groups(chain(kind), IMAGES)
    assert found.refused.get("0", "") == reason
    assert ("0" in found.groups) is (reason == "")
    assert {"3", "6"} <= set(found.groups)
