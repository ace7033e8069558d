from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trueoracle.bench.build import Point, build, main, recorded, start
from trueoracle.bench.table import DATA, dense_file, read_bench
from trueoracle.criteria.base import find_criterion
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.run.prepare import prepare
from trueoracle.run.progress import SilentProgress
from trueoracle.run.runner import score
from trueoracle.spec.grid import variants
from trueoracle.study import Study

SMALL = {
    "dense.epochs": 1,
    "retraining.epochs": 1,
    "retraining.milestones": [],
    "data.train_images": 360,
    "data.test_images": 360,
    "data.validation_images": 72,
    "data.blocks": 4,
    "pruning.candidates": 8,
    "criteria": ["l1"],
}
FC1, FC2, OTHER = "seed-0+layers-fc1-0.25", "seed-0+layers-fc2-0.5", "seed-1+layers-fc1-0.25"


def record(label: str, runs: Path, **changes: Any) -> Point:
    points = variants("bench-glyphs-mlp", SMALL | changes)
    point = next(one for one in points if one.label == label)
    return "glyphs-mlp", point, Study(point.spec, runs=runs).run(progress=False)


@pytest.fixture(scope="module")
def fc2(tmp_path_factory: pytest.TempPathFactory) -> Point:
    return record(FC2, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def table(fc2: Point, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    build([fc2], folder, SilentProgress(), ["l1", "bn-scale"])
    return folder


@pytest.mark.slow
def test_recorded_runs_become_a_table(fc2: Point, table: Path) -> None:
    _, point, results = fc2
    bench = read_bench(table)
    assert [study.name for study in bench.studies] == [point.spec.name]
    (study,) = bench.studies
    assert (study.family, study.network, study.layer) == ("glyphs-mlp", 0, "fc2")
    assert (study.ratio, study.filters) == (0.5, 12)
    assert list(bench.scores) == ["l1"]  # the network has no batch norm
    for metric in ("test_loss", "test_accuracy"):
        expected, found = results.table(metric), bench.table(study, metric)
        assert expected.pruned is not None
        assert found.pruned is not None
        order = np.lexsort(expected.pruned.T)
        rows = order[np.argsort(np.lexsort(found.pruned.T))]
        assert np.array_equal(found.pruned, expected.pruned[rows])
        assert np.allclose(found.outcomes, expected.outcomes[rows], rtol=1e-6)
        assert np.allclose(found.scores["l1"], results.scores["l1"].to_numpy()[rows])
        assert expected.blocks is not None
        assert found.blocks is not None
        assert np.allclose(found.blocks.sums, expected.blocks.sums[rows], rtol=1e-6)
        assert found.blocks.counts.tolist() == expected.blocks.counts.tolist() == [90] * 4
        means = found.blocks.means(range(4))
        assert np.allclose(means, found.outcomes, rtol=1e-5)
        assert found.higher_is_better == (metric == "test_accuracy")
        assert found.sampled
    assert bench.card["version"] == 2
    assert bench.card["pruned_networks"] == 8
    assert bench.card["retrained_networks"] == 16
    assert bench.card["unscored"] == []
    about = bench.card["families"]["glyphs-mlp"]
    assert about["filters"] == {"fc2": 12}
    assert about["dense"]["0"]["sha256"] == (results.dense or {})["sha256"]
    dense = results.folder / "dense.safetensors"
    assert dense_file("glyphs-mlp", 0, table).read_bytes() == dense.read_bytes()


@pytest.mark.slow
def test_new_points_join_a_table(fc2: Point, table: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    shutil.copytree(table, larger)
    scores = pd.read_parquet(larger / "scores.parquet")
    scores["l1"] += 1
    scores.to_parquet(larger / "scores.parquet", index=False)
    runs = fc2[2].folder.parent
    fc1, other = record(FC1, runs), record(OTHER, runs)
    build([fc1, fc2, other], larger, SilentProgress(), ["l1", "l2"], onto=larger)

    before, after = read_bench(table), read_bench(larger)
    assert [s.name for s in after.studies] == [p.spec.name for _, p, _ in (fc1, fc2, other)]
    assert after.card["retrained_networks"] == 48
    assert set(after.card["families"]["glyphs-mlp"]["dense"]) == {"0", "1"}
    trained = [float(one[2].retrainings["seconds"].sum()) for one in (fc1, other)]
    assert after.card["retraining_seconds"] == pytest.approx(
        before.card["retraining_seconds"] + sum(trained), abs=1
    )
    one, same, another = after.studies
    assert np.array_equal(after.outcomes["test_loss"][same.rows], before.outcomes["test_loss"])
    assert np.array_equal(after.scores["l1"][same.rows], before.scores["l1"] + 1)  # not anew
    for study, (_, _, results) in ((one, fc1), (another, other)):
        expected = np.sort(results.scores["l1"])
        assert np.allclose(np.sort(after.scores["l1"][study.rows]), expected)
    assert np.isfinite(after.scores["l2"]).all()

    with pytest.raises(InputError, match="finished and not in the bench yet"):
        build([fc2], larger, SilentProgress(), ["l1"], onto=larger)
    with pytest.raises(InputError, match="unknown criterion 'l11'"):
        build([], larger, SilentProgress(), ["l1"], onto=larger, rescore=["l11"])
    build([], larger, SilentProgress(), ["l1", "l2"], onto=larger, rescore=["l1"])
    assert np.allclose(read_bench(larger).scores["l1"][same.rows], before.scores["l1"])


@pytest.mark.slow
def test_what_was_killed_while_scoring_goes_on(
    fc2: Point, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def stop(criterion: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        scored.append(criterion.name)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return np.arange(8.0)

    monkeypatch.setattr("trueoracle.bench.build.score_bench", stop)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        build([fc2], folder, SilentProgress(), ["gradient-flow", "synflow-iterative", "l1"])
    half = read_bench(folder)
    assert list(half.scores) == ["l1"]  # the quickest comes first
    assert set(half.card["unscored"]) == {"gradient-flow", "synflow-iterative"}
    build([fc2], folder, SilentProgress(), ["l1", *half.card["unscored"]], onto=folder)
    whole = read_bench(folder)
    assert set(whole.scores) == {"l1", "gradient-flow", "synflow-iterative"}
    assert whole.card["unscored"] == []
    assert scored.count("l1") == 1


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


@pytest.mark.slow
def test_points_that_do_not_belong_are_refused(table: Path, tmp_path: Path) -> None:
    stranger = record(FC1, tmp_path, **{"dense.epochs": 2})
    with pytest.raises(InputError, match="prunes another dense network of seed 0 than the bench"):
        build([stranger], table, SilentProgress(), ["l1"], onto=table)
    without = record(FC1, tmp_path, **{"data.blocks": 0})
    with pytest.raises(InputError, match="has no outcomes by blocks of examples"):
        build([without], tmp_path / "new", SilentProgress(), ["l1"])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_networks_join_whole_and_families_with_three(
    fc2: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [one for one in variants("bench-glyphs-mlp") if "fc1-0.5" in one.label]
    monkeypatch.setattr("trueoracle.bench.build.variants", lambda grid: points)
    monkeypatch.setattr("trueoracle.bench.build.FAMILIES", ("glyphs-mlp",))
    for point in points[:3]:
        assert recorded(tmp_path) == []
        shutil.copytree(fc2[2].folder, tmp_path / point.spec.folder_name)
    assert [point for _, point, _ in recorded(tmp_path)] == points[:3]
    shutil.rmtree(tmp_path / points[0].spec.folder_name)
    assert recorded(tmp_path) == []
    assert [point for _, point, _ in recorded(tmp_path, DATA)] == points[1:3]  # which has six


@pytest.mark.slow
def test_a_grid_goes_on_from_the_dense_networks_of_the_table(tmp_path: Path) -> None:
    source = tmp_path / "bench"  # the shipped one, with one dense network
    shutil.copytree(DATA, source)
    card = json.loads((source / "card.json").read_text())
    family, about = next(iter(card["families"].items()))
    known = about["dense"]["0"]
    card["families"] = {family: about | {"dense": {"0": known}}}
    (source / "card.json").write_text(json.dumps(card))
    runs = tmp_path / "runs"
    start(runs, SilentProgress(), source)
    start(runs, SilentProgress(), source)  # again does nothing
    assert recorded(runs) == []
    point = next(p for p in reversed(variants(about["grid"])) if p.spec.dense.seed == 0)
    folder = runs / point.spec.folder_name
    score(prepare(point.spec, device="cpu"), folder, SilentProgress(), criteria=[])
    dense = Results(folder).dense or {}
    assert dense["origin"] == "adopted", family
    assert dense["sha256"] == known["sha256"]
    assert dense["test_loss"] == pytest.approx(known["test_loss"], rel=1e-4)


def test_there_must_be_finished_points(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []
    with pytest.raises(InputError, match="no point of the bench is finished: trueoracle run"):
        build([], tmp_path, SilentProgress())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rescore", "l11"], "error: unknown criterion 'l11'"),
        (["--anew", "--rescore", "l1"], "error: a bench made anew is scored anew"),
        ([], "error: no point of the bench is finished and not in the bench yet"),
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
