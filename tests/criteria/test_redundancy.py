"""What regression on the kept filters explains, and what least squares leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, residual, score
from trueoracle.criteria import leftover
from trueoracle.criteria.leftover import left_over


def unexplained(rows: np.ndarray, kept: np.ndarray, pruned: np.ndarray) -> float:
    """1 - R² of each pruned column by regression with an intercept, summed."""
    design = np.column_stack([np.ones(len(rows)), rows[:, kept]])
    total = 0.0
    for filter_ in pruned:
        target = rows[:, filter_]
        rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        total += rest.var() / target.var()
    return total


def test_redundancy_is_what_regression_leaves() -> None:
    network = chain()
    candidates = every_way(network, {"0": 0.5})
    with torch.no_grad():
        maps = network[:2](images().train.inputs).double()
    rows = maps.transpose(0, 1).flatten(1).T.numpy()
    expected = [
        unexplained(rows, candidates.kept(index)["0"], np.array(candidates.pruned(index)["0"]))
        for index in range(len(candidates))
    ]
    assert score("redundancy", network, candidates) == pytest.approx(expected, rel=1e-5)


def test_a_group_that_is_read_twice_has_both_as_positions() -> None:
    network = residual()
    candidates = every_way(network, {"stem": 0.5})
    with torch.no_grad():
        x = functional.relu(network.bn(network.stem(images().train.inputs)))
        y = functional.relu(network.bn1(network.first(x)))
        z = functional.relu(x + network.bn2(network.last(y)))
    rows = torch.cat([x, z]).double().transpose(0, 1).flatten(1).T.numpy()
    expected = [
        unexplained(rows, candidates.kept(index)["stem"], np.array(way[0]))
        for index, way in enumerate(candidates)
    ]
    assert score("redundancy", network, candidates) == pytest.approx(expected, rel=1e-5)


def test_what_can_be_made_of_what_stays_costs_nothing() -> None:
    network = chain()
    weight, bias = network.get_parameter("0.weight"), network.get_parameter("0.bias")
    with torch.no_grad():
        weight[2], bias[2] = 3 * weight[0], 3 * bias[0]
        weight[3], bias[3] = 0.0, -1.0  # silent behind the ReLU
    one = every_way(network, {"0": 0.25})
    found = dict(zip([way[0][0] for way in one], score("redundancy", network, one), strict=True))
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert found[3] == 0
    assert 0.1 < found[1] <= 1
    both = every_way(network, {"0": 0.5})
    pairs = {
        way[0]: value for way, value in zip(both, score("redundancy", network, both), strict=True)
    }
    assert min(pairs, key=lambda pair: pairs[pair]) in {(0, 3), (2, 3)}
    assert pairs[(0, 2)] > 1  # neither is left to make the other of


@pytest.mark.parametrize("room", [1, 2**26])
def test_left_over_is_the_projections_rest(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover, "AT_ONCE_BYTES", room)
    vectors = np.random.default_rng(0).normal(size=(6, 20))
    vectors[5] = vectors[0] + vectors[1]
    kept = np.array([[0, 1, 2], [0, 1, 5], [2, 3, 4]])
    pruned = np.array([[3, 4, 5], [2, 3, 4], [0, 1, 5]])
    found = left_over(vectors @ vectors.T, kept, pruned)
    for one, (stays, goes) in enumerate(zip(kept, pruned, strict=True)):
        basis = vectors[stays].T
        solution = np.linalg.lstsq(basis, vectors[goes].T, rcond=None)[0]
        rest = vectors[goes].T - basis @ solution
        assert found[one] == pytest.approx(rest.T @ rest, abs=1e-6)


def test_nothing_kept_of_any_size_leaves_all() -> None:
    moments = np.diag([0.0, 0.0, 2.0])
    assert left_over(moments, np.array([[0, 1]]), np.array([[2]])).tolist() == [[[2.0]]]


def test_units_of_linear_layers_have_redundancy_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
    candidates = every_way(network, {"1": 0.25})
    with torch.no_grad():
        rows = network[:3](images().train.inputs).double().numpy()
    expected = [
        unexplained(rows, candidates.kept(index)["1"], np.array(way[0]))
        for index, way in enumerate(candidates)
    ]
    assert score("redundancy", network, candidates) == pytest.approx(expected, rel=1e-5)
