from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

import trueoracle
from trueoracle.criteria.base import CRITERIA
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.ways import sample
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.run import score
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study


class Stopper(SilentProgress):
    """Interrupts a run once so many candidates are scored."""

    def __init__(self, wanted: int) -> None:
        self.left: float = wanted
        self.scoring = False

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.scoring = unit == "candidates"

    def advance(self, count: float = 1, note: str = "") -> None:
        self.left -= count if self.scoring else 0
        if self.left <= 0:
            raise KeyboardInterrupt


class Recorder(SilentProgress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.stages.append((name, total, done))


def test_scoring_retrains_nothing_and_a_run_goes_on_from_it(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    study = Study(**tiny_fields, runs=tmp_path)
    progress = Recorder()
    results = study.score(progress=progress)
    assert [stage[0] for stage in progress.stages] == [
        "dense network", "score by oracle", "score by l1",
    ]  # fmt: skip
    assert results.counts["scores"] == 20
    assert results.counts["retrainings"] == 0
    assert results.status()["state"] == "scored"
    assert not results.finished
    with pytest.raises(InputError, match="no network has been retrained yet"):
        results.points()
    progress = Recorder()
    study.score(progress=progress)
    assert progress.stages == []
    finished = study.run(progress=progress)
    assert progress.stages == [("retrain", 20, 0)]
    assert finished.finished
    pd.testing.assert_frame_equal(finished.scores, results.scores)


def test_what_was_skipped_after_it_had_scored_all_applies_again(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    # As where an extra of this package was not installed for one sitting.
    study = Study(**tiny_fields, runs=tmp_path)
    run = study.score(progress=False).folder
    with Store(run) as store:
        sitting = store.begin("2026-01-02T00:00:00+00:00", store.spec() or {}, {"device": "cpu"})
        store.note(sitting, "skipped", {"l1": "it needs an extra"})
    assert study.results().skipped == {"l1": "it needs an extra"}
    results = study.score(progress=False)
    assert results.skipped == {}
    assert results.criteria == ["oracle", "l1"]


def test_resumed_scores_are_the_same_to_the_bit(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = tiny_fields | {"pruning": {"layers": {"conv1": 0.5}}, "criteria": ["oracle"]}
    whole = Study(**fields, runs=tmp_path / "whole").score(progress=False)
    study = Study(**fields, runs=tmp_path / "part")
    with monkeypatch.context() as patch:
        patch.setattr(score, "CHUNK_SECONDS", 0)  # so that chunks stay as small as they begin
        with pytest.raises(KeyboardInterrupt):
            study.score(progress=Stopper(96))
    assert study.results().counts["scores"] == 96
    assert study.results().status()["state"] == "interrupted"
    progress = Recorder()
    pd.testing.assert_frame_equal(
        study.score(progress=progress).scores, whole.scores, check_exact=True
    )
    assert progress.stages == [("score by oracle", 252, 96)]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(4.0, [32, 220]), (0.0, [32] * 7 + [28])], ids=["fast", "slow"]
)
def test_chunks_grow_while_they_are_quick(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    seconds: float, expected: list[int],
) -> None:  # fmt: skip
    monkeypatch.setattr(score, "CHUNK_SECONDS", seconds)
    sizes: list[int] = []
    name = f"sizes-{len(expected)}"
    assert name not in CRITERIA

    @trueoracle.criterion(name, separable=True)
    def remember(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        sizes.append(len(candidates))
        return [0.0] * len(candidates)

    fields = tiny_fields | {"pruning": {"layers": {"conv1": 0.5}}, "criteria": [name]}
    Study(**fields, runs=tmp_path).score(progress=False)
    assert sizes[1:] == expected  # the first call is a trial


def test_the_ranking_of_recorded_scores(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    fields = tiny_fields | {"pruning": {"layers": {"conv1": 0.2}}}
    results = Study(**fields, runs=tmp_path).score(progress=False)
    scores = results.scores["oracle"].to_numpy()
    ranking = results.ranking("oracle", 10, seed=3)
    assert ranking.n == 45
    assert ranking.oracle == np.argmin(scores)
    assert ranking.sampled is not None
    # The sample is the one that the study would retrain with pruning.candidates = 10.
    fields["pruning"] |= {"candidates": 10, "seed": 3}
    part = Study(**fields, runs=tmp_path).score(progress=False)
    assert set(part.scores["candidate"]) == set(results.scores["candidate"].iloc[sample(45, 10, 3)])
    best = part.scores["oracle"].min()
    assert ranking.sampled.own_rank == (scores < best).sum() + 1
    assert part.ranking("oracle", 5).sampled is None
    assert not part.ranking("oracle").every_way
    assert results.ranking("l1", 45).sampled is None
    assert results.ranking("l1", 45).every_way
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        results.ranking("orcale")
    with pytest.raises(InputError, match="at least one candidate, got 0"):
        results.ranking("oracle", 0)


def start(runs: Path) -> subprocess.Popen[str]:
    settings = ["dense.epochs=1", "pruning.layers.conv1=0.5", "criteria=['oracle']"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "trueoracle", "score", "digits-conv1-0.2", "--runs", str(runs)]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def committed_scores(runs: Path) -> int:
    for database in runs.glob(f"*/{DATABASE}"):
        try:
            connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
        except sqlite3.Error:
            return 0
        try:
            return int(connection.execute("SELECT count(*) FROM scores").fetchone()[0])
        except sqlite3.Error:
            return 0
        finally:
            connection.close()
    return 0


@pytest.mark.slow
def test_killed_scoring_resumes_with_what_was_committed(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed)
    deadline = time.monotonic() + 120
    while committed_scores(killed) == 0:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder,) = killed.iterdir()
    before = Results(folder).counts["scores"]
    output, _ = start(killed).communicate()
    if before < 252:
        assert f"score by oracle: 252 candidates, {before} recorded already" in output
    start(whole).communicate()
    (other,) = whole.iterdir()
    pd.testing.assert_frame_equal(Results(folder).scores, Results(other).scores, check_exact=True)
