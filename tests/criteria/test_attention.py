"""Heads of torch's attention, whose parts torch does not call as modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.criteria.tiny import CLASSES, every_way, score
from trueoracle.networks.heads import free_heads


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name",
    ["oracle", "l1", "taylor", "gradient", "activation-mean", "thinet", "fisher", "snip", "obd"],
)
def test_heads_score_as_where_each_part_is_a_module(name: str) -> None:
    torch.manual_seed(0)
    network = Tokens().eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value), alpha=0.2)
    freed = copy.deepcopy(network)
    free_heads(freed)
    found = score(name, network, every_way(network, {"attention": 0.5}))
    expected = score(name, freed, every_way(freed, {"attention": 0.5}))
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(found)) > 1
