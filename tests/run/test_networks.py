"""A study over several dense networks, from start to end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from trueoracle.errors import InputError
from trueoracle.record.pooled import PooledResults
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study


class Listener(SilentProgress):
    """Hears what is said; stops the ``stop``-th retraining stage in its midst."""

    def __init__(self, stop: int = 0) -> None:
        self.said: list[str] = []
        self.stages: list[tuple[str, int]] = []
        self.stop = stop
        self.done = 0.0

    def message(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.stages.append((name, done))
        self.done = done

    def advance(self, count: float = 1, note: str = "") -> None:
        self.done += count
        names = [name for name, _ in self.stages]
        if names.count("retrain") == self.stop and names[-1] == "retrain" and self.done > 4:
            raise KeyboardInterrupt


@pytest.fixture
def fields(tiny_fields: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(tiny_fields)
    made["dense"]["seeds"] = [0, 1, 2]
    return made


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_with_its_networks(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["dense"] |= {"epochs": 1, "seeds": [0, 3]}
    fields["retraining"] |= {"epochs": 1, "seeds": [0]}
    study = Study(**fields, runs=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Listener(stop=2), engine="loop")
    status = study.results().status()
    assert status["state"] == "interrupted"
    assert [one["state"] for one in status["networks"]] == ["finished", "interrupted"]
    second = Listener()
    resumed = study.run(progress=second, engine="loop")
    assert isinstance(resumed, PooledResults)
    assert resumed.finished
    # The first network has nothing left to do, and the second not all.
    (begun,) = [done for name, done in second.stages if name == "retrain"]
    assert 0 < begun < 10
    assert "dense network" not in dict(second.stages)
    whole = Study(**fields, runs=tmp_path / "whole").run(progress=False, engine="loop")
    for name, table in whole.tables().items():
        found = resumed.tables()[name]
        pd.testing.assert_frame_equal(
            found.drop(columns="seconds", errors="ignore"),
            table.drop(columns="seconds", errors="ignore"),
        )
    pd.testing.assert_frame_equal(resumed.correlate(), whole.correlate())


@pytest.mark.slow
def test_what_is_announced_is_of_all_networks(
    fields: dict[str, Any], tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    heard = Listener()
    fields["retraining"]["epochs"] = 1
    study = Study(**fields, runs=tmp_path)
    assert [one.spec.dense.seed for one in study.networks] == [0, 1, 2]
    scored = study.score(progress=heard)
    assert scored.status()["state"] == "scored"
    assert [text for text in heard.said if text.startswith("tiny, dense network")] == [
        f"tiny, dense network {place} of 3 (dense.seed = {place - 1})" for place in (1, 2, 3)
    ]
    (power,) = [text for text in heard.said if text.startswith("power: ")]
    assert "3 dense networks, 10 filters of each" in power
    assert sum(text.startswith("dense network 2 of 3: 20 networks of ") for text in heard.said) == 1
    alone = Study(**tiny_fields, runs=tmp_path)
    assert alone.networks == (alone,)


def test_a_network_that_is_given_is_one(fields: dict[str, Any], tmp_path: Path) -> None:
    from trueoracle.networks.registry import build

    del fields["network"]
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    with pytest.raises(InputError, match=r"^dense.seeds = \[0, 1, 2\] trains a dense network for"):
        Study(**fields, network=network, runs=tmp_path)


def test_a_search_is_of_one_network(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"3 dense networks, and a search is of one: dense.seeds"):
        Study(**fields, runs=tmp_path).search(progress=False)


def test_what_cannot_work_writes_nothing(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["network"]["arguments"] = {"width": 0}
    with pytest.raises(InputError):
        Study(**fields, runs=tmp_path / "runs").run(progress=False)
    assert not (tmp_path / "runs").exists()
