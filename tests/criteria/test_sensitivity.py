"""First-order criteria against autograd by hand, Torch-Pruning and a whole Hessian."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional

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
from trueoracle.pruning.masks import masked


def mean_loss(network: nn.Module) -> Tensor:
    train = images().train
    return functional.cross_entropy(network.eval()(train.inputs), train.targets)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    names, weights = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(mean_loss(network), weights), strict=True))


def test_taylor_is_torch_prunings_of_what_reads_the_filters() -> None:
    """Weight times gradient of the next layer is activation times gradient of the filter."""
    network = chain()
    candidates = every_way(network, {"0": 0.5})
    mean_loss(network).backward()
    graph = tp.DependencyGraph().build_dependency(network, torch.rand(2, 1, 8, 8))
    group = graph.get_pruning_group(network[0], tp.prune_conv_out_channels, idxs=[0, 1, 2, 3])
    last = tp.importance.TaylorImportance("gate", normalizer=None, multivariable=True)
    expected = [float(one) ** 2 for one in last(group)]
    found = score("taylor", network, candidates)
    assert found == pytest.approx(summed({"0": expected}, candidates), rel=1e-4)


def gated_loss(network: Residual, gates: Tensor, which: str) -> Tensor:
    """The residual network's loss, written out, with gates on one of its groups."""
    train = images().train
    x = functional.relu(network.bn(network.stem(train.inputs)))
    by_stem = gates[:, None, None] if which == "stem" else torch.ones(1)
    by_first = gates[:, None, None] if which == "first" else torch.ones(1)
    y = functional.relu(network.bn1(network.first(x * by_stem)))
    z = functional.relu(x + network.bn2(network.last(y * by_first)))
    read = functional.adaptive_avg_pool2d(z * by_stem, 1).flatten(1)
    return functional.cross_entropy(network.head(read), train.targets)


@pytest.mark.parametrize(("which", "filters", "ratio"), [("stem", 4, 0.5), ("first", 5, 0.4)])
def test_taylor_of_a_group_closes_one_gate_wherever_it_is_read(
    which: str, filters: int, ratio: float
) -> None:
    network = residual()
    candidates = every_way(network, {which: ratio})
    gates = torch.ones(filters, requires_grad=True)
    (slopes,) = torch.autograd.grad(gated_loss(network, gates, which), gates)
    expected = summed({which: slopes.square().tolist()}, candidates)
    assert score("taylor", network, candidates) == pytest.approx(expected, rel=1e-4)


def test_a_gates_slope_is_the_change_of_the_masked_networks_loss() -> None:
    """A linear network with a nearly linear loss: closing the gate is the first order."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3))
    with torch.no_grad():
        network.get_parameter("2.weight").mul_(1e-3)
    candidates = every_way(network, {"1": 0.2})
    whole = float(mean_loss(network).detach())
    changes = []
    for index in range(len(candidates)):
        with masked(network, candidates.groups, candidates.kept(index)) as without:
            changes.append(float(mean_loss(without).detach()) - whole)
    assert score("taylor", network, candidates) == pytest.approx(np.square(changes), rel=0.02)


def filter_sums(values: dict[str, Tensor], layers: list[str]) -> np.ndarray:
    return cast(
        np.ndarray, sum(values[f"{n}.weight"].detach().flatten(1).sum(1).numpy() for n in layers)
    )


@pytest.mark.parametrize("name", ["gradient", "snip"])
def test_sizes_of_gradients(name: str) -> None:
    network = residual()
    values = gradients(network)
    if name == "snip":
        values = {n: g * network.get_parameter(n) for n, g in values.items()}
    sizes = {n: value.abs() for n, value in values.items()}
    candidates = every_way(network, {"stem": 0.5, "first": 0.4})
    importance = {
        "stem": filter_sums(sizes, ["stem", "last"]),
        "first": filter_sums(sizes, ["first"]),
    }
    expected = summed(importance, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["taylor", "gradient", "snip"])
def test_sizes_of_single_weights(name: str) -> None:
    network = chain()
    candidates = masks(network, {"0": 0.5, "3": 0.5})
    slopes = {n: gradients(network)[f"{n}.weight"] for n in ("0", "3")}
    changes = {n: g * network.get_parameter(f"{n}.weight").detach() for n, g in slopes.items()}
    values = {
        "gradient": {n: g.abs() for n, g in slopes.items()},
        "snip": {n: c.abs() for n, c in changes.items()},
        "taylor": {n: c**2 for n, c in changes.items()},
    }[name]
    expected = summed_weights(values, candidates)
    assert score(name, network, candidates) == pytest.approx(expected, rel=1e-4)


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


def test_grasp_is_the_change_of_the_gradients_norm() -> None:
    network = chain().eval()
    slopes, hessian, places = whole_hessian(network)
    products = hessian @ slopes
    weights = network.get_parameter("0.weight").detach()
    flows = (weights.flatten() * products[places["0.weight"]]).view(4, -1).sum(1)
    candidates = every_way(network, {"0": 0.5})
    expected = summed({"0": flows.tolist()}, candidates)
    assert score("grasp", network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-7)

    # The sign: less of a filter whose score is high lowers the gradient's norm.
    def norm(scale: float, filter_: int) -> float:
        less = chain().eval()
        with torch.no_grad():
            less.get_parameter("0.weight")[filter_] *= scale
        return sum(float(g.double().square().sum()) for g in gradients(less).values())

    for filter_ in range(4):
        change = (norm(1 - 1e-3, filter_) - norm(1 + 1e-3, filter_)) / 2e-3
        assert change == pytest.approx(-2 * float(flows[filter_]), rel=0.02, abs=1e-5)


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
    assert score("grasp", network, candidates) == pytest.approx(expected, rel=1e-3, abs=1e-7)


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


class Doubled(nn.Module):
    """A residual network of doubles; images are singles."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = residual().double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.double())
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["taylor", "fisher", "gradient-flow", "synflow", "obd"])
def test_networks_of_doubles(name: str) -> None:
    found = score(name, Doubled(), every_way(Doubled(), {"inner.stem": 0.5}))
    single = score(name, residual(), every_way(residual(), {"stem": 0.5}))
    assert found == pytest.approx(single, rel=2e-3, abs=1e-6)
