"""Second-order criteria against whole Hessians and image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.criteria.test_sensitivity import gated_loss, whole_hessian
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
from trueoracle.criteria import curvature
from trueoracle.criteria.gradients import sample_squares
from trueoracle.data.splits import Splits
from trueoracle.tasks.classification import Classification


def test_obd_is_the_hessians_diagonal_where_it_is_small() -> None:
    network = chain().eval()
    _, hessian, places = whole_hessian(network)
    weights = network.get_parameter("0.weight").detach()
    saliency = hessian.diag()[places["0.weight"]].view(weights.shape) * weights**2 / 2
    candidates = every_way(network, {"0": 0.5})
    expected = summed({"0": saliency.flatten(1).sum(1).tolist()}, candidates)
    assert score("obd", network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    single = masks(network, {"0": 0.5})
    assert score("obd", network, single) == pytest.approx(
        summed_weights({"0": saliency}, single), rel=1e-3, abs=1e-7
    )


def test_obd_of_more_weights_is_an_estimate() -> None:
    """The estimate is off by a few of its own standard errors, which the Hessian tells."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))
    candidates = every_way(network, {"1": 0.2})
    estimate = score("obd", network, candidates)
    _, hessian, places = whole_hessian(network)
    own = hessian[places["1.weight"], places["1.weight"]]
    squares = network.get_parameter("1.weight").detach().flatten() ** 2 / 2
    for filter_ in range(5):
        of_filter = torch.zeros(5, 64)
        of_filter[filter_] = 1
        form = (squares * of_filter.flatten())[:, None] * own
        exact = float(form.trace())
        form = (form + form.T) / 2
        form.fill_diagonal_(0)
        standard_error = float((2 * form.square().sum() / curvature.HESSIAN_DRAWS).sqrt())
        assert 0 < abs(estimate[filter_] - exact) < 3 * standard_error
    assert (score("obd", network, candidates) == estimate).all()


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
