from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.data.splits import Split, Splits
from trueoracle.networks.registry import build
from trueoracle.tasks.base import Batch
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.language import NextToken
from trueoracle.training.evaluate import evaluate
from trueoracle.training.loop import EpochRecord, batches, train
from trueoracle.training.recipe import Recipe


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("lenet5-mini", input_shape=(1, 32, 32), classes=10)


def labels_of(found: Iterable[Batch]) -> Tensor:
    return torch.cat([batch["target"] for batch in found])


def only(found: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    (batch,) = found
    return batch["input"], batch["target"]


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_training_learns_and_records_every_epoch(network: nn.Module, few_digits: Splits) -> None:
    recipe = Recipe(epochs=12, batch_size=32, learning_rate=0.05, milestones=(9,))
    records = train(network, few_digits, recipe, seed=0)
    assert [record.epoch for record in records] == list(range(12))
    assert records[0].learning_rate == 0.05
    assert records[-1].learning_rate == pytest.approx(0.005)
    assert records[-1].train_loss < 0.5 < records[0].train_loss
    assert records[-1].values["test_accuracy"] > 0.7
    assert records[-1].train_loss == pytest.approx(
        evaluate(network, few_digits.train, Classification(10))["loss"]
    )
    assert records[-1].values["validation_loss"] != records[-1].values["test_loss"]


def test_the_same_seed_gives_the_same_network(network: nn.Module, few_digits: Splits) -> None:
    recipe = Recipe(epochs=2, batch_size=64, shift=2, flip=True)
    networks = [copy.deepcopy(network) for _ in range(3)]
    records = [
        train(one, few_digits, recipe, seed=seed)
        for one, seed in zip(networks, (5, 5, 6), strict=True)
    ]
    assert records[0] == records[1] != records[2]
    assert torch.equal(weights(networks[0]), weights(networks[1]))
    assert not torch.equal(weights(networks[0]), weights(networks[2]))


def test_training_leaves_the_global_random_numbers_alone(
    network: nn.Module, few_digits: Splits
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(network, few_digits, Recipe(epochs=1), seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_batches_are_common_within_a_seed_and_cover_the_split(few_digits: Splits) -> None:
    recipe = Recipe(batch_size=64, shift=1)
    first = list(batches(few_digits, recipe, seed=1, epoch=2))
    again = list(batches(few_digits, recipe, seed=1, epoch=2))
    assert all(torch.equal(a["input"], b["input"]) for a, b in zip(first, again, strict=True))
    assert [len(batch["target"]) for batch in first] == [64, 64, 64, 64, 44]
    order = labels_of(first)
    assert torch.equal(order.bincount(), few_digits.train.targets.bincount())
    for seed, epoch in ((2, 2), (1, 3)):
        different = labels_of(batches(few_digits, recipe, seed, epoch))
        assert not torch.equal(order, different)
    own = labels_of(batches(few_digits, recipe, 1, 2, stream="candidate"))
    assert not torch.equal(order, own)


def test_one_step_of_sgd_is_its_formula(network: nn.Module, few_digits: Splits) -> None:
    """Momentum, weight decay, label smoothing and clipping, recomputed by hand for two steps."""
    recipe = Recipe(
        epochs=1, batch_size=150, learning_rate=0.1, momentum=0.8, weight_decay=0.01,
        label_smoothing=0.1, gradient_clip=0.05,
    )  # fmt: skip
    by_hand = copy.deepcopy(network).train()
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for batch in batches(few_digits, recipe, seed=4, epoch=0):
        images, labels = batch["input"], batch["target"]
        by_hand.zero_grad()
        logits = functional.log_softmax(by_hand(images), dim=1)
        target = functional.one_hot(labels, 10) * 0.9 + 0.01
        loss = -(target * logits).sum(1).mean()
        loss.backward()
        gradients = [p.grad for p in by_hand.parameters() if p.grad is not None]
        norm = torch.sqrt(sum(((g**2).sum() for g in gradients), torch.zeros(())))
        scale = min(1.0, 0.05 / (float(norm) + 1e-6))
        assert scale < 1  # or the clipping would not be tested
        with torch.no_grad():
            for p, g, v in zip(by_hand.parameters(), gradients, velocity, strict=True):
                v.mul_(0.8).add_(g * scale + 0.01 * p)
                p.sub_(0.1 * v)
    train(network, few_digits, recipe, seed=4)
    assert torch.allclose(weights(network), weights(by_hand), atol=1e-6)


def test_mixed_batches_train_on_class_probabilities(network: nn.Module, few_digits: Splits) -> None:
    """Mixup and cutmix with label smoothing: one step of plain gradient descent, by hand."""
    recipe = Recipe(
        epochs=1, batch_size=300, learning_rate=0.1, momentum=0, weight_decay=0,
        label_smoothing=0.1, mixup=0.4, cutmix=1.0, resized_crop=0.5,
    )  # fmt: skip
    plain = recipe.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    for seed in (0, 1, 2):
        by_hand, trained = copy.deepcopy(network), copy.deepcopy(network)
        images, soft = only(batches(few_digits, recipe, seed, epoch=0))
        unmixed, labels = only(batches(few_digits, plain, seed, epoch=0))
        assert images.shape == unmixed.shape
        assert not torch.equal(images, unmixed)
        assert soft.shape == (300, 10)
        own = soft.gather(1, labels[:, None])
        assert float(own.min()) > 0
        logits = functional.log_softmax(by_hand(images), dim=1)
        (-((soft * 0.9 + 0.01) * logits).sum(1).mean()).backward()
        with torch.no_grad():
            for p in by_hand.parameters():
                assert p.grad is not None
                p.sub_(0.1 * p.grad)
        train(trained, few_digits, recipe, seed=seed)
        assert torch.allclose(weights(trained), weights(by_hand), atol=1e-6)


def test_train_loss_is_measured_on_its_part_and_trained_on_all(
    network: nn.Module, few_digits: Splits
) -> None:
    recipe = Recipe(epochs=1, batch_size=64)
    part = few_digits.measured_in_part(0.2, seed=0)
    other = copy.deepcopy(network)
    (whole,), (record,) = (
        train(one, data, recipe, seed=0) for one, data in ((other, few_digits), (network, part))
    )
    assert torch.equal(weights(network), weights(other))
    assert (
        record.train_loss
        == evaluate(network, part.measured_train, Classification(10))["loss"]
        != whole.train_loss
    )
    assert record.values["test_loss"] == whole.values["test_loss"]
    assert len(part.measured_train) < 70


def test_autocast_takes_class_probabilities(network: nn.Module, few_digits: Splits) -> None:
    recipe = Recipe(epochs=1, batch_size=100, precision="autocast", mixup=0.2)
    (record,) = train(network, few_digits, recipe, seed=0)
    assert record.train_loss < 2.4


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_steps_by_the_learning_rate(
    network: nn.Module, few_digits: Splits, optimizer: str
) -> None:
    recipe = Recipe.model_validate(
        {"epochs": 1, "batch_size": 300, "learning_rate": 0.003, "weight_decay": 0}
        | {"optimizer": optimizer}
    )
    before = weights(network)
    train(network, few_digits, recipe, seed=0)
    # Adam's first step is the learning rate in every coordinate that has a gradient.
    step = (weights(network) - before).abs()
    assert float(step.max()) == pytest.approx(0.003, rel=1e-3)
    assert float(step.median()) == pytest.approx(0.003, rel=1e-2)


def test_adamw_decays_apart_from_the_gradient(network: nn.Module, few_digits: Splits) -> None:
    results = {}
    for optimizer in ("adam", "adamw"):
        one = copy.deepcopy(network)
        recipe = Recipe.model_validate(
            {"epochs": 1, "batch_size": 300, "learning_rate": 0.01, "weight_decay": 0.5}
            | {"optimizer": optimizer}
        )
        train(one, few_digits, recipe, seed=0)
        results[optimizer] = weights(one)
    plain = copy.deepcopy(network)
    train(
        plain,
        few_digits,
        Recipe(epochs=1, batch_size=300, learning_rate=0.01, weight_decay=0, optimizer="adam"),
        seed=0,
    )
    expected = weights(plain) - 0.01 * 0.5 * weights(network)
    assert torch.allclose(results["adamw"], expected, atol=1e-6)
    assert not torch.allclose(results["adam"], expected, atol=1e-4)


def test_a_network_that_diverges_is_stopped_and_says_so(
    network: nn.Module, few_digits: Splits
) -> None:
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=1e9)
    records = train(network, few_digits, recipe, seed=0)
    assert records[-1].diverged
    assert len(records) < 8


def test_without_a_validation_split_its_metrics_are_nan(
    network: nn.Module, few_digits: Splits
) -> None:
    data = Splits(few_digits.train, None, few_digits.test, Classification(10))
    record = train(network, data, Recipe(epochs=1), seed=0)[0]
    assert math.isnan(record.values["validation_loss"])
    assert math.isnan(record.values["validation_accuracy"])
    assert not record.diverged


def test_evaluation_uses_evaluation_mode_and_restores_the_mode() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 2))
    split = Split.of(torch.randn(50, 1, 2, 2), torch.randint(0, 2, (50,)))
    network.train()
    task = Classification(2)
    assert evaluate(network, split, task) == evaluate(network, split, task)
    assert network.training


def test_evaluation_does_not_depend_on_its_batches(network: nn.Module, few_digits: Splits) -> None:
    whole = evaluate(network, few_digits.train, few_digits.task, 300)
    parts = evaluate(network, few_digits.train, few_digits.task, 7)
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert parts["accuracy"] == whole["accuracy"]
    logits = network.eval()(few_digits.train.inputs)
    expected = functional.cross_entropy(logits, few_digits.train.targets)
    assert whole["loss"] == pytest.approx(float(expected.detach()), abs=1e-6)


def test_a_record_is_the_row_that_it_is_written_as() -> None:
    values = {"train_loss": 0.5, "test_loss": 0.25, "validation_loss": math.nan, "test_r2": -1.0}
    record = EpochRecord(3, 0.01, values)
    row = record.as_row()
    assert row == {"epoch": 3, "learning_rate": 0.01, **values}
    assert repr(EpochRecord.from_row(row)) == repr(record)
    assert math.isnan(EpochRecord.from_row(row | {"test_r2": None}).values["test_r2"])
    assert not record.diverged
    assert EpochRecord.from_row(row | {"train_loss": math.inf}).diverged


@pytest.mark.parametrize("batch_size", [1, 3, 7, None])
def test_tokens_and_pixels_weigh_alike_whatever_the_batches(batch_size: int | None) -> None:
    """The last text has one token that counts and the first five: no mean of means."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (7, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor([6, 5, 4, 3, 2, 2, 2])[:, None]).long()
    split = Split({"input_ids": tokens, "attention_mask": mask})

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(5, 5)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"logits": self.rows(input_ids) * attention_mask[..., None]}

    torch.manual_seed(0)
    network = Table()
    logits = network(tokens, mask)["logits"].detach()
    losses, right = [], []
    for text in range(7):
        for place in range(1, int(mask[text].sum())):
            row, wanted = logits[text, place - 1], tokens[text, place]
            losses.append(float(functional.cross_entropy(row, wanted)))
            right.append(bool(row.argmax() == wanted))
    found = evaluate(network, split, NextToken(), batch_size)
    assert found == pytest.approx(
        {"loss": sum(losses) / 17, "token_accuracy": sum(right) / 17}, rel=1e-5
    )


def test_an_epoch_of_some_steps_draws_its_examples_anew(few_digits: Splits) -> None:
    recipe = Recipe(epochs=2, batch_size=16, steps_per_epoch=3)
    first, second = (list(batches(few_digits, recipe, 0, epoch)) for epoch in (0, 1))
    assert [len(batch["target"]) for batch in first] == [16] * 3
    whole = batches(few_digits, recipe.model_copy(update={"steps_per_epoch": None}), 0, 0)
    for batch, expected in zip(first, whole, strict=False):
        assert torch.equal(batch["input"], expected["input"])
    assert not torch.equal(labels_of(first), labels_of(second))


@pytest.mark.parametrize("fields", [{}, {"shift": 2, "flip": True}, {"resized_crop": 0.5}])
def test_batches_can_begin_later(few_digits: Splits, fields: dict[str, float]) -> None:
    recipe = Recipe(batch_size=64, **fields)
    whole = list(batches(few_digits, recipe, 3, 1))
    rest = list(batches(few_digits, recipe, 3, 1, first=3))
    assert len(whole) == 5
    assert len(rest) == 2
    for batch, expected in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_each_step_has_its_rate(network: nn.Module, few_digits: Splits) -> None:
    recipe = Recipe(
        epochs=2,
        batch_size=100,
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        schedule="linear",
        schedule_per="step",
        warmup=2,
    )
    by_hand = copy.deepcopy(network)
    rates = [0.05, 0.1, 0.1, 0.075, 0.05, 0.025]
    for epoch in (0, 1):
        for step, batch in enumerate(batches(few_digits, recipe, 0, epoch)):
            loss = functional.cross_entropy(by_hand(batch["input"]), batch["target"])
            parameters = list(by_hand.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(rates[3 * epoch + step] * gradient)
    records = train(network, few_digits, recipe, seed=0)
    torch.testing.assert_close(weights(network), weights(by_hand))
    assert [record.learning_rate for record in records] == pytest.approx([0.05, 0.075])
