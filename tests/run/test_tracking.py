"""Live logging, against the real libraries, offline."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_runner import Recorder
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.run import tracking
from trueoracle.run.tracking import check_tracker, tracked
from trueoracle.spec.spec import StudySpec
from trueoracle.study import Study

Logged = list[tuple[dict[str, float], int]]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """What a tracker of the name ``memory`` was given."""
    logged: Logged = []

    class Memory:
        needs = "json"

        def __init__(self, spec: StudySpec, folder: Path) -> None: ...

        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((dict(values), step))

        def close(self) -> None:
            logged.append(({}, -1))

    monkeypatch.setitem(tracking.TRACKERS, "memory", Memory)
    monkeypatch.setattr(tracking, "SECONDS", 0.0)
    return logged


def test_what_is_recorded_is_logged_once(
    memory: Logged, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    study = Study(**tiny_fields, runs=tmp_path)
    results = study.run(progress=False, track="memory")
    groups = [next(iter(values), "").partition("/")[0] for values, _ in memory]
    assert groups == ["dense"] * 4 + ["retrained"] * 20 + ["tau", ""]
    assert [step for _, step in memory] == [0, 1, 2, 3, *range(1, 21), 20, -1]
    last = results.outcomes.groupby(["candidate", "seed"])["test_loss"].last()
    logged = [v["retrained/test_loss"] for v, _ in memory if "retrained/test_loss" in v]
    assert sorted(logged) == pytest.approx(sorted(last))
    found = results.correlate().set_index(["criterion", "metric"])["kendall_tau"]
    assert memory[-2][0]["tau/oracle/test_loss"] == pytest.approx(found["oracle", "test_loss"])
    # Another sitting, which has nothing left to do, logs nothing again but tau.
    memory.clear()
    study.run(progress=False, track="memory")
    assert [next(iter(values), "") for values, _ in memory][1:] == [""]
    assert memory[0][1] == 20


class Failing:
    """A tracker that begins, and then cannot be reached."""

    needs = "json"

    def __init__(self, spec: StudySpec, folder: Path) -> None: ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("no route\nto it")

    def close(self) -> None:
        raise ConnectionError("closed")


def test_progress_is_passed_on(memory: Logged, finished: Results) -> None:
    inner = Recorder()
    with tracked("memory", finished.spec, finished.folder, inner) as shown:
        shown.stage("retrain", 3, 1, "networks")
        shown.advance(2, "note")
        shown.message("a line")
    assert inner.messages == ["a line"]
    with tracked(None, finished.spec, finished.folder, inner) as shown:
        assert shown is inner


def test_a_tracker_is_closed_whatever_happens(memory: Logged, finished: Results) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        tracked("memory", finished.spec, finished.folder, Recorder()),
    ):
        raise KeyboardInterrupt
    assert memory == [({}, -1)]


def test_a_tracker_that_fails_is_left_and_the_study_goes_on(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking.TRACKERS, "far", Failing)
    progress = Recorder()
    results = Study(**tiny_fields, runs=tmp_path).run(progress=progress, track="far")
    assert results.finished
    said = [one for one in progress.messages if "--track" in one]
    assert said == ["--track far failed, and nothing more is logged: no route"]


def test_a_wrong_tracker_is_refused_before_any_work(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(**tiny_fields, runs=tmp_path)
    with pytest.raises(InputError, match="unknown tracker 'tensorbord': did you mean 'tensorb"):
        study.run(track="tensorbord", progress=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--track wandb needs .*: pip install '\.\[track\]'"):
        check_tracker("wandb")
    assert not study.folder.exists()


def _logged(tracker: str, finished: Results) -> Path:
    """Log all of a finished study by a real library; returns the folder that it keeps files in."""
    with tracked(tracker, finished.spec, finished.folder, Recorder()) as shown:
        shown._seen = tracking._Seen(0, set())  # type: ignore[attr-defined]
        shown.message("")
    return finished.folder / tracking.FOLDER


def test_tensorboard_reads_what_was_logged(finished: Results) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    logged = _logged("tensorboard", finished) / "tensorboard"
    events = event_accumulator.EventAccumulator(str(logged))
    events.Reload()
    assert [one.step for one in events.Scalars("dense/test_loss")] == [0, 1, 2, 3]
    assert [one.step for one in events.Scalars("retrained/test_loss")] == list(range(1, 21))
    assert len(events.Scalars("tau/oracle/test_loss")) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # mlflow calls what sqlalchemy has deprecated
def test_mlflow_reads_what_was_logged(finished: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    folder = _logged("mlflow", finished)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("trueoracle")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["network.name"] == "lenet5-mini"
    assert len(client.get_metric_history(run.info.run_id, "retrained/test_loss")) == 20


@pytest.mark.slow
def test_wandb_keeps_an_offline_run(finished: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    folder = _logged("wandb", finished)
    (kept,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for words in (b"retrained/test_loss", b"dense/test_loss", b"tau/oracle/test_loss"):
        assert words in content
