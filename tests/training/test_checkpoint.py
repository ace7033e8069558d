from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.tiny import answers, reader
from trueoracle.data.splits import Splits
from trueoracle.errors import StoreError
from trueoracle.files import read_checked, write_checked
from trueoracle.networks.registry import build
from trueoracle.training import checkpoint
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.loop import EpochRecord, train
from trueoracle.training.recipe import Lora, Recipe, Retraining


@pytest.fixture(autouse=True)
def _every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return build("mlp", {"hidden": [6], "batch_norm": True}, input_shape=(1, 32, 32), classes=10)


RECIPE = Recipe(epochs=4, batch_size=64, learning_rate=0.05, milestones=(2,), shift=1)


class StoppedError(Exception):
    pass


def interrupted(data: Splits, kept: Checkpoint, after: int) -> None:
    def stop(record: EpochRecord) -> None:
        if record.epoch == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(fresh(), data, RECIPE, seed=1, on_epoch=stop, checkpoint=kept)


def test_an_interrupted_training_ends_as_one_that_was_not(
    few_digits: Splits, tmp_path: Path
) -> None:
    network, path = fresh(), tmp_path / "partial.pt"
    expected = train(network, few_digits, RECIPE, seed=1)
    interrupted(few_digits, Checkpoint(path, "a"), after=2)
    told: list[int] = []
    resumed = fresh()
    found = train(
        resumed,
        few_digits,
        RECIPE,
        seed=1,
        on_epoch=lambda record: told.append(record.epoch),
        checkpoint=Checkpoint(path, "a"),
    )
    assert [str(record) for record in found] == [str(record) for record in expected]
    assert told == [0, 1, 2, 3]
    for name, value in network.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    Checkpoint(path, "a").remove()
    assert not path.exists()


class Killed(Exception):  # noqa: N818
    pass


def killed_at(data: Splits, recipe: Recipe, kept: Checkpoint, step: int) -> None:
    """Train until so many steps are done, and die."""
    network, steps = reader(), 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == step + 1:
            raise Killed

    network.register_forward_pre_hook(lambda module, _: count() if module.training else None)
    with pytest.raises(Killed):
        train(network, data, recipe, seed=1, checkpoint=kept)


@pytest.mark.parametrize("step", [1, 3, 5, 7])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, dropout=0.1, train=("head.*",))])
def test_a_training_goes_on_within_an_epoch(tmp_path: Path, lora: Lora | None, step: int) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    data = answers()  # three steps an epoch, with dropout
    recipe = Retraining(epochs=3, batch_size=8, learning_rate=0.1, lora=lora, warmup=4)
    whole, resumed, path = reader(), reader(), tmp_path / "kept"
    expected = train(whole, data, recipe, seed=1)
    killed_at(data, recipe, Checkpoint(path, "a"), step)
    found = train(resumed, data, recipe, seed=1, checkpoint=Checkpoint(path, "a"))
    assert str(found) == str(expected)  # NaN, without validation examples
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_of_adapters_nothing_else_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora, data, path = Lora(rank=2, train=("head.bias",)), answers(), tmp_path / "kept"
    recipe = Retraining(epochs=3, batch_size=8, lora=lora)
    killed_at(data, recipe, Checkpoint(path, "a"), 5)
    content = read_checked(path)
    assert content is not None
    kept = torch.load(io.BytesIO(content), weights_only=True)
    assert kept["weights"] == [{}]
    names = {name for name in kept["states"][0] if name.startswith("value/")}
    layers = [f"blocks.{i}.{part}" for i in (0, 1) for part in ("up", "down")] + ["head"]
    assert names == {
        "value/head.base_layer.bias",
        *(f"value/{layer}.lora_{part}.default.weight" for layer in layers for part in "AB"),
    }


def test_keeping_takes_a_small_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 30.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0.05)
    monkeypatch.setattr("trueoracle.training.checkpoint.time.monotonic", lambda: now)

    def slow(path: Path, content: bytes) -> None:
        nonlocal now
        now += 10.0

    kept = Checkpoint(tmp_path / "kept", "a")
    monkeypatch.setattr(checkpoint, "write_checked", slow)
    assert not kept.is_due
    now = 30.0
    assert kept.is_due
    kept.save([], [])
    now += 199.0
    assert not kept.is_due
    now += 1.0
    assert kept.is_due


@pytest.mark.parametrize("damage", ["another training", "cut off", "flipped", "another network"])
def test_what_is_kept_of_another_training_is_not_taken(
    few_digits: Splits, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "partial.pt"
    interrupted(few_digits, Checkpoint(path, "a"), after=2)
    assert not Checkpoint(path, "a").is_damaged
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:500])
    if damage == "another network":
        kept = read_checked(path)
        assert kept is not None
        state = torch.load(io.BytesIO(kept), weights_only=True)
        name = next(iter(state["weights"][0]))
        state["weights"][0][name] = state["weights"][0][name][:-1]
        changed = io.BytesIO()
        torch.save(state, changed)
        write_checked(path, changed.getvalue())
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    identity = "b" if damage == "another training" else "a"
    assert Checkpoint(path, identity).load([network]) is None
    assert Checkpoint(path, identity).is_damaged == (damage in ("cut off", "flipped"))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_short_trainings_are_not_kept(
    few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 1000.0)
    train(fresh(), few_digits, RECIPE, seed=1, checkpoint=Checkpoint(tmp_path / "kept", "a"))
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_file_is_said(few_digits: Splits, tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "no" / "such" / "folder.pt", "a")
    with pytest.raises(StoreError, match="cannot write"):
        train(fresh(), few_digits, RECIPE, seed=1, checkpoint=kept)
