"""Gradients computed in parts are those of the whole batch, for every task."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tasks.cases import CASES, Case
from tests.training.tiny import answers, reader
from trueoracle.tasks.base import Batch
from trueoracle.tasks.distillation import Distilled
from trueoracle.training.loop import add_gradients, train
from trueoracle.training.recipe import Recipe, Retraining


class Table(nn.Module):
    """Gives each example a row of its own, which is trained."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)


class Reading:
    """What a task's ``forward`` does with a :class:`Table`."""

    def __call__(self, network: nn.Module, batch: Batch) -> Any:
        return network.get_parameter("outputs")[batch["row"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_weigh_as_what_counts_in_them(case: Case, parts: int) -> None:
    batch = {**case.batch(), "row": torch.arange(7)}
    task = copy.copy(case.task)
    task.forward = Reading()  # type: ignore[method-assign]
    whole, found = Table(case.given().double()), Table(case.given().double())
    task.loss(task.forward(whole, batch), batch).backward()
    add_gradients(found, task, batch, Recipe(batch_size=7, accumulate=parts))
    torch.testing.assert_close(found.outputs.grad, whole.outputs.grad, rtol=1e-6, atol=1e-12)


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize(("examples", "size", "parts"), [(8, 8, 4), (5, 8, 4), (7, 7, 7)])
def test_answers_of_unequal_lengths(examples: int, size: int, parts: int) -> None:
    data = answers()
    batch = data.example(examples)
    whole, found, plain = (reader(double=True).eval() for _ in range(3))
    data.task.loss(data.task.forward(whole, batch), batch).backward()
    add_gradients(found, data.task, batch, Recipe(batch_size=size, accumulate=parts))
    torch.testing.assert_close(gradients(found), gradients(whole), rtol=1e-10, atol=1e-12)
    # The mean of the parts' means, which is what one gets without counting, is another gradient.
    pieces = [{n: v[i : i + 2] for n, v in batch.items()} for i in range(0, examples, 2)]
    for piece in pieces:
        loss = data.task.loss(data.task.forward(plain, piece), piece) / len(pieces)
        loss.backward()
    assert (gradients(plain) - gradients(whole)).abs().max() > 1e-3


def test_a_part_without_an_answer_is_no_nan() -> None:
    data = answers()
    batch = {name: value[[0, 6, 1]] for name, value in data.example(7).items()}
    assert [data.task.weight({n: v[i : i + 1] for n, v in batch.items()}) for i in range(3)] == [
        *(0, 0, 1)
    ]
    network = reader()
    add_gradients(network, data.task, batch, Recipe(batch_size=3, accumulate=3))
    assert torch.isfinite(gradients(network)).all()
    none = {name: value[:1] for name, value in batch.items()}
    network.zero_grad()
    add_gradients(network, data.task, none, Recipe(batch_size=3))
    assert not gradients(network).any()


def test_a_teacher_counts_the_same_tokens() -> None:
    data = answers()
    task = Distilled(data.task, reader(double=True), 0.5, 2.0)
    batch = data.example(8)
    whole, found = reader(double=True).eval(), reader(double=True).eval()
    with torch.no_grad():
        for network in (whole, found):
            network.head.weight.mul_(1.5)
    task.loss(task.forward(whole, batch), batch).backward()
    add_gradients(found, task, batch, Recipe(batch_size=8, accumulate=3))
    torch.testing.assert_close(gradients(found), gradients(whole), rtol=1e-10, atol=1e-12)


def test_whole_trainings_agree() -> None:
    data = answers()
    once, parted = reader(double=True), reader(double=True)
    for network in (once, parted):
        for block in network.blocks:
            block.get_submodule("dropout").p = 0.0  # type: ignore[assignment]
    recipe = Retraining(epochs=2, batch_size=8, learning_rate=0.1)
    expected = train(once, data, recipe, seed=0)
    found = train(parted, data, recipe.model_copy(update={"accumulate": 3}), seed=0)
    assert found[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=1e-9)
    assert expected[-1].train_loss < expected[0].train_loss


def test_a_part_has_an_example() -> None:
    with pytest.raises(ValueError, match=r"accumulate = 9 parts .* batch_size = 8"):
        Recipe(batch_size=8, accumulate=9)
