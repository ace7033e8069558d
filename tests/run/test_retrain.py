"""A chunk is plain data, which any process can carry out."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.record.paths import DENSE, RETRAINING
from trueoracle.run.chunks import Chunk, retrain_chunk
from trueoracle.study import Study
from trueoracle.training import checkpoint

SHIPPED = {
    "dense.epochs": 1,
    "retraining.epochs": 2,
    "retraining.seeds": [3],
    "pruning.layers.conv1": 0.1,
    "criteria": ["l1"],
    "data.train_images": 300,
    "data.test_images": 100,
    "data.validation_images": 50,
}


@pytest.mark.slow
def test_another_process_gives_what_the_study_recorded(tmp_path: Path) -> None:
    study = Study("digits-conv1-0.2", overrides=SHIPPED, runs=tmp_path)
    results = study.run(progress=False, engine="loop", device="cpu")
    names = results.candidates["candidate"].tolist()[2:5]
    members = tuple((3, name) for name in names)
    chunk = Chunk(study.spec, study.folder / DENSE, members, "loop")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1,
        mp_context=spawned,
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
    ) as pool:
        found = pool.submit(retrain_chunk, chunk).result()
    assert [one.candidate for one in found] == names
    recorded = results.outcomes.set_index(["candidate", "epoch"])
    for one in found:
        assert one.seed == 3
        for row in one.epochs:
            for column in ("train_loss", "validation_loss", "test_loss", "test_accuracy"):
                assert row[column] == recorded.loc[(one.candidate, row["epoch"]), column]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_candidate_that_was_interrupted_goes_on(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within an epoch of a candidate: what is recorded in the end is the same."""
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    tiny_fields["pruning"]["candidates"] = 2

    def study(runs: Path) -> Study:
        return Study(**tiny_fields, runs=runs)

    def outcomes(one: Study) -> Any:
        return one.run(progress=False, engine="loop", device="cpu").outcomes

    whole = outcomes(study(tmp_path / "whole"))
    killed = study(tmp_path / "killed")
    step, steps = torch.optim.SGD.step, 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2 * 3 + 4 * 10 + 2 * 5 + 8:  # trials, dense, one candidate, most of the next
            raise Killed
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", dying)
    with pytest.raises(Killed):
        outcomes(killed)
    (kept,) = killed.folder.glob(RETRAINING)
    assert kept.stat().st_size > 10_000
    passed = steps
    found = outcomes(study(tmp_path / "killed"))
    assert not list(killed.folder.glob(RETRAINING))
    pd.testing.assert_frame_equal(found, whole)
    assert steps - passed == 3 + 3 * 10 - 7  # of three networks left, one had begun


def test_what_was_given_in_python_stays_where_it_is(few_digits: Splits, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"pruning": {"layers": {"0": 0.5}}, "name": "mine"}
    network = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 10))
    study = Study(**fields, network=network, data=few_digits, runs=tmp_path)
    chunk = Chunk(study.spec, tmp_path / DENSE, ((0, "x"),), "loop")
    with pytest.raises(InputError, match="mine was given in Python"):
        retrain_chunk(chunk)
