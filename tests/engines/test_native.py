"""The native engine against the loop: same batches, same seeds, same losses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trueoracle.data.splits import AnySplit, Split, Splits
from trueoracle.engines import native
from trueoracle.engines.choose import train_population
from trueoracle.engines.native import NativePopulation
from trueoracle.native.library import kernels
from trueoracle.networks.lenet import lenet5_mini
from trueoracle.networks.mlp import mlp
from trueoracle.tasks.classification import Classification
from trueoracle.training.loop import EpochRecord, Stream, train
from trueoracle.training.recipe import Recipe

pytestmark = pytest.mark.skipif(not kernels(), reason="installed without the native kernels")

COMMON: Stream = (0, "")


def lenets(count: int, width: int = 4) -> list[nn.Module]:
    torch.manual_seed(0)
    return [lenet5_mini(width=width) for _ in range(count)]


class Doubled(nn.Module):
    """A network in double precision for the loop, whose images are in single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.double())  # type: ignore[no-any-return]


def assert_same(found: list[EpochRecord], expected: list[EpochRecord], tolerance: float) -> None:
    assert [r.epoch for r in found] == [r.epoch for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.learning_rate == other.learning_rate
        for name in ("train_loss", "validation_loss", "test_loss"):
            assert one.values[name] == pytest.approx(other.values[name], abs=tolerance)
        for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
            # A digit on the border may fall to either side by rounding, in single precision.
            allowed = 0.0 if tolerance < 1e-6 else 0.011
            assert one.values[name] == pytest.approx(other.values[name], abs=allowed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adam", "learning_rate": 0.003, "weight_decay": 1e-3},
        {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.1, "gradient_clip": 0.5},
        {"momentum": 0.0, "shift": 2, "flip": True, "schedule": "cosine"},
        {"schedule": "linear", "schedule_per": "step", "warmup": 0.4, "steps_per_epoch": 3},
        {"label_smoothing": 0.2, "gradient_clip": 0.1, "milestones": (1, 2), "batch_size": 300},
        {"batch_size": 7, "learning_rate": 0.003},
    ],
    ids=str,
)
def test_every_member_ends_as_in_the_loop(few_digits: Splits, options: dict[str, Any]) -> None:
    """Several epochs, members of two seeds; in double precision, where rounding cannot hide a slip
    (in single precision Adam blows it up within an epoch).
    """
    recipe = Recipe(**({"epochs": 3, "batch_size": 64, "learning_rate": 0.02} | options))
    networks = [network.double() for network in lenets(5)]
    streams: list[Stream] = [COMMON, COMMON, COMMON, (1, ""), (1, "")]
    singles = copy.deepcopy(networks)
    together = train_population(networks, streams, few_digits, recipe, engine="native")
    for single, network, stream, found in zip(singles, networks, streams, together, strict=True):
        expected = train(Doubled(single), few_digits, recipe, seed=stream[0], stream=stream[1])
        assert_same(found, expected, tolerance=1e-9)
        for one, other in zip(network.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_a_linear_network_ends_as_in_the_loop(few_digits: Splits) -> None:
    """The paper's variant without activations, some of it before a pooling."""
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=0.02)
    torch.manual_seed(0)
    networks = [lenet5_mini(width=4, activation="identity").double() for _ in range(2)]
    singles = copy.deepcopy(networks)
    together = train_population(networks, [COMMON] * 2, few_digits, recipe, engine="native")
    for single, found in zip(singles, together, strict=True):
        assert_same(found, train(Doubled(single), few_digits, recipe, seed=0), tolerance=1e-9)


def test_in_single_precision_the_losses_agree_to_rounding(few_digits: Splits) -> None:
    recipe = Recipe(epochs=4, batch_size=64, learning_rate=0.02)
    networks = lenets(3)
    singles = copy.deepcopy(networks)
    together = train_population(networks, [COMMON] * 3, few_digits, recipe, engine="native")
    for single, found in zip(singles, together, strict=True):
        assert_same(found, train(single, few_digits, recipe, seed=0), tolerance=1e-5)


def test_independent_random_numbers(few_digits: Splits) -> None:
    """Each member its own batches and shifts: every lane has images of its own."""
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=0.05, shift=2)
    networks = lenets(6)
    streams: list[Stream] = [(0, f"candidate {i}") for i in range(6)]
    singles = copy.deepcopy(networks)
    together = train_population(networks, streams, few_digits, recipe, engine="native")
    for single, stream, found in zip(singles, streams, together, strict=True):
        assert_same(found, train(single, few_digits, recipe, seed=0, stream=stream[1]), 1e-4)


def test_grouping_changes_no_bit(few_digits: Splits) -> None:
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.05, shift=1)
    count = kernels()[0].lanes(False) + 3
    whole = train_population(lenets(count), [COMMON] * count, few_digits, recipe, engine="native")
    networks = lenets(count)
    parts = [
        record
        for members in ([0], range(1, 8), range(8, count))
        for record in train_population(
            [networks[i] for i in members],
            [COMMON] * len(members),
            few_digits,
            recipe,
            engine="native",
        )
    ]
    assert parts == whole


def test_segments_change_nothing(few_digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images made ahead a batch at a time, or all at once."""
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.01, optimizer="adam", shift=1)
    whole = train_population(lenets(2), [COMMON] * 2, few_digits, recipe, engine="native")
    monkeypatch.setattr(native, "SEGMENT_BYTES", 1)
    assert whole == train_population(lenets(2), [COMMON] * 2, few_digits, recipe, engine="native")


def test_every_kernel_trains_alike(few_digits: Splits) -> None:
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=0.05)
    losses = []
    for kernel in kernels():
        population = NativePopulation(lenets(3), [COMMON] * 3, few_digits, recipe, kernel=kernel)
        population.train_epoch(0)
        losses.append(population.measure().values["test"]["loss"])
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-4, atol=1e-5)


def test_a_member_that_diverges_leaves_the_others_alone(few_digits: Splits) -> None:
    recipe = Recipe(epochs=3, batch_size=64, learning_rate=0.05)
    networks = lenets(3)
    with torch.no_grad():
        networks[1].get_parameter("fc2.weight").fill_(1e30)
    alone = train_population(lenets(3)[:1], [COMMON], few_digits, recipe, engine="native")
    found = train_population(networks, [COMMON] * 3, few_digits, recipe, engine="native")
    assert found[0] == alone[0]
    assert len(found[1]) == 1
    assert found[1][0].diverged
    expected = train(lenets(3)[2], few_digits, recipe, seed=0)
    assert_same(found[2], expected, tolerance=1e-4)


def test_flat_images_and_linear_layers(few_digits: Splits) -> None:
    def flat(split: AnySplit | None) -> Split | None:
        return None if split is None else Split.of(split.inputs.flatten(1), split.targets)

    train_split, test_split = flat(few_digits.train), flat(few_digits.test)
    assert train_split is not None
    assert test_split is not None
    data = Splits(train_split, None, test_split, Classification(10))
    recipe = Recipe(epochs=2, batch_size=32, learning_rate=0.01)
    torch.manual_seed(0)
    networks: list[nn.Module] = [mlp((1024,), 10, hidden=(20, 10)) for _ in range(2)]
    singles = copy.deepcopy(networks)
    found = train_population(networks, [COMMON] * 2, data, recipe, engine="native")
    for single, records in zip(singles, found, strict=True):
        expected = train(single, data, recipe, seed=0)
        assert [r.values["test_loss"] for r in records] == pytest.approx(
            [r.values["test_loss"] for r in expected], abs=1e-4
        )


def test_images_with_channels_last_in_memory(few_digits: Splits) -> None:
    def colour(split: AnySplit) -> Split:
        """As pictures come from NumPy."""
        pixels = split.inputs.expand(-1, 3, -1, -1)[:, :, ::4, ::4].permute(0, 2, 3, 1).contiguous()
        return Split.of(pixels.permute(0, 3, 1, 2), split.targets)

    data = Splits(colour(few_digits.train), None, colour(few_digits.test), Classification(10))
    assert not data.train.inputs.is_contiguous()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    single = copy.deepcopy(network)
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=0.01)
    (found,) = train_population([network], [COMMON], data, recipe, engine="native")
    expected = train(single, data, recipe, seed=0)
    assert found[-1].values["test_loss"] == pytest.approx(
        expected[-1].values["test_loss"], abs=1e-5
    )


def test_adam_follows_pytorch_in_single_precision_too(few_digits: Splits) -> None:
    """One step: nothing has had time to blow rounding up."""
    recipe = Recipe(epochs=1, batch_size=300, optimizer="adam", learning_rate=0.01)
    network = mlp((1, 32, 32), hidden=(4,))
    before = [p.detach().clone().double() for p in network.parameters()]
    exact = copy.deepcopy(network).double()
    train_population([network], [COMMON], few_digits, recipe, engine="native")
    train(Doubled(exact), few_digits, recipe, seed=0)
    for start, found, expected in zip(
        before, network.parameters(), exact.parameters(), strict=True
    ):
        change = (expected.detach() - start).abs()
        difference = (found.detach().double() - expected.detach()).abs()
        moved = change > 0.009
        assert float((difference / change)[moved].max()) < 1e-5


def test_a_forward_that_does_more_than_its_layers_is_refused(few_digits: Splits) -> None:
    class Odd(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) * 2

    network = nn.Sequential(nn.Flatten(), Odd(1024, 10))
    assert native.refusal(network, few_digits, Recipe()) is not None


def test_what_the_kernels_cannot_train_is_said(few_digits: Splits) -> None:
    assert native.refusal(lenet5_mini(), few_digits, Recipe()) is None
    assert "bfloat16" in str(
        native.refusal(lenet5_mini(), few_digits, Recipe(precision="autocast"))
    )
    for mixed in (Recipe(mixup=0.2), Recipe(cutmix=1.0)):
        assert "no mixup, no cutmix" in str(native.refusal(lenet5_mini(), few_digits, mixed))
    norm = mlp((1, 32, 32), batch_norm=True)
    assert native.refusal(norm, few_digits, Recipe()) == "norm1 is a BatchNorm1d"
    assert (
        native.refusal(lenet5_mini().half(), few_digits, Recipe())
        == "its weights are torch.float16"
    )
