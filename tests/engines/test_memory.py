from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.training.tiny import TOKENS, Reader
from trueoracle.data.splits import Split, Splits
from trueoracle.engines.memory import (
    LiveBytes,
    available_memory,
    evaluated_at_once,
    parse_bytes,
    peak_bytes,
    readable_bytes,
    training_bytes,
    ways_to_fit,
    weight_bytes,
)
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.language import Answers
from trueoracle.training.loop import Training
from trueoracle.training.recipe import Lora, Recipe, Retraining


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


TASK = Classification(5)


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
            training_bytes(network, example(3, 2, 2), 7, recipe, TASK) == copies * weights + images
        )
    assert (
        training_bytes(
            network, example(3, 2, 2), 7, Recipe(precision="autocast"), Classification(5)
        )
        == 3 * weights + images / 2
    )
    network[1].requires_grad_(False)
    assert training_bytes(network, example(3, 2, 2), 7, Recipe(), TASK) == weights


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

    assert training_bytes(Looks(), example(4), 8, Recipe(momentum=0), TASK) == 2 * 4 * 10


def real_peak(network: nn.Module, batch: Batch, recipe: Recipe, task: Task) -> int:
    """Of two steps that are really computed: bytes of all tensors alive."""
    split = Split(batch)
    made = copy.deepcopy(network)
    live = LiveBytes()
    training = Training(made, Splits(split, None, split, task), recipe, (0, ""))
    begun = weight_bytes(training.network)
    with live:
        for epoch in range(2):
            training.train_epoch(epoch)
    return begun + live.peak


LORA = Lora(rank=2)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw"},
    {"precision": "autocast"},
    {"precision": "bfloat16"},
    {"accumulate": 4},
    {"gradient_checkpointing": True},
    {"lora": LORA},
    {"lora": LORA, "precision": "bfloat16", "gradient_checkpointing": True, "accumulate": 2},
]


@pytest.mark.parametrize("fields", SETTINGS, ids=lambda fields: "-".join(fields) or "plain")
@pytest.mark.parametrize("kind", ["text", "images", "both"])
def test_the_peak_is_foretold_from_shapes_alone(kind: str, fields: dict[str, Any]) -> None:
    if "lora" in fields:
        pytest.importorskip("peft")
    recipe = Retraining(batch_size=16, **fields)
    task: Task
    if kind == "text":
        torch.manual_seed(0)
        network: nn.Module = Reader(width=64, blocks=4)
        ids = torch.randint(TOKENS, (16, 20))
        batch, task = {"input_ids": ids, "labels": ids}, Answers()
    elif kind == "both":  # LLaVA compares the number of its images' tokens with that of features
        pytest.importorskip("transformers")
        network = build("llava", {"context": 64}, input_shape=(3, 32, 32), classes=40)
        ids = torch.randint(5, 40, (16, 20))
        ids[:, :4] = 4
        batch, task = {"input_ids": ids, "labels": ids}, Answers()
        batch["pixel_values"] = torch.randn(16, 3, 32, 32)
    else:
        sizes = {"patch": 4, "layers": 3, "heads": 2, "width": 32, "mlp": 64}
        network = build("vit-b-16", sizes, input_shape=(3, 16, 16), classes=5)
        batch = {"input": torch.randn(16, 3, 16, 16), "target": torch.arange(16) % 5}
        task = TASK
    found = peak_bytes(network, {n: v[:1] for n, v in batch.items()}, 16, recipe, task)
    assert found == pytest.approx(real_peak(network, batch, recipe, task), rel=0.1)


@pytest.mark.parametrize("fields", [{"optimizer": "adamw"}, {"lora": LORA}, {"accumulate": 4}])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_peak_of_an_evaluation_is_foretold_too(kind: str, fields: dict[str, Any]) -> None:
    """Two examples are trained on at a time, and 200 measured."""
    if "lora" in fields:
        pytest.importorskip("peft")
    recipe = Retraining(batch_size=4, steps_per_epoch=1, **fields)
    task: Task
    if kind == "text":
        torch.manual_seed(0)
        network: nn.Module = Reader(width=64, blocks=4)
        ids = torch.randint(TOKENS, (200, 20))
        batch, task = {"input_ids": ids, "labels": ids}, Answers()
    else:
        sizes = {"patch": 4, "layers": 3, "heads": 2, "width": 32, "mlp": 64}
        network = build("vit-b-16", sizes, input_shape=(3, 16, 16), classes=5)
        batch = {"input": torch.randn(200, 3, 16, 16), "target": torch.arange(200) % 5}
        task = TASK
    split, live = Split(batch), LiveBytes()
    data = Splits(split, None, split, task)
    training = Training(copy.deepcopy(network), data, recipe, (0, ""))
    begun = weight_bytes(training.network)
    with live:
        for epoch in range(2):
            training.train_epoch(epoch)
        trained = live.peak
        training.measure(1)
    assert live.peak > 1.5 * trained
    assert evaluated_at_once(data) == 200
    example = data.example(1)
    found = peak_bytes(network, example, 4, recipe, task, 200)
    # Those measured are parts of what is in memory here, and are made where it is streamed.
    made = sum(value.nbytes for value in batch.values())
    assert found == pytest.approx(begun + live.peak + made, rel=0.1)
    assert (peak_bytes(network, example, 4, recipe, task) or 0) < 0.8 * (found or 0)


def test_a_network_that_looks_at_values_has_no_foretold_peak() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)  # type: ignore[no-any-return]

    batch = {"input": torch.zeros(1, 4), "target": torch.zeros(1, dtype=torch.int64)}
    assert peak_bytes(Looks(), batch, 8, Recipe(), TASK) is None


def test_what_makes_a_training_fit_is_said() -> None:
    network = Reader(width=64, blocks=4)
    ids = torch.zeros(1, 20, dtype=torch.int64)
    batch, recipe = {"input_ids": ids, "labels": ids}, Recipe(batch_size=64, momentum=0.0)
    needs = {
        n: peak_bytes(network, batch, 64, Recipe(batch_size=64, momentum=0.0, **fields), Answers())
        for n, fields in (
            ("parts", {"accumulate": 64}),
            ("again", {"gradient_checkpointing": True}),
        )
    }
    parts, again = (needs[name] or 0 for name in ("parts", "again"))
    assert 0 < parts < again
    said = ways_to_fit(network, batch, 64, recipe, Answers(), again)
    assert said == (
        f"it fits with retraining.accumulate = 64 ({readable_bytes(parts)}) or "
        f"retraining.gradient_checkpointing = true ({readable_bytes(again)}), or with a lower "
        "retraining.batch_size"
    )
    least = ways_to_fit(network, batch, 64, recipe, Answers(), 1000)
    assert least == f"nothing makes it fit: {readable_bytes(parts)} is the least"
