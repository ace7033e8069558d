"""Criteria of the weights alone, against Torch-Pruning's importances and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.criteria.tiny import (
    Residual,
    chain,
    every_way,
    masks,
    residual,
    score,
    summed,
    summed_weights,
)
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.walk import find_groups


def torch_prunings(
    network: nn.Module, importance: tp.importance.Importance, layer: nn.Module
) -> list[float]:
    """The importance of each of a layer's filters, in Torch-Pruning's group of it."""
    graph = tp.DependencyGraph().build_dependency(network, torch.rand(2, 1, 8, 8))
    way = tp.prune_conv_out_channels
    group = graph.get_pruning_group(
        layer, way, idxs=list(range(len(layer.get_parameter("weight"))))
    )
    return importance(group).tolist()  # type: ignore[no-any-return]


def positive_chain() -> nn.Sequential:
    network = chain()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    return network


@pytest.mark.parametrize(
    ("name", "importance"),
    [
        ("l1", tp.importance.MagnitudeImportance(1, group_reduction="first", normalizer=None)),
        ("lamp", tp.importance.LAMPImportance(group_reduction="first")),
        # Its distances are those of |w|, which are the paper's where no weight is negative.
        ("fpgm", tp.importance.FPGMImportance(1, group_reduction="first", normalizer=None)),
    ],
)
@pytest.mark.parametrize("layer", ["0", "3"])
def test_importances_are_those_of_torch_pruning(
    name: str, importance: tp.importance.Importance, layer: str
) -> None:
    network = positive_chain()
    candidates = every_way(network, {layer: 0.5})
    expected = torch_prunings(network, importance, network.get_submodule(layer))
    found = score(name, network, candidates)
    assert found == pytest.approx(summed({layer: expected}, candidates), rel=1e-5)


def test_l2_is_torch_prunings_root() -> None:
    network = chain()
    candidates = every_way(network, {"0": 0.5})
    importance = tp.importance.MagnitudeImportance(2, group_reduction="first", normalizer=None)
    squares = torch_prunings(network, importance, network.get_submodule("0"))
    found = score("l2", network, candidates)
    assert found == pytest.approx(summed({"0": np.sqrt(squares)}, candidates), rel=1e-5)


def test_batch_norm_scales_are_those_of_torch_pruning() -> None:
    network = residual()
    assert isinstance(network, Residual)
    importance = tp.importance.BNScaleImportance(group_reduction="sum", normalizer=None)
    for layer in ("stem", "first"):
        candidates = every_way(network, {layer: 0.5 if layer == "stem" else 0.4})
        expected = torch_prunings(network, importance, network.get_submodule(layer))
        found = score("bn-scale", network, candidates)
        assert found == pytest.approx(summed({layer: expected}, candidates), rel=1e-5)


def test_the_layers_of_a_group_are_added_up() -> None:
    network = residual()
    candidates = every_way(network, {"stem": 0.5})
    layers = [network.get_parameter(f"{name}.weight").detach() for name in ("stem", "last")]
    rows = [weight.flatten(1).double().numpy() for weight in layers]
    distances = np.sum([np.linalg.norm(r[:, None] - r[None], axis=2).sum(1) for r in rows], 0)
    assert score("fpgm", network, candidates) == pytest.approx(
        summed({"stem": distances}, candidates)
    )
    shares = np.sum([lamp_by_hand((r**2).sum(1)) for r in rows], 0)
    assert score("lamp", network, candidates) == pytest.approx(summed({"stem": shares}, candidates))


def lamp_by_hand(squares: np.ndarray) -> np.ndarray:
    flat = squares.ravel()
    return np.array([x / flat[flat >= x].sum() for x in flat]).reshape(squares.shape)


def test_lamp_of_single_weights() -> None:
    network = chain()
    candidates = masks(network, {"0": 0.5, "3": 0.3})
    weights = {n: network.get_parameter(f"{n}.weight").detach().double() for n in ("0", "3")}
    shares = {name: lamp_by_hand((weight**2).numpy()) for name, weight in weights.items()}
    found = score("lamp", network, candidates)
    assert found == pytest.approx(summed_weights(shares, candidates))


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(4)), scale=st.floats(0.1, 10))
def test_the_order_of_filters_does_not_matter_and_lamp_knows_no_scale(
    order: list[int], scale: float
) -> None:
    network, moved = chain(), chain()
    with torch.no_grad():
        weight = network.get_parameter("0.weight")
        moved.get_parameter("0.weight").copy_(weight[order] * scale)
    candidates = every_way(network, {"0": 0.25})
    for name, power in (("l1", 1), ("l2", 1), ("lamp", 0), ("fpgm", 1), ("tpp", 4)):
        found, expected = score(name, moved, candidates), score(name, network, candidates)
        assert found == pytest.approx(expected[order] * scale**power, rel=1e-4)


def test_a_layer_of_zeros_has_lamp_scores_of_zero() -> None:
    network = chain()
    nn.init.zeros_(network.get_parameter("0.weight"))
    assert not score("lamp", network, every_way(network, {"0": 0.5})).any()


def test_filters_that_are_alike_have_one_lamp_score() -> None:
    network = chain()
    weight = network.get_parameter("0.weight")
    with torch.no_grad():
        weight[2] = weight[0]
    one = every_way(network, {"0": 0.25})
    found = dict(zip([way[0][0] for way in one], score("lamp", network, one), strict=True))
    squares = weight.detach().double().square().flatten(1).sum(1).numpy()
    assert found[0] == found[2]
    assert [found[i] for i in range(4)] == pytest.approx(lamp_by_hand(squares).tolist())


@pytest.mark.parametrize(("layer", "ratio"), [("stem", 0.5), ("first", 0.4)])
def test_the_group_norm_is_torch_prunings(layer: str, ratio: float) -> None:
    """Layers, scales of norms and what reads the filters, over all of a residual group."""
    network = residual()
    candidates = every_way(network, {layer: ratio})
    expected = torch_prunings(
        network, tp.importance.MagnitudeImportance(2), network.get_submodule(layer)
    )
    found = score("depgraph", network, candidates)
    assert found == pytest.approx(summed({layer: expected}, candidates), rel=1e-5)


def test_the_group_norm_behind_flattening_is_torch_prunings() -> None:
    network = chain()
    candidates = every_way(network, {"3": 1 / 3})
    expected = torch_prunings(network, tp.importance.MagnitudeImportance(2), network[3])
    found = score("depgraph", network, candidates)
    assert found == pytest.approx(summed({"3": expected}, candidates), rel=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "hrank", "chip", "activation-mean"])
def test_what_papers_compare_within_a_layer_is_divided_by_its_mean(name: str) -> None:
    network = residual()
    both = every_way(network, {"stem": 0.5, "first": 0.4})
    importance = {}
    for layer, ratio in (("stem", 0.25), ("first", 0.2)):
        alone = every_way(network, {layer: ratio})
        importance[layer] = score(name, network, alone)  # of one group there is nothing to divide
        assert importance[layer] == pytest.approx(score(f"{name}:raw=true", network, alone))
    raw = score(f"{name}:raw=true", network, both)
    assert raw == pytest.approx(summed(importance, both), rel=1e-5)
    means = {layer: own / own.mean() for layer, own in importance.items()}
    assert score(name, network, both) == pytest.approx(summed(means, both), rel=1e-5)


def test_a_group_of_zeros_is_divided_by_nothing() -> None:
    network = chain()
    nn.init.zeros_(network.get_parameter("0.weight"))
    found = score("l1", network, every_way(network, {"0": 0.5, "3": 1 / 3}))
    assert np.isfinite(found).all()
    assert found.max() > 0


def test_batch_norms_of_volumes_have_scales_too() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(4)
    nn.init.uniform_(norm.weight)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 27, 3))
    candidates = list_candidates(find_groups(network, torch.rand(2, 1, 5, 5, 5)), {"0": 0.25})
    found = score("bn-scale", network, candidates)
    assert sorted(found) == pytest.approx(sorted(norm.weight.detach().abs().tolist()))
