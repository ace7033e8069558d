"""Second-order criteria against whole Hessians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.criteria.test_flow import whole_hessian
from tests.criteria.test_sensitivity import gated_loss
from tests.criteria.tiny import (
    Residual,
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
from trueoracle.pruning.depth import list_depth_candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.stacks import find_stacks
from trueoracle.training.evaluate import evaluate


def test_obd_is_the_hessians_diagonal_where_it_is_small() -> None:
    network = chain().eval()
    _, hessian, places = whole_hessian(network)
    weights = network.get_parameter("0.weight").detach()
    saliency = hessian.diag()[places["0.weight"]].view(weights.shape) * weights**2 / 2
    candidates = every_way(network, {"0": 0.5})
    expected = summed({"0": saliency.flatten(1).sum(1).tolist()}, candidates)
    found = score("obd-diagonal", network, candidates)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)
    single = masks(network, {"0": 0.5})
    assert score("obd", network, single) == pytest.approx(
        summed_weights({"0": saliency}, single), rel=1e-3, abs=1e-7
    )


def test_obd_of_more_weights_is_an_estimate() -> None:
    """The estimate is off by a few of its own standard errors, which the Hessian tells."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))
    candidates = every_way(network, {"1": 0.2})
    estimate = score("obd-diagonal", network, candidates)
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
    assert (score("obd-diagonal", network, candidates) == estimate).all()


def gate_derivatives(network: Residual, which: str, filters: int) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the written-out network's loss by the gates of one group."""
    gates = torch.ones(filters, dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        return gated_loss(network, values.float(), which)

    return (
        torch.autograd.functional.jacobian(loss, gates),
        torch.autograd.functional.hessian(loss, gates),
    )


@pytest.mark.parametrize(("which", "filters", "ratio"), [("stem", 4, 0.5), ("first", 5, 0.4)])
def test_obd_and_the_whole_expansion_of_filters_are_those_of_their_gates(
    which: str, filters: int, ratio: float
) -> None:
    network = residual()
    candidates = every_way(network, {which: ratio})
    slopes, hessian = gate_derivatives(network, which, filters)
    expected = summed({which: (hessian.diag() / 2).tolist()}, candidates)
    assert score("obd", network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    changes = []
    for (pruned,) in candidates:
        z = torch.zeros(filters, dtype=torch.float64)
        z[list(pruned)] = 1
        changes.append(float(z @ hessian @ z / 2 - slopes @ z))
    found = score("quadratic", network, candidates)
    assert found == pytest.approx(changes, rel=1e-3, abs=1e-6)


def test_the_whole_expansion_is_the_loss_change_of_a_nearly_quadratic_network() -> None:
    """Against the masked networks themselves, over two groups at once."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    with torch.no_grad():
        network.get_parameter("3.weight").mul_(0.03)
    candidates = every_way(network, {"1": 0.4, "2": 0.5})
    found = score("quadratic", network, candidates)
    data = images()
    whole = evaluate(network, data.train, data.task)["loss"]
    changes = []
    for index in range(len(candidates)):
        with masked(network, candidates.groups, candidates.kept(index)) as without:
            changes.append(evaluate(without, data.train, data.task)["loss"] - whole)
    # What is left is of third order: gates of two groups multiply each other.
    assert np.corrcoef(found, changes)[0, 1] > 0.99
    assert found == pytest.approx(changes, rel=0.2, abs=2e-5)


def test_the_whole_expansion_of_single_weights() -> None:
    network = chain().eval()
    slopes, hessian, places = whole_hessian(network)
    candidates = masks(network, {"0": 0.5, "3": 0.5})
    expected = []
    for index in range(len(candidates)):
        gone = torch.zeros(len(slopes))
        for name, kept in candidates.kept(index).items():
            weight = network.get_parameter(f"{name}.weight").detach()
            gone[places[f"{name}.weight"]] = (weight * ~kept).flatten()
        expected.append(float(gone @ hessian @ gone / 2 - slopes @ gone))
    found = score("quadratic", network, candidates)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_obd_of_layers_is_that_of_their_gates() -> None:
    """Two layers that are added to a stream, written out."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            added: Tensor = x + self.inner(x)
            return added

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
            self.layers = nn.ModuleList([Added(), Added(), Added()])
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            logits: Tensor = self.head(x)
            return logits

    network, train = Deep(), images().train
    stacks = find_stacks(network, torch.rand(3, 1, 8, 8))
    candidates = list_depth_candidates(stacks, {"layers.*": 0.34})

    def loss(gates: Tensor) -> Tensor:
        x = network.stem(train.inputs)
        for gate, layer in zip(gates, network.layers, strict=True):
            x = x + gate * (layer(x) - x)
        return functional.cross_entropy(network.head(x), train.targets)

    ones = torch.ones(3)
    hessian = torch.autograd.functional.hessian(loss, ones)
    slopes = torch.autograd.functional.jacobian(loss, ones)
    own = [way[0][0] for way in candidates.ways]
    expected = (hessian.diag() / 2)[own].tolist()
    assert score("obd", network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    expected = (hessian.diag() / 2 - slopes)[own].tolist()
    assert score("quadratic", network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-6)
