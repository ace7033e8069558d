from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trueoracle.bench.build import build, recorded
from trueoracle.bench.table import dense_file, read_bench
from trueoracle.errors import InputError
from trueoracle.study.grid import expand
from trueoracle.study.progress import SilentProgress
from trueoracle.study.study import Study


def test_recorded_runs_become_a_table(tmp_path: Path) -> None:
    small = {
        "dense.epochs": 1,
        "retraining.epochs": 2,
        "retraining.milestones": [],
        "data.train_images": 300,
        "data.test_images": 100,
        "data.validation_images": 50,
    }
    point = expand("lenet5-mini-bench", small)[9]
    assert dict(point.spec.pruning.layers) == {"conv2": 0.1}
    results = Study(point.spec, runs=tmp_path / "runs").run(progress=False)
    build([(point, results)], tmp_path / "out", SilentProgress(), ["l1", "bn-scale"])
    bench = read_bench(tmp_path / "out")
    assert bench.keys["pruned"].tolist() == [1 << filter_ for filter_ in range(10)]
    assert list(bench.scores) == ["l1"]  # the network has no batch norm
    assert np.allclose(bench.scores["l1"], results.scores["l1"])
    expected = results.table("test_loss").outcomes
    assert np.allclose(bench.outcomes("test_loss"), expected)
    assert len(bench.epochs) == 10 * 3 * 2
    assert bench.card["retrained_networks"] == 30
    assert bench.card["dense"]["0"]["sha256"] == (results.dense or {})["sha256"]
    assert (
        dense_file(0, tmp_path / "out").read_bytes()
        == (results.folder / "dense.safetensors").read_bytes()
    )
    taken = replace(bench, scores={"l1": bench.scores["l1"] + 1})
    build([(point, results)], tmp_path / "again", SilentProgress(), ["l1", "l2"], scored=taken)
    again = read_bench(tmp_path / "again")
    assert np.array_equal(again.scores["l1"], taken.scores["l1"])  # not scored anew
    assert np.isfinite(again.scores["l2"]).all()
    assert (
        replace(bench, scores={}).settings[0].study == "lenet5-mini-bench+seed-0+layers-conv2-0.1"
    )


def test_there_must_be_finished_points(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []
    with pytest.raises(InputError, match="no point of lenet5-mini-bench is finished"):
        build([], tmp_path, SilentProgress())
