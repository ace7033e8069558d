from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.errors import StoreError
from trueoracle.files import read_checked, write_checked
from trueoracle.networks.registry import build
from trueoracle.training import checkpoint
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.loop import EpochRecord, train
from trueoracle.training.recipe import Recipe


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
