from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trueoracle.criteria.base import find_criterion
from trueoracle.data.splits import Split, Splits
from trueoracle.pruning.depth import DepthCandidates, list_depth_candidates
from trueoracle.pruning.stacks import find_stacks
from trueoracle.tasks.base import Batch
from trueoracle.tasks.language import NextToken


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        return hidden_states + self.down(self.up(self.norm(hidden_states)).relu()), None


class Stream(nn.Module):
    """A residual stream over tokens, whose blocks give tuples."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x, _ = block(hidden_states=x)
        logits: Tensor = self.head(x)
        return logits


def stream() -> tuple[Any, Splits, DepthCandidates]:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (6, 5))
    mask = torch.ones_like(tokens)
    mask[::2, 3:] = 0
    split = Split({"input_ids": tokens, "attention_mask": mask})
    network = Stream()
    found = find_stacks(network, {"input_ids": tokens, "attention_mask": mask})
    listed = list_depth_candidates(found, {"blocks": 0.34})
    return network, Splits(split, None, split, NextToken()), listed


def fields(data: Splits) -> Batch:
    return cast(Split, data.train).fields


def streams(network: Stream, tokens: Tensor) -> list[Tensor]:
    """The stream before every block, and behind the last."""
    found = [network.embed(tokens)]
    for block in network.blocks:
        found.append(block(found[-1])[0])
    return [one.detach() for one in found]


def test_block_influence_by_hand() -> None:
    network, data, listed = stream()
    found = streams(network, fields(data)["input_ids"])
    real = fields(data)["attention_mask"].bool()
    expected = []
    for before, after in pairwise(found):
        b, a = before[real], after[real]
        cosines = (b * a).sum(1) / (b.norm(dim=1) * a.norm(dim=1))
        expected.append(float(1 - cosines.mean()))
    scores = find_criterion("block-influence")(network, listed, data)
    assert listed.pruned(1) == {"blocks": (1,)}
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_what_a_layer_adds_is_its_activation() -> None:
    network, data, listed = stream()
    found = streams(network, fields(data)["input_ids"])
    real = fields(data)["attention_mask"].bool()
    expected = [float((a - b)[real].abs().mean()) for b, a in pairwise(found)]
    scores = find_criterion("activation-mean")(network, listed, data)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gates_on_what_a_layer_adds(name: str) -> None:
    """By finite differences in double precision, example by example."""
    network, data, listed = stream()
    network = network.double()
    tokens, mask = fields(data)["input_ids"], fields(data)["attention_mask"]
    labels = tokens.masked_fill(mask == 0, -100)[:, 1:]

    def losses(layer: int, gate: float) -> Tensor:
        x = network.embed(tokens)
        for index, block in enumerate(network.blocks):
            after, _ = block(x)
            x = x + (gate if index == layer else 1.0) * (after - x)
        each = cross_entropy(network.head(x)[:, :-1].transpose(1, 2), labels, reduction="none")
        return each.sum(1)  # by example; tokens that do not count are zero

    step, tokens_counted = 1e-4, int((labels != -100).sum())
    expected = []
    for layer in range(3):
        with torch.no_grad():
            slope = (losses(layer, 1 + step) - losses(layer, 1 - step)) / (2 * step)
        each = slope * len(tokens) / tokens_counted  # so that their mean is the loss's
        expected.append(float(each.mean() ** 2 if name == "taylor" else (each**2).mean() / 2))
    scores = find_criterion(name)(network, listed, data)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_weights_of_layers_are_summed() -> None:
    network, data, listed = stream()
    for name, power in (("l1", 1), ("l2", 2)):
        expected = [
            sum(
                float(p.detach().abs().pow(power).sum())
                for p in (block.up.weight, block.down.weight)
            )
            for block in network.blocks
        ]
        np.testing.assert_allclose(find_criterion(name)(network, listed, data), expected, rtol=1e-6)
