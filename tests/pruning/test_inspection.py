from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.transformers_families import FAMILIES
from trueoracle.networks.registry import build
from trueoracle.pruning.inspection import inspect_network


def test_what_a_filter_costs_is_counted_by_hand() -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    found = inspect_network(network, (1, 32, 32))
    conv1 = found.groups[0]
    # 25 weights and a bias; 25 inputs of each of conv2's 10 filters; on 28x28 and 10x10 positions.
    assert conv1.group.name == "conv1"
    assert conv1.parameters == 26 + 250
    assert conv1.macs == 25 * 28 * 28 + 250 * 10 * 10
    assert found.cost.parameters == sum(p.numel() for p in network.parameters())
    assert [one.group.name for one in found.groups] == ["conv1", "conv2", "conv3", "fc1"]
    assert found.refused == {"fc2": "its output is the network's output"}
    assert conv1.as_dict() == {
        "name": "conv1",
        "kind": "filters",
        "filters": 10,
        "layers": ["conv1"],
        "norms": [],
        "consumers": ["conv2"],
        "parameters_a_filter": 276,
        "macs_a_filter": 44_600,
    }


class Branches(nn.Module):
    """Needs numbers to run, so that no meta device will do; and has a layer of one filter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 1e9:
            x = -x
        return self.out(self.one(x).flatten(1))  # type: ignore[no-any-return]


def test_a_network_that_branches_on_values_is_inspected_too() -> None:
    torch.manual_seed(0)
    found = inspect_network(Branches(), (1, 8, 8))
    costs = {one.group.name: (one.parameters, one.macs) for one in found.groups}
    assert costs == {"first": (10 + 9, 9 * 36 + 9 * 16), "one": (None, None)}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(torch.relu(self.left(left) + self.right(right)))}


def test_a_network_of_several_inputs_is_inspected_on_an_example() -> None:
    torch.manual_seed(0)
    found = inspect_network(Two(), {"left": torch.rand(4, 3), "right": torch.rand(4, 2)})
    (only,) = found.groups
    assert [part.module for part in only.group.layers] == ["left", "right"]
    assert (only.parameters, only.macs) == (3 + 1 + 2 + 1 + 4, 3 + 2 + 4)
    assert found.cost.macs == 6 * (3 + 2 + 4)


def test_whole_layers_and_experts_are_counted_by_hand() -> None:
    pytest.importorskip("transformers")
    family = FAMILIES["mixtral"]
    found = inspect_network(family.build(), family.example())
    (layers,) = found.stacks
    attention, expert, norms = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48, 2 * 32
    assert layers.stack.layers == ("model.layers.0", "model.layers.1")
    assert layers.parameters == (attention + 3 * expert + 3 * 32 + norms,) * 2
    # Nine tokens; of three experts each token takes two.
    products = 2 * 9 * 9 * 32
    assert layers.macs == (9 * (attention + 2 * expert + 3 * 32) + products,) * 2
    (units, *_) = (one for one in found.groups if "experts" in one.group.name)
    assert (units.parameters, units.macs) == (3 * 3 * 32, 9 * 2 * 3 * 32)
    assert found.refused["model.layers.0.mlp.experts"] == (
        f"a router chooses among its 3 experts, of {expert:,} parameters each, so that none can "
        "go whole"
    )


def test_what_cannot_be_taken_out_says_why() -> None:
    network = build("resnet20", input_shape=(3, 32, 32), classes=10)
    found = inspect_network(network, (3, 32, 32))
    assert [one.stack.name for one in found.stacks] == ["layer1", "layer2", "layer3"]
    assert found.stacks[1].stack.layers == ("layer2.1", "layer2.2")
    assert found.needed["layer2.0"] == "it makes [32, 16, 16] of [16, 32, 32]"
    assert found.stacks[0].parameters == (2 * (9 * 16 * 16 + 2 * 16),) * 3
