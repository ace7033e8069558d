"""Our groups against Torch-Pruning's dependency graph, which finds them in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.torch_pruning_groups import Plain, plain_groups
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.groups import Group, GroupMap, Part
from trueoracle.pruning.parity import check_parity
from trueoracle.pruning.walk import find_groups


def plain(found: GroupMap) -> Plain:
    """Each group without names and order, which the two choose differently."""

    def of(group: Group) -> tuple[int, frozenset[Part], frozenset[Part]]:
        return group.filters, frozenset((*group.layers, *group.norms)), frozenset(group.consumers)

    return {of(group) for group in found.groups.values()}


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("lenet5-mini", {}, 32),
        ("mlp", {"batch_norm": True}, 8),
        ("vgg16", {"width": 0.125}, 32),
        ("resnet20", {"shortcut": "B"}, 32),
        ("resnet18", {"width": 8}, 32),
        ("resnet50", {"width": 8}, 32),
    ],
)
def test_the_walk_finds_what_the_dependency_graph_finds(
    name: str, arguments: dict[str, Any], size: int
) -> None:
    torch.manual_seed(0)
    network = build(name, arguments, input_shape=(1, size, size), classes=10)
    images = torch.rand(2, 1, size, size)
    assert plain(find_groups(network, images)) == plain_groups(network, images)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "densenet121", "squeezenet1_1", "efficientnet_b0"]
)
def test_networks_of_torchvision_are_followed(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network: nn.Module = getattr(models, name)(weights=None, num_classes=10)
    images = torch.rand(2, 3, 32, 32)
    found = find_groups(network, images)
    assert plain(found) == plain_groups(network, images)
    candidates = list_candidates(found, {"*": 0.5}, count=2)
    check_parity(network, candidates, images)


class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3), nn.InstanceNorm2d(6, affine=True)
        self.second, self.out = nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.norm(self.first(x)).relu())
        return self.out(h.mean((2, 3)))  # type: ignore[no-any-return]


def test_instance_norms_are_followed_by_both() -> None:
    torch.manual_seed(0)
    network, images = Instance(), torch.rand(3, 1, 12, 12)
    found = find_groups(network, images)
    assert plain(found) == plain_groups(network, images)
    assert [part.module for part in found.groups["first"].norms] == ["norm"]
    check_parity(network, list_candidates(found, {"first": 0.5}), images)
