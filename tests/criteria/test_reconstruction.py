"""The next layer's error against zeroed inputs, and against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, residual, score
from trueoracle.criteria import reconstruction
from trueoracle.errors import InputError


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


def refitted(rows: np.ndarray, target: np.ndarray) -> float:
    """The squared error of numpy's least squares."""
    solution = np.linalg.lstsq(rows, target, rcond=None)[0]
    return float(np.square(rows @ solution - target).sum())


@pytest.mark.parametrize("layer", [0, 3])
def test_scaling_the_kept_filters_is_least_squares(layer: int) -> None:
    network, train = chain(), images().train
    candidates = every_way(network, {str(layer): 0.5 if layer == 0 else 2 / 3})
    before, reader = (network[:3], network[3]) if layer == 0 else (network[:5], network[5:])
    parts = []
    with torch.no_grad():
        given = before(train.inputs)
        nothing = reader(torch.zeros_like(given))
        for filter_ in range(given.shape[1]):
            alone = torch.zeros_like(given)
            alone[:, filter_] = given[:, filter_]
            parts.append((reader(alone) - nothing).double().flatten().numpy())
    each = np.array(parts)
    expected = []
    for index in range(len(candidates)):
        kept = candidates.kept(index)[str(layer)]
        expected.append(refitted(each[kept].T, each.sum(0)) / len(train))
    found = score("thinet-ls", network, candidates)
    assert found == pytest.approx(expected, rel=1e-4)
    assert (found < score("thinet", network, candidates)).all()


@pytest.mark.parametrize("layer", [0, 3])
def test_channel_pruning_refits_all_weights_of_the_next_layer(layer: int) -> None:
    network, train = chain(), images(80).train
    candidates = every_way(network, {str(layer): 0.5 if layer == 0 else 1 / 3})
    with torch.no_grad():
        if layer == 0:
            given = functional.unfold(network[:3](train.inputs), 2).transpose(1, 2).flatten(0, 1)
            weight = network.get_parameter("3.weight").flatten(1)
        else:
            given, weight = network[:6](train.inputs), network.get_parameter("6.weight")
    rows, target = given.double().numpy(), (given @ weight.detach().T).double().numpy()
    expected = []
    for index in range(len(candidates)):
        kept = candidates.kept(index)[str(layer)]
        columns = (kept[:, None] * 4 + np.arange(4)).ravel()  # a kernel, or a map of 2x2
        expected.append(refitted(rows[:, columns], target) / len(train))
    found = score("channel-pruning", network, candidates, images(80))
    assert found == pytest.approx(expected, rel=1e-4)
    assert (found < score("thinet-ls", network, candidates, images(80))).all()
    fewer = score("channel-pruning:images=60", network, candidates, images(80))
    assert fewer != pytest.approx(found, rel=1e-3)


def test_channel_pruning_adds_up_what_reads_a_group() -> None:
    network, train = residual(), images().train
    candidates = every_way(network, {"stem": 0.5})
    with torch.no_grad():
        x = functional.relu(network.bn(network.stem(train.inputs)))
        y = functional.relu(network.bn1(network.first(x)))
        z = functional.relu(x + network.bn2(network.last(y))).mean((2, 3))
        patches = functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
        outputs = patches @ network.first.weight.flatten(1).T, z @ network.head.weight.T
    expected = []
    for index in range(len(candidates)):
        kept = candidates.kept(index)["stem"]
        columns = (kept[:, None] * 9 + np.arange(9)).ravel()
        total = refitted(patches.double().numpy()[:, columns], outputs[0].double().numpy())
        total += refitted(z.double().numpy()[:, kept], outputs[1].double().numpy())
        expected.append(total / len(train))
    found = score("channel-pruning", network, candidates)
    assert found == pytest.approx(expected, rel=1e-4)


def test_channel_pruning_needs_images() -> None:
    with pytest.raises(InputError, match="images is 0, expected a whole number from 1"):
        score("channel-pruning:images=0", chain(), every_way(chain(), {"0": 0.5}))


def test_a_convolution_may_read_several_channels_of_a_filter() -> None:
    torch.manual_seed(0)
    head = [torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(5, 3)]
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.PixelUnshuffle(2), torch.nn.Conv2d(16, 5, 3), *head
    )
    train = images().train
    candidates = every_way(network, {"0": 0.5})
    with torch.no_grad():
        given = network[:2](train.inputs)
    expected = []
    for way in candidates:
        zeroed = given.clone()
        zeroed[:, [4 * filter_ + part for filter_ in way[0] for part in range(4)]] = 0
        expected.append(error(network[2], given, zeroed))
    assert score("thinet", network, candidates) == pytest.approx(expected, rel=1e-4)
