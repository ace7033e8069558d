"""First-order criteria against autograd by hand and Torch-Pruning."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
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
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.pruning.masks import masked
from trueoracle.tasks.classification import Classification


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
    raw = score(f"{name}:raw=true" if name == "gradient" else name, network, candidates)
    assert raw == pytest.approx(summed(importance, candidates), rel=1e-4)
    if name == "gradient":  # which papers compare within a layer only
        over_means = {n: values / values.mean() for n, values in importance.items()}
        found = score(name, network, candidates)
        assert found == pytest.approx(summed(over_means, candidates), rel=1e-4)


def batches_of(network: nn.Module, batch: int, count: int) -> list[dict[str, Tensor]]:
    """The gradients of whole batches in the criterion's order."""
    train = images().train
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    found = []
    for start in range(0, batch * count, batch):
        rows = order[start : start + batch]
        loss = functional.cross_entropy(network.eval()(train.inputs[rows]), train.targets[rows])
        names, weights = zip(*network.named_parameters(), strict=True)
        found.append(dict(zip(names, torch.autograd.grad(loss, weights), strict=True)))
    return found


@pytest.mark.parametrize(("batch", "count"), [(1, 24), (7, 3), (12, 2), (24, 1), (0, 1)])
def test_taylor_averages_over_batches(batch: int, count: int) -> None:
    network = chain()
    gradients = batches_of(network, batch or 24, count)
    masked_weights = masks(network, {"0": 0.5, "3": 0.5})
    squares = {
        name: sum(
            (one[f"{name}.weight"] * network.get_parameter(f"{name}.weight").detach()) ** 2 / count
            for one in gradients
        )
        for name in ("0", "3")
    }
    found = score(f"taylor:batch={batch}", network, masked_weights)
    expected = summed_weights(cast(dict[str, Tensor], squares), masked_weights)
    assert found == pytest.approx(expected, rel=1e-4)
    # Of filters: weight times gradient of what reads them is the gate's.
    candidates = every_way(network, {"0": 0.5})
    reading = network.get_parameter("3.weight").detach()
    gates = np.mean(
        [(reading * one["3.weight"]).sum((0, 2, 3)).square().numpy() for one in gradients], axis=0
    )
    found = score(f"taylor:batch={batch}", network, candidates)
    assert found == pytest.approx(summed({"0": gates}, candidates), rel=1e-4)


def test_taylors_batches_hold_at_least_one_example() -> None:
    with pytest.raises(InputError, match="batch is -1, expected a number of examples"):
        score("taylor:batch=-1", chain(), every_way(chain(), {"0": 0.5}))


def test_taylor_of_2017_is_a_mean_of_sizes_over_the_layers_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, train = residual(), images().train
    importance = {"stem": np.zeros(4), "first": np.zeros(5)}
    with monkeypatch.context() as patched:
        for index in range(len(train)):
            one = train.take(torch.tensor([index]))
            alone = Splits(one, None, one, Classification(3))
            patched.setattr("tests.criteria.test_sensitivity.images", lambda alone=alone: alone)
            for which, own in importance.items():
                gates = torch.ones(len(own), requires_grad=True)
                (slopes,) = torch.autograd.grad(gated_loss(network, gates, which), gates)
                own += slopes.abs().numpy() / len(train)
    over_norms = {name: own / np.linalg.norm(own) for name, own in importance.items()}
    candidates = every_way(network, {"stem": 0.5, "first": 0.4})
    found = score("taylor-2017", network, candidates)
    assert found == pytest.approx(summed(over_norms, candidates), rel=1e-4)


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
