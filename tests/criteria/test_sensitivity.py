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
    CLASSES,
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
from trueoracle.criteria.gates import gated
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, NotApplicableError
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


class Shared(nn.Module):
    """Two layers of the same weights read the filters of ``first``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 6), nn.Linear(6, 6)
        self.third, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x.flatten(1)))
        logits: Tensor = self.head(functional.relu(self.second(h) + self.third(h)))
        return logits


class Decoder(nn.Module):
    """The weights of ``first`` read its own filters again, as those of a tied autoencoder do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 6), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x.flatten(1)))
        logits: Tensor = self.head(functional.linear(h, self.first.weight.t()))
        return logits


@pytest.mark.parametrize("name", ["taylor", "quadratic", "thinet", "channel-pruning"])
@pytest.mark.parametrize("made", [Shared, Decoder])
def test_weights_that_are_read_past_their_layer_are_refused(
    made: type[nn.Module], name: str
) -> None:
    torch.manual_seed(0)
    network = made()
    said = "shares its weights" if made is Shared else "are read past their layer"
    with pytest.raises(NotApplicableError, match=said):
        score(name, network, every_way(network, {"first": 0.5}), images())


class Outer(nn.Module):
    """The products of two layers' outputs: an entry that is read holds a filter of both."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.head = nn.Linear(64, 4), nn.Linear(64, 4), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        u, v = torch.tanh(self.u(x.flatten(1))), torch.tanh(self.v(x.flatten(1)))
        logits: Tensor = self.head((u[:, :, None] * v[:, None, :]).flatten(1))
        return logits


def test_an_entry_that_holds_filters_of_two_groups_has_both_gates() -> None:
    torch.manual_seed(0)
    network, data = Outer().eval(), images()
    candidates = every_way(network, {"u": 0.25, "v": 0.25})
    inputs, targets = data.train.inputs, data.train.targets
    gates = {name: torch.ones(len(inputs), 4, requires_grad=True) for name in ("u", "v")}
    with gated(network, candidates, gates):
        functional.cross_entropy(network(inputs), targets).backward()
    for name in ("u", "v"):
        for filter_ in range(4):
            step = {one: torch.ones(len(inputs), 4) for one in ("u", "v")}
            losses = []
            for change in (-1e-2, 1e-2):
                step[name][:, filter_] = 1 + change
                with torch.no_grad(), gated(network, candidates, step):
                    losses.append(float(functional.cross_entropy(network(inputs), targets)))
            slope = (losses[1] - losses[0]) / 2e-2
            found = gates[name].grad
            assert found is not None
            assert float(found[:, filter_].sum()) == pytest.approx(slope, rel=1e-2, abs=1e-5)
