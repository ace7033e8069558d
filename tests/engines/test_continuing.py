"""Training in pieces: whoever goes on ends as without the break, whoever was dropped meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines import native
from trueoracle.engines.choose import train_epochs, train_population
from trueoracle.native.library import kernels
from trueoracle.networks.lenet import lenet5_mini
from trueoracle.networks.registry import build
from trueoracle.tasks.classification import Classification
from trueoracle.training import checkpoint
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.loop import EpochRecord
from trueoracle.training.recipe import Recipe

SGD = Recipe(epochs=3, batch_size=64, learning_rate=0.05, milestones=(2,), shift=1)
ADAM = Recipe(epochs=3, batch_size=64, learning_rate=0.005, optimizer="adamw", schedule="cosine")
PLAIN = Recipe(epochs=3, batch_size=64, learning_rate=0.05, momentum=0.0)

ENGINES = [
    "loop",
    "wide",
    pytest.param(
        "native", marks=pytest.mark.skipif(not kernels(), reason="installed without the kernels")
    ),
]


@pytest.fixture(scope="module")
def data(few_digits: Splits) -> Splits:
    few = few_digits.train.take(torch.arange(100))
    return Splits(
        few, None, few_digits.test.take(torch.arange(20)), Classification(10), few_digits.fill
    )


def networks(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [lenet5_mini(width=3) for _ in range(count)]


def in_pieces(
    made: list[nn.Module], data: Splits, recipe: Recipe, first: str, then: str
) -> list[list[EpochRecord]]:
    """All for one epoch; the second and the last to the end. Their records."""
    streams = [(5, "")] * len(made)
    begun, states = train_epochs(made, streams, data, recipe, range(1), engine=first)
    left = [1, len(made) - 1]
    finished, _ = train_epochs(
        [made[i] for i in left],
        streams[:2],
        data,
        recipe,
        range(1, recipe.epochs),
        engine=then,
        states=[states[i] for i in left],
    )
    return [begun[i] + own for i, own in zip(left, finished, strict=True)]


@pytest.mark.parametrize("recipe", [SGD, ADAM, PLAIN], ids=["sgd", "adamw", "no momentum"])
@pytest.mark.parametrize("engine", ENGINES)
def test_who_goes_on_ends_as_without_the_break(data: Splits, engine: str, recipe: Recipe) -> None:
    count = 18 if engine == "native" else 3  # more than one register holds
    made = networks(count)
    whole = copy.deepcopy(made)
    expected = train_population(whole, [(5, "")] * count, data, recipe, engine=engine)
    found = in_pieces(made, data, recipe, engine, engine)
    assert [[r.epoch for r in own] for own in found] == [[0, 1, 2]] * 2
    for own, other, member in zip(found, (expected[1], expected[-1]), (1, count - 1), strict=True):
        weights, alone = made[member].state_dict(), whole[member].state_dict()
        if engine == "native":  # a lane's arithmetic is its own
            assert own == other
            assert all(torch.equal(weights[name], alone[name]) for name in alone)
        else:
            assert own[-1].train_loss == pytest.approx(other[-1].train_loss, rel=1e-4)
            for name, value in alone.items():
                torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_population_goes_on_with_the_same_numbers(
    data: Splits, engine: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    recipe, streams = SGD.model_copy(update={"optimizer": "adamw"}), [(5, "")] * 3
    whole, killed, resumed = networks(3), networks(3), networks(3)
    expected = train_population(whole, streams, data, recipe, engine=engine)
    kept = tmp_path / "kept"
    done = 0

    def die(_: int) -> None:
        nonlocal done
        done += 1
        if done == epoch + 2:  # after what is kept of the epoch before
            raise Killed

    def go(made: list[nn.Module], told: Callable[[int], None]) -> list[list[EpochRecord]]:
        return train_epochs(
            made,
            streams,
            data,
            recipe,
            range(3),
            engine=engine,
            on_epoch=told,
            checkpoint=Checkpoint(kept, "a"),
        )[0]

    with pytest.raises(Killed):
        go(killed, die)
    told: list[int] = []
    found = go(resumed, told.append)
    assert told == [3, 3, 3]
    assert str(found) == str(expected)
    for one, other in zip(resumed, whole, strict=True):
        for name, value in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], value)


class Kept(Checkpoint):
    """A checkpoint after whose save, of this number, the process is killed."""

    saves = 0

    def __init__(self, path: Path, dies_after: int = 0) -> None:
        super().__init__(path, "a")
        self._dies_after = dies_after

    def save(self, *given: Any) -> None:
        super().save(*given)
        self.saves += 1
        if self.saves == self._dies_after:
            raise Killed


class Dropping(nn.Sequential):
    """Draws random numbers, and has running statistics."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(1024, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(6, 10),
        )


@pytest.mark.parametrize("saves", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_population_killed_within_an_epoch_goes_on_with_the_same_numbers(
    data: Splits, engine: str, saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(native, "SEGMENT_BYTES", 1)  # a batch at a time
    recipe, streams = SGD.model_copy(update={"batch_size": 32}), [(5, "")] * 3

    def made() -> list[nn.Module]:
        torch.manual_seed(0)
        return [lenet5_mini(width=3) if engine == "native" else Dropping() for _ in range(3)]

    whole, killed, resumed = made(), made(), made()
    expected = train_population(whole, streams, data, recipe, engine=engine)

    def go(members: list[nn.Module], kept: Kept) -> list[list[EpochRecord]]:
        how: dict[str, Any] = {"engine": engine, "checkpoint": kept}
        return train_epochs(members, streams, data, recipe, range(3), **how)[0]

    with pytest.raises(Killed):
        go(killed, Kept(tmp_path / "kept", saves))
    second = Kept(tmp_path / "kept")
    found = go(resumed, second)
    each = (4 * 3 if engine == "loop" else 4) * 3 - 1  # the last epoch's end is the caller's
    assert second.saves < each
    assert str(found) == str(expected)
    for one, other in zip(resumed, whole, strict=True):
        for name, value in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], value)


@pytest.mark.skipif(not kernels(), reason="installed without the kernels")
@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("first", "then"), [("native", "loop"), ("wide", "native")])
def test_another_engine_can_go_on(data: Splits, first: str, then: str, recipe: Recipe) -> None:
    made = networks(3)
    expected = train_population(copy.deepcopy(made), [(5, "")] * 3, data, recipe, engine="loop")
    found = in_pieces(made, data, recipe, first, then)
    assert found[0][-1].train_loss == pytest.approx(expected[1][-1].train_loss, rel=1e-3)
    assert found[1][-1].train_loss == pytest.approx(expected[2][-1].train_loss, rel=1e-3)


@pytest.mark.parametrize("engine", ["loop", "wide"])
def test_running_statistics_go_on_too(data: Splits, engine: str) -> None:
    def members() -> list[nn.Module]:
        torch.manual_seed(1)
        arguments = {"hidden": (8,), "batch_norm": True}
        return [build("mlp", arguments, input_shape=(1, 32, 32), classes=10) for _ in range(3)]

    made, whole = members(), members()
    train_population(whole, [(5, "")] * 3, data, SGD, engine=engine)
    in_pieces(made, data, SGD, engine, engine)
    for name, value in whole[2].state_dict().items():
        torch.testing.assert_close(made[2].state_dict()[name], value, rtol=1e-4, atol=1e-5)
