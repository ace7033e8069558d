"""Studies whose outcomes are recorded by blocks of examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.run.test_runner import Recorder
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.spec.spec import StudySpec
from trueoracle.study import Study
from trueoracle.tasks.base import Batch
from trueoracle.tasks.regression import Regression


@pytest.mark.parametrize("count", [0, 3])
def test_a_study_says_how_many_blocks_there_are(
    tiny_fields: dict[str, Any], tmp_path: Path, count: int
) -> None:
    tiny_fields["data"]["blocks"] = count
    tiny_fields["retraining"] |= {"epochs": 1, "seeds": [0]}
    results = Study(**tiny_fields, runs=tmp_path).run(progress=False)
    blocks = results.table("test_loss").blocks
    over = results.assess("test_loss")[0].interval_over
    if not count:
        assert blocks is None
        assert results.tables()["blocks"].empty
        assert over.endswith("the retraining seed and the examples")
        return
    assert blocks is not None
    assert blocks.counts.tolist() == [34, 33, 33]
    assert over.startswith("3 blocks of examples and 10 filters")


def test_a_file_of_other_blocks_is_another_study(tiny_fields: dict[str, Any]) -> None:
    plain = StudySpec.model_validate(tiny_fields)
    tiny_fields["data"]["blocks"] = 20  # the default, said
    assert StudySpec.model_validate(tiny_fields).digest == plain.digest
    tiny_fields["data"]["blocks"] = 10
    assert StudySpec.model_validate(tiny_fields).digest != plain.digest


@pytest.mark.parametrize("count", [1, -1, 1001, 2.5])
def test_blocks_out_of_range_are_refused(tiny_fields: dict[str, Any], count: float) -> None:
    tiny_fields["data"]["blocks"] = count
    with pytest.raises(ValueError, match=r"blocks"):
        StudySpec.model_validate(tiny_fields)


class Relative(Regression):
    """Compares what examples of a batch come to with each other."""

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        own = {**batch, "target": batch["target"] - batch["target"].mean()}
        return super().sums(outputs - outputs.mean(), own)


def _data(count: int) -> Sequence[Tensor]:
    drawn = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    return drawn, drawn[:, :2].cumsum(1)


@pytest.mark.parametrize("task", [Regression, Relative])
def test_what_is_not_measured_example_by_example_has_no_blocks(
    tmp_path: Path, task: type[Regression]
) -> None:
    torch.manual_seed(0)
    progress = Recorder()
    results = Study(
        network=nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)),
        data=(_data(64), _data(30), _data(40)),
        task=task,
        pruning={"layers": {"0": 0.3}},
        criteria=["l1"],
        retraining={"epochs": 1, "seeds": [0], "batch_size": 16},
        name="mine",
        runs=tmp_path,
    ).run(progress=progress, engine="loop")
    remarks = [line for line in progress.messages if "example by example" in line]
    blocks = results.table("test_r2").blocks
    if task is Relative:
        assert len(remarks) == 1
        assert blocks is None
        return
    assert not remarks
    assert blocks is not None
    # R² is no mean over examples: leaving out a block gives it for the others.
    outcomes = results.table("test_r2").outcomes
    assert np.abs(blocks.means(range(20)) - outcomes).max() < 0.05
    assert np.ptp(blocks.means(range(10)) - blocks.means(range(10, 20))) > 0


def test_outcomes_of_an_earlier_version_are_said_to_have_no_blocks(
    finished: Results, tiny_fields: dict[str, Any]
) -> None:
    with Store(finished.folder) as store, store._transaction():
        store._db.execute("UPDATE retrainings SET blocks = NULL WHERE seed = 0")
        for (one,) in store._db.execute("SELECT DISTINCT chunk FROM retrainings").fetchall():
            store._seal("retrainings", one)
    progress = Recorder()
    Study(**tiny_fields, runs=finished.folder.parent).run(progress=progress)
    (said,) = [line for line in progress.messages if "no blocks of examples" in line]
    assert said.startswith("10 outcomes of an earlier version have no blocks of examples")
