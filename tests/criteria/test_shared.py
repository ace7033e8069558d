from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.criteria.native import NativeTail
from trueoracle.criteria.shared import (
    SharedLosses,
    evaluate,
    evaluate_all,
    evaluate_each,
    graph,
    losses,
)
from trueoracle.data.splits import Split, Splits
from trueoracle.native.library import kernels
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import Candidates, Surgery, list_candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.walk import find_groups
from trueoracle.tasks.classification import Classification

SURGERIES = ("exact", "as-released")
LENET_PRUNINGS: list[dict[str, float]] = [
    {"conv1": 0.5},
    {"conv1": 0.9},
    {"conv2": 0.3},
    {"conv3": 0.5},
    {"fc1": 0.2},
    {"conv1": 0.5, "conv2": 0.5},
    {"conv1": 0.5, "conv3": 0.3},
    {"conv*": 0.5},
    {"conv2": 0.5, "fc1": 0.5},
]


class Normed(nn.Module):
    """Batch norms before a convolution and, after flattening, before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, stride=2)
        self.norm2 = nn.BatchNorm1d(4 * 9)
        self.third = nn.Linear(4 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm1(self.first(x)))  # which turns 0 into 0.5
        x = self.second(x)
        x = x.view(x.size(0), -1)
        return self.third(torch.relu(self.norm2(x)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Blocks around which the shared activations go on, with usual pitfalls.

    In-place activations, a batch size read off the images, circular padding, a consumer without a
    bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 4, 3, padding="same", padding_mode="circular", bias=False)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2)
        self.norm3 = nn.BatchNorm2d(6)
        self.conv4 = nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.pool = nn.MaxPool2d(3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        count = x.size(0)
        x = functional.relu_(self.stem(x))
        y = self.conv2(functional.relu_(self.conv1(x)))
        y += x
        y = functional.avg_pool2d(y * self.scale, 1)
        z = self.conv4(functional.gelu(self.norm3(self.conv3(y))))
        out: Tensor = self.head(self.pool(z).view(count, -1))
        return out * 2 if double else out


class Branches(nn.Module):
    """A layer with two consumers beside another with one, all of which meet in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 5, 3)
        self.left1 = nn.Conv2d(5, 3, 3)
        self.left2 = nn.Conv2d(5, 3, 3)
        self.right = nn.Conv2d(1, 4, 3)
        self.right1 = nn.Conv2d(4, 3, 3)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.left(x)), torch.tanh(self.right(x))
        x = self.left1(left) * torch.sigmoid(self.left2(left)) + self.right1(right)
        return self.head(x.amax((2, 3)))  # type: ignore[no-any-return]


def small_images(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 8, 8, generator=generator, dtype=dtype)
    return images, torch.randint(5, (count,), generator=generator)


def unsettle(network: nn.Module) -> nn.Module:
    """Give batch norms statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                assert value is not None
                value.data = torch.rand(value.shape, generator=generator) + 0.5
    return network.eval()


def one_by_one(
    network: nn.Module, candidates: Candidates, images: Tensor, labels: Tensor
) -> np.ndarray:
    losses = []
    with torch.inference_mode():
        for index in range(len(candidates)):
            pruned = candidates.prune(network, index).eval()
            losses.append(float(functional.cross_entropy(pruned(images).double(), labels)))
    return np.array(losses)


def by_masks(
    network: nn.Module, candidates: Candidates, images: Tensor, labels: Tensor
) -> np.ndarray:
    losses = []
    with torch.inference_mode():
        for index in range(len(candidates)):
            with masked(network, candidates.groups, candidates.kept(index)) as zeroed:
                losses.append(float(functional.cross_entropy(zeroed(images).double(), labels)))
    return np.array(losses)


def assert_exact(
    network: nn.Module,
    layers: dict[str, float],
    surgery: Surgery,
    images: Tensor,
    labels: Tensor,
    **choice: Any,
) -> SharedLosses:
    available = find_groups(network.float(), images[:2].float())
    candidates = list_candidates(available, layers, surgery=surgery, **choice)
    network = network.to(images.dtype).eval()
    expected = one_by_one(network, candidates, images, labels)
    made = SharedLosses(network, candidates, images[:16])
    assert made.agrees(images[:16])
    found = made.losses(images, labels)
    tolerance = 1e-11 if images.dtype == torch.float64 else 3e-6
    assert found.dtype == np.float64
    assert np.abs(found - expected).max() < tolerance
    assert len(set(np.round(expected, 9))) > 1
    if surgery == "exact":
        assert np.abs(found - by_masks(network, candidates, images, labels)).max() < tolerance
    return made


@pytest.mark.parametrize("layers", LENET_PRUNINGS, ids=str)
@pytest.mark.parametrize("surgery", SURGERIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_equals_the_pruned_networks_of_lenet(
    dense: nn.Module, few_digits: Splits, layers: dict[str, float], surgery: Surgery,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    network.load_state_dict(dense.state_dict())
    split = few_digits.train.take(torch.arange(20))
    made = assert_exact(
        network, layers, surgery, split.inputs.to(dtype), split.targets,
        count=10,
    )  # fmt: skip
    assert (made.tail is not None) == (len(made._sums) == 1 and not made._masks)


@pytest.mark.slow
@pytest.mark.parametrize("surgery", SURGERIES)
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (Normed, {"first": 0.5}),
        (Normed, {"second": 0.5}),
        (Normed, {"first": 0.5, "second": 0.5}),
        (Residual, {"conv1": 0.4}),
        (Residual, {"conv3": 0.5}),
        (Residual, {"conv1": 0.4, "conv3": 0.5}),
        (Branches, {"left": 0.4}),
        (Branches, {"left": 0.4, "right": 0.5}),
    ],
)
def test_it_equals_the_pruned_networks_of_ones_own(
    kind: type[nn.Module], layers: dict[str, float], surgery: Surgery
) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        assert_exact(unsettle(kind()), layers, surgery, *small_images(20, dtype))


@pytest.mark.parametrize("surgery", SURGERIES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_equals_the_pruned_perceptrons(surgery: Surgery, batch_norm: bool) -> None:
    torch.manual_seed(0)
    arguments = {"hidden": [6, 7], "batch_norm": batch_norm}
    for layers in ({"fc1": 0.5}, {"fc2": 0.3}, {"fc*": 0.5}):
        network = unsettle(build("mlp", arguments, input_shape=(1, 8, 8), classes=5))
        images, labels = small_images(33, torch.float64)
        assert_exact(network, layers, surgery, images, labels, count=20)


@pytest.mark.parametrize("surgery", SURGERIES)
def test_groups_too_large_for_contributions_are_masked(
    surgery: Surgery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "CONTRIBUTIONS_BYTES", 0)
    torch.manual_seed(0)
    images, labels = small_images(20, torch.float64)
    for kind, layers in (
        (Normed, {"first": 0.5, "second": 0.5}),
        (Residual, {"conv1": 0.4, "conv3": 0.5}),
        (Branches, {"left": 0.4, "right": 0.5}),
    ):
        made = assert_exact(unsettle(kind()), layers, surgery, images, labels, count=30)
        assert made.tail is None


def test_chunks_and_blocks_change_nothing(dense: nn.Module, few_digits: Splits) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, {"conv1": 0.2, "conv2": 0.5}, count=21)
    split = few_digits.train.take(torch.arange(50))
    made = SharedLosses(dense, candidates, split.inputs[:2])
    expected = made.losses(split.inputs, split.targets)
    for images, block in ((1, 21), (7, 1), (50, 64), (64, 5)):
        made.chunk_images, made.block_candidates = images, block
        assert np.abs(made.losses(split.inputs, split.targets) - expected).max() < 1e-6


def test_the_number_of_threads_changes_nothing(dense: nn.Module, few_digits: Splits) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, {"conv1": 0.2})
    split = few_digits.train.take(torch.arange(100))
    losses = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        losses.append(
            SharedLosses(dense, candidates, split.inputs[:2]).losses(split.inputs, split.targets)
        )
        assert torch.get_num_threads() == threads
    assert losses[0].tolist() == losses[1].tolist() == losses[2].tolist()


def test_blocks_stay_within_their_budget(
    dense: nn.Module, few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, {"conv1": 0.5})
    for budget in (2**18, 2**22):
        monkeypatch.setitem(losses.BLOCK_BYTES, "cpu", budget)
        made = SharedLosses(dense, candidates, few_digits.train.inputs[:2])
        # 10 contributions of 10 maps of 10x10 an image; one such sum for each pair.
        assert made.chunk_images * 10 * 4000 <= budget
        assert made.chunk_images * made.block_candidates * 4000 <= budget


def test_many_calls_share_blocks_to_the_bit(dense: nn.Module, few_digits: Splits) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    candidates = list_candidates(available, {"conv1": 0.5}, count=100)
    split = few_digits.train.take(torch.arange(64))
    whole = evaluate_all(dense, candidates, split, few_digits.task)
    parts = [
        evaluate_all(dense, candidates.take(range(start, end)), split, few_digits.task)
        for start, end in ((0, 32), (32, 96), (96, 100))
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_shipped_networks_share(
    dense: nn.Module, few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> np.ndarray:
        assert len(args) == 5
        assert len(args[4]) == 0
        return np.array([])

    monkeypatch.setattr(evaluate, "evaluate_each", never)
    split = few_digits.train.take(torch.arange(20))
    for name, layers in (("lenet5", {"conv*": 0.5}), ("mlp", {"fc1": 0.5})):
        network = build(name, input_shape=(1, 32, 32), classes=10)
        available = find_groups(network, torch.zeros(2, 1, 32, 32))
        candidates = list_candidates(available, layers, count=3)
        assert np.isfinite(evaluate_all(network, candidates, split, few_digits.task)).all()


FIVE = Classification(5)


class Centred(nn.Module):
    """Subtracts the mean over the images that happen to be evaluated together."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def small(*modules: nn.Module) -> tuple[nn.Module, Candidates, Split]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), *modules, nn.Flatten(), nn.Linear(48, 5)
    ).eval()
    images, labels = small_images(30, torch.float32)
    candidates = list_candidates(find_groups(network, images[:2]), {"0": 0.5})
    return network, candidates, Split.of(images, labels)


def test_what_cannot_be_merged_is_evaluated_one_by_one() -> None:
    network, candidates, split = small(Centred())
    assert not SharedLosses(network, candidates, split.inputs[:16]).agrees(split.inputs[:16])
    found = evaluate_all(network, candidates, split, FIVE)
    assert found.tolist() == evaluate_each(network, candidates, split, FIVE).tolist()


def test_what_cannot_be_planned_is_evaluated_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def untraceable(network: nn.Module) -> None:
        raise TypeError("this network cannot be traced")

    monkeypatch.setattr(losses, "trace", untraceable)
    network, candidates, split = small()
    with caplog.at_level("INFO"):
        found = evaluate_all(network, candidates, split, FIVE)
    assert found.tolist() == evaluate_each(network, candidates, split, FIVE).tolist()
    assert "one at a time: TypeError: this network cannot be traced" in caplog.text


def test_a_pruned_filter_that_overflows_does_no_harm() -> None:
    network, candidates, split = small()
    with torch.no_grad():
        network.get_parameter("0.weight")[2] = math.inf
    expected = evaluate_each(network, candidates, split, FIVE)
    assert np.isfinite(expected).sum() == 3  # of 6 candidates, those without the filter
    np.testing.assert_allclose(evaluate_all(network, candidates, split, FIVE), expected, rtol=1e-6)


def test_the_tail_and_its_inputs_are_all_that_a_faster_way_needs(
    dense: nn.Module, few_digits: Splits
) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    split = few_digits.train.take(torch.arange(20))
    for surgery, count in (("exact", 10), ("as-released", 30)):
        candidates = list_candidates(
            available, {"conv1": 0.5}, surgery="exact" if surgery == "exact" else "as-released"
        )
        made = SharedLosses(dense, candidates, split.inputs[:2])
        assert made.tail is not None
        assert made.selection.shape == (252, count)
        assert made.selection.sum(1).tolist() == [5] * 252
        shared = made.share(split.inputs, split.targets)
        (parts,) = shared.contributions.values()
        assert parts.shape == (20, count, 10, 10, 10)
        with torch.inference_mode():
            sums = torch.einsum("pc,nc...->pn...", made.selection[[7, 100]], parts)
            logits = nn.Sequential(*made.tail)(sums.flatten(0, 1).contiguous())
            losses = functional.cross_entropy(logits, split.targets.repeat(2), reduction="none")
        found = made.sum_losses(shared)[[7, 100]]
        torch.testing.assert_close(losses.view(2, 20).sum(1).double(), found, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not kernels(), reason="installed without the native kernels")
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "fc1"])
@pytest.mark.parametrize("surgery", SURGERIES)
def test_the_native_kernels_compute_the_same_tail(
    dense: nn.Module, few_digits: Splits, layer: str, surgery: Surgery
) -> None:
    images, labels = few_digits.test.inputs, few_digits.test.targets
    candidates = list_candidates(find_groups(dense, images[:2]), {layer: 0.5}, surgery=surgery)
    candidates = candidates.take(range(37))  # the last lanes not full
    by_torch = SharedLosses(dense, candidates, images)
    native = SharedLosses(dense, candidates, images)
    native.use_native(images[:5])
    assert native.is_native
    assert not by_torch.is_native
    found = native.losses(images, labels)
    np.testing.assert_allclose(found, by_torch.losses(images, labels), rtol=2e-6)
    expected = evaluate_each(dense, candidates, few_digits.test, few_digits.task, [0, 20, 36])
    np.testing.assert_allclose(found[[0, 20, 36]], expected, rtol=2e-6)


@pytest.mark.skipif(not kernels(), reason="installed without the native kernels")
def test_native_scores_do_not_depend_on_which_are_scored_together(
    dense: nn.Module, few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = list_candidates(find_groups(dense, few_digits.test.inputs[:2]), {"conv1": 0.5})
    whole = evaluate_all(dense, candidates, few_digits.test, few_digits.task)
    monkeypatch.setattr(losses, "NATIVE_BYTES", 200_000)
    parts = [candidates.take(range(a, b)) for a, b in ((0, 7), (7, 100), (100, 252))]
    scores = [evaluate_all(dense, part, few_digits.test, few_digits.task) for part in parts]
    assert np.concatenate(scores).tolist() == whole.tolist()


def test_kernels_that_disagree_are_not_used(
    dense: nn.Module, few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: NativeTail, groups: list[Tensor], maps: Tensor, labels: Tensor) -> Tensor:
        return torch.ones(len(groups) * 64, dtype=torch.float64)

    monkeypatch.setattr(NativeTail, "sum_losses", wrong)
    candidates = list_candidates(find_groups(dense, few_digits.test.inputs[:2]), {"conv1": 0.5})
    shared = SharedLosses(dense, candidates, few_digits.test.inputs)
    shared.use_native(few_digits.test.inputs[:5])
    assert not shared.is_native
