"""The next layer's error against zeroed inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, residual, score
from trueoracle.criteria import reconstruction


def error(layer: torch.nn.Module, given: Tensor, zeroed: Tensor) -> float:
    """The squared error summed over outputs, a mean over images."""
    with torch.no_grad():
        difference = layer(given) - layer(zeroed)
    return float(difference.double().square().sum()) / len(given)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("room", [1, 2**26])
def test_it_is_the_error_of_the_next_layer_without_the_set(
    layer: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "PARTS_BYTES", room)
    network, train = chain(), images().train
    candidates = every_way(network, {str(layer): 0.5 if layer == 0 else 2 / 3})
    before, reader = (network[:3], network[3]) if layer == 0 else (network[:5], network[5:])
    with torch.no_grad():
        given = before(train.inputs)
    expected = []
    for way in candidates:
        zeroed = given.clone()
        zeroed[:, list(way[0])] = 0
        expected.append(error(reader, given, zeroed))
    assert score("thinet", network, candidates) == pytest.approx(expected, rel=1e-4)


def test_the_readers_of_a_group_are_added_up() -> None:
    network, train = residual(), images().train
    candidates = every_way(network, {"stem": 0.5})
    with torch.no_grad():
        x = functional.relu(network.bn(network.stem(train.inputs)))
        y = functional.relu(network.bn1(network.first(x)))
        z = functional.relu(x + network.bn2(network.last(y))).mean((2, 3))
    expected = []
    for way in candidates:
        total = 0.0
        for reader, given in ((network.first, x), (network.head, z)):
            zeroed = given.clone()
            zeroed[:, list(way[0])] = 0
            total += error(reader, given, zeroed)
        expected.append(total)
    assert score("thinet", network, candidates) == pytest.approx(expected, rel=1e-4)
