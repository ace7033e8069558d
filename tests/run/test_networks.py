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
    """Hears what is said; stops the ``stop``-th retraining stage after its first networks."""

    def __init__(self, stop: int = 0) -> None:
        self.said: list[str] = []
        self.stages: list[tuple[str, int]] = []
        self.stop = stop

    def message(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.stages.append((name, done))

    def advance(self, count: float = 1, note: str = "") -> None:
        retrainings = [name for name, _ in self.stages if name == "retrain"]
        if self.stop and len(retrainings) == self.stop and self.stages[-1][0] == "retrain":
            raise KeyboardInterrupt


@pytest.fixture
def fields(tiny_fields: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(tiny_fields)
    made["dense"]["seeds"] = [0, 1, 2]
    return made


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_with_its_networks(
    fields: dict[str, Any], three_networks: PooledResults, tmp_path: Path
) -> None:
    study = Study(**fields, runs=tmp_path / "again")
    first = Listener(stop=2)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=first, engine="loop")
    status = study.results().status()
    assert status["state"] == "interrupted"
    assert [one["state"] for one in status["networks"]] == ["finished", "interrupted"]
    second = Listener()
    resumed = study.run(progress=second, engine="loop")
    assert isinstance(resumed, PooledResults)
    assert resumed.finished
    # The first network has nothing left to do, and the second not all.
    assert [done for name, done in second.stages if name == "retrain"][0] > 0
    assert sum(name == "dense network" for name, _ in second.stages) == 1
    whole = Study(**fields, runs=tmp_path / "whole").run(progress=False, engine="loop")
    for name, table in resumed.tables().items():
        drop = [column for column in table.columns if column == "seconds"]
        pd.testing.assert_frame_equal(
            table.drop(columns=drop), whole.tables()[name].drop(columns=drop)
        )
    pd.testing.assert_frame_equal(resumed.correlate(), whole.correlate())
    assert resumed.criteria == three_networks.criteria


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
