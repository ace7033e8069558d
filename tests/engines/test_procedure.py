"""Training procedures of a user's own, measured as every other training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from trueoracle.data.splits import Split, Splits
from trueoracle.engines.procedure import find_procedure, follow_procedure
from trueoracle.engines.retrain import retrain
from trueoracle.errors import InputError, TrainingError
from trueoracle.tasks.regression import Regression
from trueoracle.training.evaluate import evaluate
from trueoracle.training.loop import measure
from trueoracle.training.recipe import Retraining

Writer = Callable[[str], str]

STEP = """
import copy
import torch

def step(network, data, rate=0.1):
    network.train()
    loss = (network(data.train.inputs) - data.train.targets).square().mean()
    gradients = torch.autograd.grad(loss, [*network.parameters()])
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients):
            parameter -= rate * gradient
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """Write a module with a function ``train``; its reference."""
    made: list[str] = []
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        made.append(f"their_training_{len(made)}")
        (tmp_path / f"{made[-1]}.py").write_text(STEP + text)
        return f"{made[-1]}:train"

    yield write
    for name in made:
        sys.modules.pop(name, None)


def data() -> Splits:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        inputs = torch.randn(count, 3, generator=generator)
        return Split.of(inputs, inputs @ torch.tensor([[1.0], [2.0], [-1.0]]))

    return Splits(split(20), split(6), split(8), Regression())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))


def recipe(procedure: str, epochs: int = 3) -> Retraining:
    return Retraining(procedure=procedure, epochs=epochs, learning_rate=0.5, milestones=(2,))


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


REPORTING = """
def train(network, data, recipe, seed, report):
    for epoch in range(recipe.epochs):
        step(network, data)
        report(epoch)
"""


def test_every_reported_epoch_is_measured_by_us(write: Writer) -> None:
    made, whole, heard = network(), data(), list[int]()
    records = follow_procedure(made, whole, recipe(write(REPORTING)), 0, heard.append)
    assert [record.epoch for record in records] == [0, 1, 2]
    assert heard == [1, 1, 1]
    assert [record.learning_rate for record in records] == pytest.approx([0.5, 0.5, 0.05])
    losses = [record.train_loss for record in records]
    assert losses == sorted(losses, reverse=True)
    assert records[-1] == measure(made, whole, 2, records[-1].learning_rate)
    assert records[-1].values["test_loss"] == evaluate(made, whole.test, whole.task)["loss"]
    assert "validation_r2" in records[0].values


def test_one_that_trains_in_place_and_reports_nothing_has_one_record(write: Writer) -> None:
    made, whole = network(), data()
    before = weights(made)
    silent = """
def train(network, data, recipe, seed, report):
    for _ in range(recipe.epochs):
        step(network, data)
"""
    (record,) = follow_procedure(made, whole, recipe(write(silent)), 0)
    assert record.epoch == 2
    assert record == measure(made, whole, 2, record.learning_rate)
    assert not torch.equal(weights(made), before)


def test_a_returned_network_is_the_trained_one(write: Writer) -> None:
    made, whole = network(), data()
    returning = """
def train(network, data, recipe, seed, report):
    trained = copy.deepcopy(network)
    for _ in range(recipe.epochs):
        step(trained, data)
    train.returned = trained
    return trained
"""
    reference = write(returning)
    (record,) = follow_procedure(made, whole, recipe(reference), 0)
    returned = find_procedure(reference).returned  # type: ignore[attr-defined]
    assert returned is not made
    assert torch.equal(weights(made), weights(returned))
    assert record == measure(returned, whole, 2, record.learning_rate)


def test_another_network_may_be_reported(write: Writer) -> None:
    made, whole = network(), data()
    averaging = """
def train(network, data, recipe, seed, report):
    averaged = copy.deepcopy(network)
    for epoch in range(recipe.epochs):
        step(network, data)
        with torch.no_grad():
            for mean, one in zip(averaged.parameters(), network.parameters()):
                mean.lerp_(one, 0.5)
        report(epoch, averaged)
    train.averaged = averaged
    return averaged
"""
    reference = write(averaging)
    records = follow_procedure(made, whole, recipe(reference), 0)
    averaged = find_procedure(reference).averaged  # type: ignore[attr-defined]
    assert torch.equal(weights(made), weights(averaged))
    assert records[2].values == measure(averaged, whole, 2, 0.05).values
    assert [record.epoch for record in records] == [0, 1, 2]


def test_what_is_reported_and_returned_is_recorded_once(write: Writer) -> None:
    """Most training scripts do both."""
    both = REPORTING + "    return network\n"
    records = follow_procedure(network(), data(), recipe(write(both)), 0)
    assert [record.epoch for record in records] == [0, 1, 2]


def test_epochs_may_be_left_out(write: Writer) -> None:
    sparse = """
def train(network, data, recipe, seed, report):
    for epoch in range(recipe.epochs):
        step(network, data)
        if epoch % 2:
            report(epoch)
"""
    records = follow_procedure(network(), data(), recipe(write(sparse), epochs=6), 0)
    assert [record.epoch for record in records] == [1, 3, 5]


def test_it_is_given_the_data_the_recipe_and_the_seed(write: Writer) -> None:
    asking = """
def train(network, data, recipe, seed, report):
    train.given = (network, data, recipe, seed)
"""
    made, whole, reference = network(), data(), write(asking)
    follow_procedure(made, whole, recipe(reference), 7)
    given = find_procedure(reference).given  # type: ignore[attr-defined]
    assert given[0] is made
    assert given[1] is whole
    assert given[2] == recipe(reference)
    assert given[3] == 7


NOISY = """
def train(network, data, recipe, seed, report):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
            report_first(report)
            parameter += torch.randn_like(parameter)

def report_first(report, done=[]):
    pass
"""


def test_random_numbers_come_from_the_seed_and_leave_ours_alone(write: Writer) -> None:
    reference, found = write(NOISY), []
    for seed in (0, 0, 1):
        made = network()
        torch.manual_seed(seed + 40)
        expected = torch.rand(1)
        torch.manual_seed(seed + 40)
        follow_procedure(made, data(), recipe(reference), seed)
        assert torch.equal(torch.rand(1), expected)
        found.append(weights(made))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_measuring_takes_none_of_the_procedures_random_numbers(write: Writer) -> None:
    text = """
def train(network, data, recipe, seed, report):
    torch.rand(3)
    if {reported}:
        report(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
"""
    found = []
    for reported in (True, False):
        made = network()
        follow_procedure(made, data(), recipe(write(text.format(reported=reported))), 0)
        found.append(weights(made))
    assert torch.equal(found[0], found[1])


def test_measuring_leaves_the_mode_alone(write: Writer) -> None:
    text = """
def train(network, data, recipe, seed, report):
    network.train()
    report(0)
    assert network.training
    network.eval()
    report(1)
    assert not network.training
"""
    assert len(follow_procedure(network(), data(), recipe(write(text)), 0)) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no images\\nat all')", "failed: no images"),
        ("raise MemoryError", "failed: "),
        ("report(1); report(1)", "failed: epoch 1 was reported after 1"),
        ("report(2); report(0)", "failed: epoch 0 was reported after 2"),
        ("report(-1)", "failed: epoch -1 was reported"),
        ("report(0, torch.nn.Linear(7, 1))", "failed: "),
        ("return torch.nn.Linear(7, 1)", "failed: "),
        ("return torch.nn.Linear(3, 1)", "failed: "),
    ],
    ids=[
        *("an error", "no memory", "twice", "backwards", "negative"),
        *("reports another", "returns what does not run", "returns another architecture"),
    ],
)
def test_one_that_fails_is_said_in_a_line(write: Writer, body: str, message: str) -> None:
    text = f"""
def train(network, data, recipe, seed, report):
    {body}
"""
    reference = write(text)
    with pytest.raises(TrainingError) as caught:
        follow_procedure(network(), data(), recipe(reference), 0)
    assert str(caught.value).startswith(f"retraining.procedure {reference!r} ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_diverges_is_recorded_so(write: Writer) -> None:
    text = """
def train(network, data, recipe, seed, report):
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    report(0)
"""
    (record,) = follow_procedure(network(), data(), recipe(write(text)), 0)
    assert record.diverged


def test_what_cannot_be_called_is_refused(write: Writer) -> None:
    name = write("train = 3\n")
    with pytest.raises(InputError, match=rf"^retraining\.procedure '{name}' cannot be called$"):
        find_procedure(name)
    with pytest.raises(
        InputError, match=r"^cannot import the training procedure 'nowhere:train': "
    ):
        find_procedure("nowhere:train")
    with pytest.raises(InputError, match="unknown training procedure 'sgd'"):
        find_procedure("sgd")


def test_candidates_are_trained_one_after_the_other(write: Writer) -> None:
    whole, networks, heard = data(), [network() for _ in range(3)], list[int]()
    alone = network()
    streams = [(0, ""), (0, ""), (1, "")]
    reference = write(REPORTING)
    records, states = retrain(
        networks, streams, whole, recipe(reference), engine="loop", on_epoch=heard.append
    )
    assert [len(own) for own in records] == [3, 3, 3]
    assert len(states) == 3
    assert heard == [1] * 9
    assert records[1] == follow_procedure(alone, whole, recipe(reference), 0)
    assert torch.equal(weights(networks[1]), weights(alone))
