from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trueoracle.bench.build import build, main, recorded, start
from trueoracle.bench.table import dense_file, read_bench
from trueoracle.criteria.base import find_criterion
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.run.prepare import prepare
from trueoracle.run.progress import SilentProgress
from trueoracle.run.runner import score
from trueoracle.spec.grid import Variant, variants
from trueoracle.study import Study

SMALL = {
    "dense.epochs": 1,
    "retraining.epochs": 2,
    "retraining.milestones": [],
    "data.train_images": 300,
    "data.test_images": 100,
    "data.validation_images": 50,
}
Recorded = tuple[Variant, Results]


def record(number: int, runs: Path, **changes: Any) -> Recorded:
    point = variants("lenet5-mini-bench", SMALL | changes)[number]
    return point, Study(point.spec, runs=runs).run(progress=False)


@pytest.fixture(scope="module")
def conv2(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(9, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def table(conv2: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    build([conv2], folder, SilentProgress(), ["l1", "bn-scale"])
    return folder


@pytest.mark.slow
def test_recorded_runs_become_a_table(conv2: Recorded, table: Path) -> None:
    point, results = conv2
    assert dict(point.spec.pruning.layers) == {"conv2": 0.1}
    bench = read_bench(table)
    assert bench.keys["pruned"].tolist() == [1 << filter_ for filter_ in range(10)]
    assert list(bench.scores) == ["l1"]  # the network has no batch norm
    assert np.allclose(bench.scores["l1"], results.scores["l1"])
    expected = results.table("test_loss").outcomes
    assert np.allclose(bench.outcomes("test_loss"), expected)
    assert len(bench.epochs) == 10 * 3 * 2
    assert bench.card["retrained_networks"] == 30
    assert bench.card["layers"] == {"0": ["conv2"]}
    assert bench.card["dense"]["0"]["sha256"] == (results.dense or {})["sha256"]
    dense = results.folder / "dense.safetensors"
    assert dense_file(0, table).read_bytes() == dense.read_bytes()
    assert bench.studies[0].name == "lenet5-mini-bench+seed-0+layers-conv2-0.1"


@pytest.mark.slow
def test_new_points_join_a_table(conv2: Recorded, table: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    shutil.copytree(table, larger)
    scores = pd.read_parquet(larger / "scores.parquet")
    scores["l1"] += 1
    scores.to_parquet(larger / "scores.parquet", index=False)
    conv1 = record(8, conv2[1].folder.parent)
    assert dict(conv1[0].spec.pruning.layers) == {"conv1": 0.9}
    other = record(27, conv2[1].folder.parent)
    assert other[0].spec.dense.seed == 1
    build([conv1, conv2, other], larger, SilentProgress(), ["l1", "l2"], onto=larger)

    before, after = read_bench(table), read_bench(larger)
    assert after.card["layers"] == {"0": ["conv1", "conv2"], "1": ["conv1"]}
    assert after.card["retrained_networks"] == 90 == len(after.epochs) / 2
    assert set(after.card["dense"]) == {"0", "1"}
    trained = [float(one[1].retrainings["seconds"].sum()) for one in (conv1, other)]
    assert after.card["retraining_seconds"] == pytest.approx(
        before.card["retraining_seconds"] + sum(trained), abs=0.5
    )
    old = np.flatnonzero((after.keys["layer"] == "conv2") & (after.keys["network"] == 0))
    assert np.array_equal(after.outcomes("test_loss")[old], before.outcomes("test_loss"))
    assert np.array_equal(after.scores["l1"][old], before.scores["l1"] + 1)  # not scored anew
    new = np.setdiff1d(np.arange(30), old)
    expected = np.concatenate([one[1].scores["l1"] for one in (conv1, other)])
    assert np.allclose(after.scores["l1"][new], expected)
    assert np.isfinite(after.scores["l2"]).all()

    with pytest.raises(InputError, match="finished and not in the bench yet"):
        build([conv2], larger, SilentProgress(), ["l1"], onto=larger)
    with pytest.raises(InputError, match="unknown criterion 'l11'"):
        build([], larger, SilentProgress(), ["l1"], onto=larger, rescore=["l11"])
    build([], larger, SilentProgress(), ["l1", "l2"], onto=larger, rescore=["l1"])
    assert np.allclose(read_bench(larger).scores["l1"][old], before.scores["l1"])


@pytest.mark.slow
def test_scores_of_an_older_version_are_no_scores_of_a_newer_one(
    table: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(table, older)
    scores = pd.read_parquet(older / "scores.parquet")
    scores["l1"] += 1
    scores.to_parquet(older / "scores.parquet", index=False)
    card = json.loads((older / "card.json").read_text())
    assert card["criteria"] == {"l1": find_criterion("l1").fingerprint}
    (older / "card.json").write_text(json.dumps(card | {"criteria": {"l1": "shipped"}}))
    build([], older, SilentProgress(), ["l1", "l2:raw=true"], onto=older)
    after = read_bench(older)
    assert np.allclose(after.scores["l1"], read_bench(table).scores["l1"])
    assert after.card["criteria"]["l1"] == card["criteria"]["l1"]
    with pytest.raises(InputError, match="finished and not in the bench yet"):
        build([], older, SilentProgress(), onto=older)


def test_points_of_another_dense_network_are_refused(table: Path, tmp_path: Path) -> None:
    stranger = record(8, tmp_path, **{"dense.epochs": 2})
    with pytest.raises(InputError, match="prunes another dense network of seed 0 than the bench"):
        build([stranger], table, SilentProgress(), ["l1"], onto=table)


@pytest.mark.slow
def test_a_grid_goes_on_from_the_dense_networks_of_the_table(tmp_path: Path) -> None:
    start(tmp_path, SilentProgress())
    start(tmp_path, SilentProgress())  # again does nothing
    assert recorded(tmp_path) == []
    known = read_bench().card["dense"]["0"]
    point = next(p for p in variants("lenet5-mini-bench") if p.label == "seed-0+layers-conv3-0.9")
    folder = tmp_path / point.spec.folder_name
    prepared = prepare(point.spec, device="cpu")
    score(prepared, folder, SilentProgress(), criteria=[])
    dense = Results(folder).dense or {}
    assert dense["origin"] == "adopted"
    assert dense["sha256"] == known["sha256"]
    assert dense["test_loss"] == pytest.approx(known["test_loss"], rel=1e-4)


def test_there_must_be_finished_points(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []
    with pytest.raises(InputError, match="no point of lenet5-mini-bench is finished"):
        build([], tmp_path, SilentProgress())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rescore", "l11"], "error: unknown criterion 'l11'"),
        (["--anew", "--rescore", "l1"], "error: a bench made anew is scored anew"),
        ([], "error: no point of lenet5-mini-bench is finished and not in the bench yet"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert len(said.splitlines()) == 1
