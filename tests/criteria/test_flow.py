"""Criteria of flows against a whole Hessian, the released code's way, and products of matrices."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional

from tests.criteria.test_sensitivity import gradients
from tests.criteria.tiny import (
    SHAPE,
    chain,
    every_way,
    images,
    masks,
    residual,
    score,
    summed,
    summed_weights,
)
from trueoracle.criteria.base import find_criterion
from trueoracle.criteria.importance import importance_of
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import InputError
from trueoracle.pruning.unstructured import list_weight_candidates
from trueoracle.tasks.regression import Regression


def whole_hessian(network: nn.Module) -> tuple[Tensor, Tensor, dict[str, slice]]:
    """Gradient and Hessian by all weights of a network, and where each one's numbers are."""
    train = images().train
    named = dict(network.named_parameters())
    ends = np.cumsum([p.numel() for p in named.values()]).tolist()
    places = {
        name: slice(end - p.numel(), end)
        for (name, p), end in zip(named.items(), ends, strict=True)
    }

    def loss(flat: Tensor) -> Tensor:
        values = {name: flat[places[name]].view(p.shape) for name, p in named.items()}
        return functional.cross_entropy(
            functional_call(network, values, (train.inputs,)), train.targets
        )

    flat = torch.cat([p.detach().flatten() for p in named.values()])
    slopes, hessian = grad(loss)(flat), jacrev(grad(loss))(flat)
    return slopes, hessian, places


PLAIN = "grasp:temperature=1,biases=true"
"""By all weights and without a temperature."""


def test_grasp_is_the_change_of_the_gradients_norm() -> None:
    network = chain().eval()
    slopes, hessian, places = whole_hessian(network)
    products = hessian @ slopes
    weights = network.get_parameter("0.weight").detach()
    flows = (weights.flatten() * products[places["0.weight"]]).view(4, -1).sum(1)
    candidates = every_way(network, {"0": 0.5})
    expected = summed({"0": flows.tolist()}, candidates)
    assert score(PLAIN, network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-7)

    # The sign: less of a filter whose score is high lowers the gradient's norm.
    def norm(scale: float, filter_: int) -> float:
        less = chain().eval()
        with torch.no_grad():
            less.get_parameter("0.weight")[filter_] *= scale
        return sum(float(g.double().square().sum()) for g in gradients(less).values())

    for filter_ in range(4):
        change = (norm(1 - 1e-3, filter_) - norm(1 + 1e-3, filter_)) / 2e-3
        assert change == pytest.approx(-2 * float(flows[filter_]), rel=0.02, abs=1e-5)


def released_grasp(network: nn.Sequential, layer: str) -> Tensor:
    """The released code's scores of one layer's weights, without its normalisation, as it reads."""
    train, layers = images().train, [m for m in network if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = [module.weight for module in layers]
    loss = functional.cross_entropy(network(train.inputs) / 200, train.targets)
    first = torch.autograd.grad(loss, weights)
    loss = functional.cross_entropy(network(train.inputs) / 200, train.targets)
    second = torch.autograd.grad(loss, weights, create_graph=True)
    z = sum((one.detach() * other).sum() for one, other in zip(first, second, strict=True))
    products = torch.autograd.grad(cast(Tensor, z), weights)
    at = layers.index(cast(nn.Conv2d, network.get_submodule(layer)))
    return -weights[at].detach() * products[at]


def test_grasp_is_the_released_codes() -> None:
    network = chain()
    candidates = every_way(network, {"0": 0.5})
    removed = released_grasp(network, "0").double()  # the highest go
    expected = summed({"0": (-removed).flatten(1).sum(1).tolist()}, candidates)
    found = score("grasp", network, candidates)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-12)
    assert abs(found).max() > 1e-9
    single = masks(network, {"3": 0.5})
    expected = summed_weights({"3": -released_grasp(network, "3").double()}, single)
    assert score("grasp", network, single) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_grasp_of_a_task_without_logits_has_no_temperature() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    split = Split.of(
        torch.randn(24, 1, 8, 8, generator=generator), torch.randn(24, 1, generator=generator)
    )
    data = Splits(split, None, split, Regression())
    candidates = every_way(network, {"1": 0.5})
    cold = score("grasp:temperature=1", network, candidates, data)
    assert score("grasp", network, candidates, data) == pytest.approx(cold)


def test_grasp_needs_a_temperature() -> None:
    with pytest.raises(InputError, match=r"temperature is 0\.0, expected a number above 0"):
        score("grasp:temperature=0", chain(), every_way(chain(), {"0": 0.5}))


def test_synflow_of_a_linear_network_is_a_product_of_matrices() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    candidates = every_way(network, {"1": 0.4})
    first, second = (
        network.get_parameter(f"{i}.weight").detach().double().abs().numpy() for i in (1, 3)
    )
    importance = first.sum(1) * second.sum(0)  # all paths through a unit, biases aside
    expected = summed({"1": importance}, candidates)
    assert score("synflow", network, candidates) == pytest.approx(expected)
    free = every_way(network, {"1": 0.2})
    assert np.array_equal(
        score("synflow", network, free, images(seed=0)),
        score("synflow", network, free, images(seed=5)),
    )


def test_synflow_keeps_what_flows_into_a_layer_flowing_out() -> None:
    """The law that gives it its name, of layers without biases."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 2, bias=False), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(75, 3, bias=False)),
    )
    flows = [
        score("synflow", network, every_way(network, {layer: share})).sum() / times
        # Every filter is pruned in so many of the candidates.
        for layer, share, times in (("0", 0.25, 1), ("2", 1 / 3, 1))
    ]
    assert flows[0] == pytest.approx(flows[1])


class Spare(nn.Sequential):
    """A chain with a parameter that nothing reads, and buffers that have no sign."""

    def __init__(self) -> None:
        super().__init__(*chain())
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("seen", torch.tensor([-1]))


def test_grasp_of_frozen_layers_and_unused_parameters() -> None:
    network = Spare()
    network.get_parameter("0.weight").requires_grad = False
    train = images().train
    own = {name: p.detach() for name, p in network.named_parameters()}
    g = {name: gradients(chain())[name] for name in own if name not in ("0.weight", "unused")}

    def squared(frozen: Tensor) -> Tensor:
        """Half of the squared gradient norm of what trains, by the frozen layer."""

        def loss(weights: dict[str, Tensor]) -> Tensor:
            every = (own | weights | {"0.weight": frozen},)
            return functional.cross_entropy(
                functional_call(network, every, (train.inputs,)), train.targets
            )

        found = grad(loss)({name: own[name] for name in g})
        return sum((value.square().sum() for value in found.values()), torch.zeros(())) / 2

    change = own["0.weight"] * grad(squared)(own["0.weight"])
    candidates = every_way(network, {"0": 0.5})
    expected = summed({"0": change.double().flatten(1).sum(1).numpy()}, candidates)
    assert score(PLAIN, network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_synflow_leaves_masks_and_counters_alone() -> None:
    network = Spare()
    found = score("synflow", network, every_way(network, {"0": 0.5}))
    assert found == pytest.approx(score("synflow", chain(), every_way(chain(), {"0": 0.5})))


class Casting(nn.Module):
    """A forward that knows but one precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.float())
        return logits


def test_synflow_of_a_network_that_casts() -> None:
    candidates = every_way(Casting(), {"inner.0": 0.5})
    plain = every_way(chain(), {"0": 0.5})
    found = score("synflow", Casting(), candidates)
    assert found == pytest.approx(score("synflow", chain(), plain), rel=1e-5)


def test_synflow_bypasses_batch_norm() -> None:
    """The flow of a network whose norms are taken out."""
    network, without = residual(), residual()
    without.bn = without.bn1 = without.bn2 = cast(nn.BatchNorm2d, nn.Identity())
    candidates = every_way(network, {"stem": 0.5, "first": 0.4})
    bare = every_way(without, {"stem": 0.5, "first": 0.4})
    assert score("synflow", network, candidates) == pytest.approx(score("synflow", without, bare))


def pruned_in_rounds(rounds: int) -> tuple[nn.Sequential, Tensor]:
    """The order in which SynFlow prunes half of the weights of the chain's second convolution."""
    network = chain().double()
    for parameter in network.parameters():
        parameter.data.abs_()
    weight = network.get_parameter("3.weight")
    alive = torch.ones_like(weight, dtype=torch.bool)
    places, gone = torch.zeros(weight.shape, dtype=torch.float64), 0
    ones = torch.ones(1, *SHAPE, dtype=torch.float64)
    for done in range(1, rounds + 2):
        (gradient,) = torch.autograd.grad(network(ones).sum(), weight)
        flow = (weight.detach() * gradient).abs()
        left = round(weight.numel() * 0.5 ** (done / rounds)) if done <= rounds else 0
        for _ in range(weight.numel() - left - gone):
            least = flow.masked_fill(~alive, torch.inf).argmin()
            gone += 1
            places.view(-1)[least] = gone / weight.numel()
            alive.view(-1)[least] = False
        if done <= rounds:
            weight.data *= alive
    return chain(), places


@pytest.mark.parametrize("rounds", [1, 5])
def test_synflow_in_rounds_is_the_order_of_going(rounds: int) -> None:
    network, places = pruned_in_rounds(rounds)
    candidates = masks(network, {"3": 0.5})
    found = score(f"synflow-iterative:rounds={rounds}", network, candidates)
    assert found == pytest.approx(summed_weights({"3": places}, candidates))


@pytest.mark.slow
def test_what_synflow_prunes_in_rounds_has_the_lowest_score() -> None:
    """Of filters of two layers: as many go of each as a candidate loses, by gates."""
    network = residual()
    candidates = every_way(network, {"stem": 0.5, "first": 0.4})
    network, alive = residual(), {"stem": torch.ones(4), "first": torch.ones(5)}
    for done in range(1, 101):
        filters = every_way(network, {"stem": 0.25, "first": 0.2})
        flows = importance_of(find_criterion("synflow"), network, filters, images())
        for name, (size, keep) in {"stem": (4, 0.5), "first": (5, 0.6)}.items():
            left = round(size * keep ** (done / 100))
            flow = torch.from_numpy(flows[name]).masked_fill(alive[name] == 0, torch.inf)
            gone = int((alive[name] == 0).sum())
            least = flow.argsort()[: size - left - gone]
            alive[name][least] = 0
            # As if it were not there: all that it has and all that reads it is zero.
            for place in candidates.groups[name == "first"].places:
                if place.role in ("writes", "reads"):
                    network.get_parameter(place.tensor).data.movedim(place.axis or 0, 0)[least] = 0
    chosen = tuple(tuple((alive[name] == 0).nonzero()[:, 0].tolist()) for name in ("stem", "first"))
    found = score("synflow-iterative", residual(), candidates)
    assert list(candidates)[found.argmin()] == chosen
    with pytest.raises(InputError, match="rounds is 0, expected a whole number from 1"):
        score("synflow-iterative:rounds=0", residual(), candidates)


def test_in_a_global_scope_all_layers_compete() -> None:
    network = chain()
    candidates = list_weight_candidates(network, {"0": 0.5, "3": 0.5}, scope="global", count=4)
    found = importance_of(
        find_criterion("synflow-iterative:rounds=3"), network, candidates, images()
    )
    places = np.sort(np.concatenate([each.ravel() for each in found.values()]))
    assert places == pytest.approx(np.arange(1, 85) / 84, abs=1e-6)
