"""Outcomes by blocks of examples: what each adds to a metric of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tasks.cases import CASES, Case, N, cut, measured
from trueoracle.data.splits import Split, Splits
from trueoracle.networks.lenet import lenet5_mini
from trueoracle.tasks.base import Batch, Task, is_by_example
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.regression import Regression
from trueoracle.training.evaluate import Tally, evaluate, tally_together
from trueoracle.training.loop import measure

BLOCKS = torch.tensor([1, 0, 2, 0, 1, 0, 2])
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def tallied(task: Task, outputs: Tensor, batch: Batch, *cuts: int) -> Tally:
    tally = Tally(task, BLOCKS)
    for start, end in zip([0, *cuts], [*cuts, N], strict=True):
        tally.add(outputs[start:end], cut(batch, start, end))
    return tally


def test_losses_and_right_answers_add_up_over_blocks(few_digits: Splits) -> None:
    torch.manual_seed(0)
    network, data = lenet5_mini().eval(), few_digits.in_blocks(8)
    blocks = data.blocks["test"]
    plain = evaluate(network, data.test, data.task)
    (tally,) = tally_together([network], data.test, data.task, 33, blocks)
    with torch.no_grad():
        logits = network(data.test.inputs)
    losses = functional.cross_entropy(logits, data.test.targets, reduction="none")
    right = logits.argmax(1) == data.test.targets
    for name, each in (("loss", losses), ("accuracy", right)):
        sums = torch.zeros(8, dtype=torch.float64).index_add_(0, blocks, each.double())
        torch.testing.assert_close(tally.by_block()[name], sums, rtol=1e-5, atol=1e-9)
        assert float(sums.sum()) / len(data.test) == pytest.approx(plain[name], rel=1e-6)
    record = measure(network, data, 0, 0.1, by_block=True)
    assert list(record.blocks) == [
        f"{split}_{metric}" for split in ("validation", "test") for metric in ("loss", "accuracy")
    ]
    # What is measured of all examples is the same to the bit.
    assert record.values == measure(network, data, 0, 0.1).values
    assert {f"test_{name}": value for name, value in plain.items()}.items() <= record.values.items()


@every_case
def test_without_a_block_is_a_metric_of_the_other_examples(case: Case) -> None:
    outputs, batch = case.given(), case.batch()
    found = tallied(case.task, outputs, batch, 2, 5)
    assert found.metrics() == pytest.approx(measured(case.task, outputs, batch), rel=1e-6)
    whole, sums = found.metrics(), found.by_block()
    for block, size in enumerate(BLOCKS.bincount().tolist()):
        rest = block != BLOCKS
        expected = measured(case.task, outputs[rest], {n: v[rest] for n, v in batch.items()})
        for name, value in expected.items():
            left = (N * whole[name] - sums[name][block]) / (N - size)
            assert float(left) == pytest.approx(value, rel=1e-5, abs=1e-6)


@every_case
def test_blocks_of_many_networks_at_a_time_are_those_of_each(case: Case) -> None:
    outputs, batch = torch.stack([case.given(seed) for seed in range(3)]), case.batch()
    together = Tally(case.task, BLOCKS, stacked=True)
    for start, end in ((0, 3), (3, N)):
        together.add(outputs[:, start:end], cut(batch, start, end))
    for member in range(3):
        alone = tallied(case.task, outputs[member], batch, 3).by_block()
        for name, sums in together.by_block().items():
            torch.testing.assert_close(sums[member], alone[name], rtol=1e-5, atol=1e-6)


def test_networks_that_give_several_things_are_cut_example_by_example() -> None:
    class Pair(Classification):
        def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
            return super().sums(outputs[0] + outputs[1], batch)

    case = CASES[0]
    batch, parts = case.batch(), (case.given(1), case.given(2))
    tally = Tally(Pair(3), BLOCKS)
    tally.add(parts, batch)
    expected = tallied(case.task, sum(parts, torch.zeros(())), batch).by_block()
    for name, sums in tally.by_block().items():
        torch.testing.assert_close(sums, expected[name])


class Contrastive(Regression):
    """Compares each example with those beside it."""

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        apart = {**batch, "target": batch["target"] - batch["target"].mean()}
        return super().sums(outputs - outputs.mean(), apart)


class Whole(Regression):
    """Reads a whole split as one."""

    def forward(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"score": network(batch["input"]).sum()}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        return {"loss": outputs["score"], "count": torch.tensor(1.0)}


class Failing(Regression):
    """Refuses single examples."""

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        if len(outputs) < 2:
            raise ValueError("two at least")
        return super().sums(outputs, batch)


@every_case
def test_shipped_tasks_add_up_example_by_example(case: Case) -> None:
    assert is_by_example(case.task, case.given(), case.batch())


def test_tasks_that_do_not_add_up_are_told_apart() -> None:
    batch = {"input": torch.randn(5, 2), "target": torch.randn(5, 1)}
    network = nn.Linear(2, 1)
    for task in (Contrastive(), Whole(), Failing()):
        assert not is_by_example(task, task.forward(network, batch), batch)
    assert is_by_example(Regression(), network(batch["input"]), batch)


def test_a_loss_that_is_not_finite_is_so_in_its_block_and_in_those_beside_it() -> None:
    split = Split.of(torch.tensor([[1.0], [math.inf], [2.0]]), torch.zeros(3, 1))
    blocks = torch.tensor([0, 1, 2])
    (tally,) = tally_together([nn.Identity()], split, Regression(), blocks=blocks)
    assert not torch.isfinite(tally.by_block()["loss"]).any()
