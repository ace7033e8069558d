"""Trainability, gradient norms and the tangent kernel, each computed in another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, masks, residual, score
from trueoracle.data.splits import Splits
from trueoracle.engines import native
from trueoracle.errors import NotApplicableError
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate
from trueoracle.training.recipe import Retraining


def test_tpp_is_the_gram_matrix_without_the_kept_filters() -> None:
    network = residual()
    candidates = every_way(network, {"stem": 0.5})
    expected = []
    for index in range(len(candidates)):
        kept = np.zeros(4)
        kept[candidates.kept(index)["stem"]] = 1
        total = 0.0
        for name in ("stem", "last"):
            filters = network.get_parameter(f"{name}.weight").detach().double().flatten(1).numpy()
            total += np.square(filters @ filters.T * (1 - np.outer(kept, kept))).sum()
        expected.append(total)
    assert score("tpp", network, candidates) == pytest.approx(expected)


def test_tpp_is_lowest_where_the_pruned_filter_is_unlike_all_others() -> None:
    network = chain()
    weight = nn.init.orthogonal_(network.get_parameter("0.weight"))
    with torch.no_grad():
        weight[1] = weight[2]
    assert score("tpp", network, every_way(network, {"0": 0.25})).argsort()[:2].tolist() == [0, 3]


def squared_norm(network: nn.Module, data: Splits) -> float:
    loss = functional.cross_entropy(network.eval()(data.train.inputs), data.train.targets)
    slopes = torch.autograd.grad(loss, list(network.parameters()))
    return sum(float(slope.double().square().sum()) for slope in slopes)


@pytest.mark.parametrize("make", [chain, residual])
def test_the_gradients_norm_is_that_of_the_pruned_network(make: object) -> None:
    network, data = make(), images()  # type: ignore[operator]
    candidates = every_way(network, {"0" if make is chain else "stem": 0.5})
    expected = [-squared_norm(candidates.prune(network, i), data) for i in range(len(candidates))]
    assert score("gradient-norm", network, candidates, data) == pytest.approx(expected, rel=1e-4)


def test_the_kernels_gradients_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = chain(), images()
    candidates = every_way(network, {"0": 0.5, "3": 1 / 3})
    fast = score("gradient-norm", network, candidates, data)
    monkeypatch.setattr(native, "refusal", lambda *_: "not now")
    assert fast == pytest.approx(score("gradient-norm", network, candidates, data), rel=1e-4)


def test_a_masked_networks_gradient_is_that_of_the_kept_weights() -> None:
    network, data = chain(), images()
    candidates = masks(network, {"0": 0.5})
    found = score("gradient-norm", network, candidates, data)
    for index in range(len(candidates)):
        by_hand = chain().eval()
        kept = candidates.kept(index)["0"]
        with torch.no_grad():
            by_hand.get_parameter("0.weight").mul_(kept)
        loss = functional.cross_entropy(by_hand(data.train.inputs), data.train.targets)
        first, *others = torch.autograd.grad(loss, list(by_hand.parameters()))
        total = sum(float(g.double().square().sum()) for g in ((first * kept), *others))
        assert found[index] == pytest.approx(-total, rel=1e-4)


def linearised(network: nn.Module, data: Splits, rate: float, steps: int) -> float:
    """Gradient descent on the network's linearisation, in the space of its weights."""
    train = data.train
    network = network.double().eval()
    pixels, labels = train.inputs.double(), train.targets
    weights = list(network.parameters())
    outputs = network(pixels)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(one, weights, retain_graph=True)])
        for one in outputs.flatten()
    ]
    jacobian, start = torch.stack(rows), outputs.detach()
    change = torch.zeros(jacobian.shape[1], dtype=torch.float64)
    for _ in range(steps):
        logits = start + (jacobian @ change).view_as(start)
        residual = functional.softmax(logits, 1) - functional.one_hot(labels, 3)
        change -= rate * jacobian.T @ residual.flatten() / len(labels)
    logits = start + (jacobian @ change).view_as(start)
    return float(functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(("make", "layer"), [(chain, "0"), (residual, "stem")])
def test_gradient_flow_is_small_steps_of_the_linearised_network(make: object, layer: str) -> None:
    network, data = make(), images(12)  # type: ignore[operator]
    candidates = every_way(network, {layer: 0.5}).take([0, 3])
    # 2 steps of 6 images an epoch, 5 at 0.02 and 5 at 0.002, over 1 - 0.5.
    recipe = Retraining(epochs=10, batch_size=6, learning_rate=0.02, milestones=(5,), momentum=0.5)
    time = 2 * 5 * (0.02 + 0.002) / 0.5
    found = score("gradient-flow", network, candidates, data, recipe)
    for index in range(2):
        pruned = candidates.prune(network, index)
        assert found[index] == pytest.approx(linearised(pruned, data, time / 400, 400), rel=5e-3)


def test_without_time_gradient_flow_is_the_pruned_loss() -> None:
    network, data = chain(), images()
    candidates = every_way(network, {"0": 0.5})
    still = Retraining(epochs=1, learning_rate=1e-12)
    expected = [
        evaluate(candidates.prune(network, i), data.train, Classification(10))["loss"]
        for i in range(len(candidates))
    ]
    found = score("gradient-flow", network, candidates, data, still)
    assert found == pytest.approx(expected, rel=1e-5)


def test_gradient_flow_is_of_sgd_and_of_few_classes() -> None:
    network, data = chain(), images()
    candidates = every_way(network, {"0": 0.5})
    with pytest.raises(NotApplicableError, match=r"retraining\.optimizer is 'adam'"):
        score("gradient-flow", network, candidates, data, Retraining(optimizer="adam"))
    many = Splits(data.train, None, data.test, Classification(150))
    with pytest.raises(NotApplicableError, match="3 logits holds 133 images, fewer than the 150"):
        score("gradient-flow", network, candidates, many)


def test_the_kernel_of_many_logits_sees_few_images() -> None:
    """A network may have more logits than the data has classes: each is an output."""
    network = nn.Sequential(*list(chain())[:-1], nn.Linear(12, 150))
    with pytest.raises(NotApplicableError, match="150 logits holds 2 images, fewer than the 3"):
        score("gradient-flow", network, every_way(network, {"0": 0.5}))
