from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trueoracle.errors import InputError
from trueoracle.networks.attention import Attention
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.cost import Cost, cost, macs_by_parameter
from trueoracle.pruning.walk import find_groups


def test_a_lenet_by_hand(dense: nn.Module) -> None:
    conv1, conv2, conv3 = 10 * 25 * 28 * 28, 10 * 250 * 10 * 10, 10 * 250
    assert cost(dense, (1, 32, 32)) == Cost(5500, conv1 + conv2 + conv3 + 100 + 100)
    assert macs_by_parameter(dense, (1, 32, 32))["conv2.weight"] == conv2


def test_an_mlp_by_hand() -> None:
    network = build("mlp", {"hidden": (7, 5)}, input_shape=(1, 8, 8), classes=3)
    weights = 64 * 7 + 7 * 5 + 5 * 3
    assert cost(network, (1, 8, 8)) == Cost(weights + 7 + 5 + 3, weights)


class OnTokens(nn.Module):
    """Attention within something that takes one argument."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, tokens: Tensor) -> Tensor:
        if isinstance(self.attention, nn.MultiheadAttention):
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]  # type: ignore[no-any-return]
        return self.attention(tokens)  # type: ignore[no-any-return]


class Branching(OnTokens):
    """Not to be run without numbers."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens if float(tokens.sum()) < 1 else -tokens)


@pytest.mark.parametrize("outer", [OnTokens, Branching])
@pytest.mark.parametrize(
    "attention", [Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)]
)
def test_attention_by_hand_on_either_way_to_count(
    outer: type[OnTokens], attention: nn.Module
) -> None:
    tokens, width = 5, 16
    products = 2 * tokens * tokens * width
    network = outer(attention)
    assert cost(network, (tokens, width)).macs == 4 * tokens * width * width + products
    found = macs_by_parameter(network, (tokens, width))
    assert found["attention.out_proj.weight"] == tokens * width * width
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_network_stays_as_it_is(dense: nn.Module) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    dense.train()
    cost(dense, (1, 32, 32))
    assert dense.training
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


def test_a_network_that_does_not_run_is_said(dense: nn.Module) -> None:
    with pytest.raises(InputError, match=r"cannot count .* one image of shape \[3, 32, 32\]"):
        cost(dense, (3, 32, 32))


def test_candidates_of_filters_cost_the_same(dense: nn.Module) -> None:
    groups = find_groups(dense, torch.rand(2, 1, 32, 32))
    listed = list_candidates(groups, {"conv1": 0.2, "conv2": 0.5}, count=5)
    costs = listed.costs(dense, (1, 32, 32))
    assert costs == [cost(listed.prune(dense, i), (1, 32, 32)) for i in range(5)]
    macs = 8 * 25 * 784 + 5 * 200 * 100 + 10 * 125 + 100 + 100
    assert costs[0] == Cost(8 * 26 + 5 * 201 + 10 * 126 + 110 + 110, macs)


class Two(nn.Module):
    """Two inputs by name, one of them numbers of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project, self.out = nn.Embedding(9, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        return self.out(self.table(tokens) + self.project(features)[:, None])  # type: ignore[no-any-return]


def test_an_example_batch_is_counted_for_one_item() -> None:
    tokens, features = torch.randint(9, (7, 6)), torch.rand(7, 5)
    macs = 5 * 4 + 6 * 4 * 3
    given = ({"tokens": tokens, "features": features}, (tokens, features))
    assert [cost(Two(), one).macs for one in given] == [macs, macs]
    assert macs_by_parameter(Two(), given[0]) == {
        "project.weight": 20,
        "project.bias": 20,
        "out.weight": 72,
        "out.bias": 72,
    }


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(2, 6, 3, stride=2), (2, 9), 6 * 2 * 3 * 4),
        (nn.Conv3d(1, 4, 3, padding=1), (1, 2, 3, 4), 4 * 27 * 24),
        (nn.ConvTranspose1d(3, 5, 4, stride=2), (3, 6), 3 * 5 * 4 * 6),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 4 * 6 * 9 * 25),
        (nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3), 2 * 3 * 8 * 27),
        (nn.Conv1d(4, 8, 3, groups=4), (4, 10), 8 * 3 * 8),
    ],
)
def test_convolutions_of_any_kind_by_hand(
    layer: nn.Module, shape: tuple[int, ...], macs: int
) -> None:
    assert cost(layer, shape).macs == macs
    assert cost(layer, torch.zeros(3, *shape)).macs == macs
