from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trueoracle.engines.memory import (
    available_memory,
    parse_bytes,
    readable_bytes,
    training_bytes,
    weight_bytes,
)
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.tasks.base import Batch
from trueoracle.tasks.classification import Classification
from trueoracle.training.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("800MB", 800_000_000),
        ("4GiB", 4 * 2**30),
        ("2.5 g", 2_500_000_000),
        (" 64k ", 64_000),
        ("123", 123),
        ("1TB", 10**12),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4 XB", "0", "GB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="amount of memory such as 800MB"):
        parse_bytes(text)


def test_amounts_in_words() -> None:
    assert [readable_bytes(n) for n in (12, 3_400, 56_700_000, 1_440_000_000)] == [
        "12 bytes",
        "3.4 kB",
        "56.7 MB",
        "1.44 GB",
    ]


def test_there_is_some_memory() -> None:
    assert 10**7 < available_memory(torch.device("cpu")) < 10**14


def example(*shape: int) -> Batch:
    return {"input": torch.zeros(1, *shape)}


def test_training_is_counted_by_hand() -> None:
    """One linear layer: weights, gradients and momentum, and the images kept for the gradient."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    weights = 4 * (12 * 5 + 5)
    assert weight_bytes(network) == weights
    images = 4 * 7 * 12
    for recipe, copies in (
        (Recipe(), 3),
        (Recipe(momentum=0), 2),
        (Recipe(optimizer="adam"), 4),
        (Recipe(optimizer="adamw"), 4),
    ):
        assert (
            training_bytes(network, example(3, 2, 2), 7, recipe, Classification(5))
            == copies * weights + images
        )
    assert (
        training_bytes(
            network, example(3, 2, 2), 7, Recipe(precision="autocast"), Classification(5)
        )
        == 3 * weights + images / 2
    )
    network[1].requires_grad_(False)
    assert training_bytes(network, example(3, 2, 2), 7, Recipe(), Classification(5)) == weights


@pytest.mark.parametrize("name", ["lenet5-mini", "resnet20", "vgg11"])
def test_a_pass_over_shapes_counts_what_a_real_one_keeps(name: str) -> None:
    shape = (3, 32, 32)
    network = build(name, {}, input_shape=shape, classes=10).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    found = training_bytes(
        network, example(*shape), 4, Recipe(momentum=0), Classification(5)
    ) - weight_bytes(network)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    own = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        output = network(torch.randn(4, *shape))
    expected = sum(p.nbytes for p in network.parameters())
    expected += sum(v.untyped_storage().nbytes() for key, v in kept.items() if key not in own)
    assert found == pytest.approx(expected, rel=0.02)
    del output


def test_a_network_that_looks_at_values_is_counted_without_its_batch() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)  # type: ignore[no-any-return]

    assert (
        training_bytes(Looks(), example(4), 8, Recipe(momentum=0), Classification(5)) == 2 * 4 * 10
    )
