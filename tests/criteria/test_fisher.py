"""Criteria of each example's own gradients, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from tests.criteria.test_sensitivity import gated_loss
from tests.criteria.tiny import (
    chain,
    every_way,
    images,
    masks,
    residual,
    score,
    summed,
    summed_weights,
)
from trueoracle.criteria import fisher
from trueoracle.criteria.gradients import sample_squares
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.regression import Regression


@pytest.mark.parametrize(("which", "filters", "ratio"), [("stem", 4, 0.5), ("first", 5, 0.4)])
def test_fisher_squares_the_slope_of_each_image(
    which: str, filters: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = residual()
    candidates = every_way(network, {which: ratio})
    train = images().train
    importance = torch.zeros(filters)
    for index in range(len(train)):
        one = train.take(torch.tensor([index]))
        alone = Splits(one, None, one, Classification(3))
        monkeypatch.setattr("tests.criteria.test_sensitivity.images", lambda alone=alone: alone)
        gates = torch.ones(filters, requires_grad=True)
        (slopes,) = torch.autograd.grad(gated_loss(network, gates, which), gates)
        importance += slopes.square() / (2 * len(train))
    expected = summed({which: importance.tolist()}, candidates)
    assert score("fisher", network, candidates) == pytest.approx(expected, rel=1e-4)


def test_fisher_of_single_weights() -> None:
    network = residual()
    candidates = masks(network, {"first": 0.5})
    train = images().train
    weight = network.get_parameter("first.weight")
    importance = torch.zeros(weight.shape)
    for image, label in zip(train.inputs, train.targets, strict=True):
        loss = functional.cross_entropy(network(image[None]), label[None])
        (slopes,) = torch.autograd.grad(loss, weight)
        importance += (weight.detach() * slopes) ** 2 / (2 * len(train))
    expected = summed_weights({"first": importance}, candidates)
    assert score("fisher", network, candidates) == pytest.approx(expected, rel=1e-4)


def test_shared_weights_of_other_layers() -> None:
    """Of a weight that two layers share, functional calls take one name only."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)
    )
    network.append(nn.Linear(5, 3))
    network[5].weight = network[3].weight
    candidates = masks(network, {"1": 0.5})
    weight, train = network.get_parameter("1.weight"), images().train
    importance = torch.zeros(weight.shape)
    for image, label in zip(train.inputs, train.targets, strict=True):
        loss = functional.cross_entropy(network(image[None]), label[None])
        (slopes,) = torch.autograd.grad(loss, weight)
        importance += (weight.detach() * slopes) ** 2 / (2 * len(train))
    expected = summed_weights({"1": importance}, candidates)
    assert score("fisher", network, candidates) == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(score("gradient-flow", network, candidates)).all()


def test_a_forward_that_branches_on_values_has_the_same_squares() -> None:
    class Branching(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(x) * (1 if x.sum().item() < 1e9 else 2)
            return logits

    network, data = chain(), images()
    plain = sample_squares(network, ["3.weight"], data.train, data.task)
    one_by_one = sample_squares(Branching(network), ["inner.3.weight"], data.train, data.task)
    torch.testing.assert_close(one_by_one["inner.3.weight"], plain["3.weight"])


def gradients_of(network: nn.Module, image: Tensor, label: Tensor) -> dict[str, Tensor]:
    """The gradient of one image's loss by all weights, by name."""
    loss = functional.cross_entropy(network.eval()(image[None]), label[None])
    names, weights = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def test_obd_c_has_labels_of_the_networks_own() -> None:
    network, train = residual(), images().train
    candidates = every_way(network, {"stem": 0.5})
    with torch.no_grad():
        chances = network(train.inputs).double().softmax(1)
    labels = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert (labels != train.targets).any()
    importance = torch.zeros(4)
    for image, label in zip(train.inputs, labels, strict=True):
        found = gradients_of(network, image, label)
        for name in ("stem.weight", "last.weight"):
            change = network.get_parameter(name).detach() * found[name]
            importance += change.square().flatten(1).sum(1) / (2 * len(train))
    expected = summed({"stem": importance.tolist()}, candidates)
    assert score("obd-c", network, candidates) == pytest.approx(expected, rel=1e-4)


def test_drawn_labels_follow_what_the_network_says() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        network.get_parameter("1.weight").zero_()
        network.get_parameter("1.bias").copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    drawn = fisher._relabelled(network, images(3000).train, Classification(3))
    assert (drawn.targets.bincount() / 3000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_labels_are_drawn_of_classes_only() -> None:
    network, data = chain(), images()
    numbers = Splits(data.train, None, data.test, Regression())
    with pytest.raises(NotApplicableError, match="labels are drawn of classes"):
        score("obd-c", network, every_way(network, {"0": 0.5}), numbers)


@pytest.mark.parametrize(("layer", "ratio"), [("stem", 0.5), ("first", 0.4)])
def test_the_group_hessian_is_torch_prunings(layer: str, ratio: float) -> None:
    """Its importance, given the squares of all images' gradients (it keeps the last one's)."""
    network, train = residual(), images().train
    squares = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for image, label in zip(train.inputs, train.targets, strict=True):
        for name, gradient in gradients_of(network, image, label).items():
            squares[name] += gradient.square() / len(train)
    for name, parameter in network.named_parameters():
        parameter.grad = squares[name]
    graph = tp.DependencyGraph().build_dependency(network, torch.rand(2, 1, 8, 8))
    module = network.get_submodule(layer)
    filters = list(range(len(module.get_parameter("weight"))))
    group = graph.get_pruning_group(module, tp.prune_conv_out_channels, idxs=filters)
    expected = tp.importance.GroupHessianImportance()(group).tolist()
    network.zero_grad()
    candidates = every_way(network, {layer: ratio})
    found = score("group-hessian", network, candidates)
    assert found == pytest.approx(summed({layer: expected}, candidates), rel=1e-4)


@pytest.mark.parametrize("damping", ["", ":damping=0.1"])
def test_woodfisher_inverts_the_whole_fisher_matrix_of_a_layer(damping: str) -> None:
    network, train = chain(), images().train
    candidates = masks(network, {"0": 0.5, "3": 0.3})
    strength = 0.1 if damping else 1e-5
    saliencies = {}
    for name in ("0", "3"):
        weight = network.get_parameter(f"{name}.weight").detach().double()
        matrix = strength * np.eye(weight.numel())
        for image, label in zip(train.inputs, train.targets, strict=True):
            gradient = gradients_of(network, image, label)[f"{name}.weight"].double().flatten()
            matrix += np.outer(gradient, gradient) / len(train)
        inverse = torch.from_numpy(np.linalg.inv(matrix).diagonal().copy()).view(weight.shape)
        saliencies[name] = weight.square() / (2 * inverse)
    found = score(f"woodfisher{damping}", network, candidates)
    assert found == pytest.approx(summed_weights(saliencies, candidates), rel=1e-3)


def test_woodfisher_refuses_no_damping_and_too_many_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = chain()
    candidates = masks(network, {"0": 0.5})
    with pytest.raises(InputError, match=r"damping is 0\.0, expected a number above 0"):
        score("woodfisher:damping=0", network, candidates)
    monkeypatch.setattr(fisher, "GRADIENT_BYTES", 24 * 36 * 4 - 1)
    with pytest.raises(NotApplicableError, match=r"the gradients of 0\.weight by 24 examples"):
        score("woodfisher", network, candidates)


@pytest.mark.parametrize("name", ["obd-c", "group-hessian"])
def test_without_statistics_of_its_own_no_example_has_a_gradient_of_its_own(name: str) -> None:
    network = chain()
    network.insert(1, nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(NotApplicableError, match="batch norm 1 keeps no statistics"):
        score(name, network, every_way(network, {"0": 0.5}), images())
