from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueoracle.criteria.oracle import oracle
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import Candidates, Surgery, list_candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.walk import find_groups
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate

LAYERS = ("conv1", "conv2", "conv3")


def double(network: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode: parity then means parity."""
    copied = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    copied.load_state_dict(network.state_dict())
    return copied.double().eval()


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 32, 32, generator=generator, dtype=torch.float64)


def largest_difference(network: nn.Module, candidates: Candidates, batch: Tensor) -> float:
    worst = 0.0
    with torch.inference_mode():
        for index in range(len(candidates)):
            with masked(network, candidates.groups, candidates.kept(index)) as zeroed:
                expected = zeroed(batch)
            found = candidates.prune(network, index)(batch)
            worst = max(worst, float((found - expected).abs().max()))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_surgery_equals_masking_for_every_candidate_of_a_layer(
    dense: nn.Module, layer: str
) -> None:
    network, batch = double(dense), images(4)
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    for pruned in range(1, 10):
        candidates = list_candidates(available, {layer: pruned / 10})
        assert largest_difference(network, candidates, batch) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [("conv1", "conv2"), ("conv1", "conv3"), ("conv2", "conv3"), LAYERS]
)
def test_surgery_equals_masking_for_the_multi_layer_prunings(
    dense: nn.Module, layers: tuple[str, ...]
) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, dict.fromkeys(layers, 0.5), count=1000)
    assert largest_difference(double(dense), candidates, images(4)) < 1e-12


def test_masking_changes_what_the_network_computes(dense: nn.Module) -> None:
    # The parity tests above would pass if masks did nothing and surgery were never applied.
    network, batch = double(dense), images(4)
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, {"conv1": 0.5})
    whole = network(batch)
    with masked(network, candidates.groups, candidates.kept(0)) as zeroed:
        assert (zeroed(batch) - whole).abs().max() > 1e-4
    assert torch.equal(network(batch), whole)


def test_the_pruned_network_is_smaller_and_the_dense_one_untouched(dense: nn.Module) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, {"conv1": 0.3, "conv3": 0.5})
    pruned = candidates.prune(dense, 7)
    kept = candidates.kept(7)
    conv1, conv2 = pruned.get_submodule("conv1"), pruned.get_submodule("conv2")
    fc1 = pruned.get_submodule("fc1")
    assert isinstance(conv1, nn.Conv2d)
    assert isinstance(conv2, nn.Conv2d)
    assert isinstance(fc1, nn.Linear)
    assert (conv1.out_channels, conv2.in_channels, fc1.in_features) == (7, 7, 5)
    assert torch.equal(conv1.weight, before["conv1.weight"][kept["conv1"]])
    assert torch.equal(conv2.weight, before["conv2.weight"][:, kept["conv1"]])
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(p.requires_grad for p in pruned.parameters())


class Normed(nn.Module):
    """Convolutions with batch norm and a sigmoid (which turns 0 into 0.5), then a wide flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, stride=2)
        self.norm2 = nn.BatchNorm1d(4 * 9)
        self.third = nn.Linear(4 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm1(self.first(x)))
        x = self.second(x)
        x = x.view(x.size(0), -1)
        return self.third(torch.relu(self.norm2(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [False, True])
def test_surgery_equals_masking_through_norms_flattening_and_sigmoid(training: bool) -> None:
    torch.manual_seed(1)
    network = Normed().double().train()
    with torch.no_grad():
        for norm in (network.norm1, network.norm2):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    batch = torch.randn(8, 2, 7, 7, dtype=torch.float64)
    available = find_groups(network, batch)
    assert set(available.groups) == {"first", "second"}
    candidates = list_candidates(available, {"first": 0.5, "second": 0.5})
    network.train(training)
    with torch.no_grad():
        for index in range(len(candidates)):
            pruned = candidates.prune(network, index)
            with masked(network, candidates.groups, candidates.kept(index)) as zeroed:
                assert (pruned(batch) - zeroed(batch)).abs().max() < 1e-12


def test_surgery_equals_masking_in_an_mlp_with_batch_norm() -> None:
    torch.manual_seed(2)
    network = build("mlp", {"hidden": [6, 5], "batch_norm": True}, input_shape=(1, 4, 4), classes=3)
    network.double().eval()
    batch = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    candidates = list_candidates(find_groups(network, batch), {"fc*": 0.5})
    assert [group.name for group in candidates.groups] == ["fc1", "fc2"]
    assert largest_difference(network, candidates, batch) < 1e-12


def test_only_the_l1_choice_is_wired_rightly_as_released(dense: nn.Module) -> None:
    network, batch = double(dense), images(4)
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    exact = list_candidates(available, {"conv1": 0.5})
    released = list_candidates(available, {"conv1": 0.5}, surgery="as-released")
    with torch.inference_mode():
        same = [
            index
            for index in range(len(exact))
            if torch.allclose(
                exact.prune(network, index)(batch), released.prune(network, index)(batch)
            )
        ]
    magnitude = network.get_parameter("conv1.weight").abs().mean(dim=(1, 2, 3))
    smallest = tuple(sorted(magnitude.argsort()[:5].tolist()))
    assert [exact.ways[index] for index in same] == [(smallest,)]


@pytest.fixture(scope="module")
def crosscheck_dense(crosscheck: Path) -> nn.Module:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    arrays = np.load(crosscheck / "lenet5-mini-dense.npz")
    network.load_state_dict({name: torch.tensor(arrays[name]) for name in arrays})
    return network


def test_the_crosscheck_network_loses_what_its_readme_says(
    crosscheck_dense: nn.Module, digits: Splits
) -> None:
    assert evaluate(crosscheck_dense, digits.train, Classification(10))["loss"] == pytest.approx(
        0.145533, abs=1e-6
    )
    assert evaluate(crosscheck_dense, digits.test, Classification(10))["accuracy"] == pytest.approx(
        0.943
    )


@pytest.mark.parametrize(
    ("surgery", "column"), [("exact", "loss_exact"), ("as-released", "loss_as_released")]
)
def test_losses_equal_those_of_independent_code(
    crosscheck: Path, crosscheck_dense: nn.Module, digits: Splits, surgery: Surgery, column: str
) -> None:
    with (crosscheck / "lenet5-mini-conv1-0.5.csv").open() as file:
        rows = list(csv.DictReader(file))
    available = find_groups(crosscheck_dense, digits.test.inputs[:2])
    candidates = list_candidates(available, {"conv1": 0.5}, surgery=surgery)
    assert [" ".join(map(str, one[0])) for one in candidates] == [
        row["pruned_filters"] for row in rows
    ]
    found = oracle(crosscheck_dense, candidates, digits)
    expected = np.array([float(row[column]) for row in rows])
    assert np.abs(found - expected).max() < 1e-4


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out((x + self.second(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_the_released_wiring_is_of_layers_by_themselves() -> None:
    available = find_groups(Coupled(), torch.zeros(2, 1, 8, 8))
    assert len(list_candidates(available, {"second": 0.5})) == 6
    with pytest.raises(InputError, match="and first goes with second, out: leave it out"):
        list_candidates(available, {"first": 0.5}, surgery="as-released")


def test_a_layer_that_is_coupled_takes_one_ratio() -> None:
    available = find_groups(Coupled(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(
        InputError, match=r"'first' and 'second' lose the same filters.*0.5 and 0.2"
    ):
        list_candidates(available, {"first": 0.5, "second": 0.25})
