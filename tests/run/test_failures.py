"""A network whose retraining fails is recorded so, and the study goes on without it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.test_cli import call
from tests.record.records import older_record, without_seed
from trueoracle.engines.choose import Plan
from trueoracle.errors import StoreError, WorkerError
from trueoracle.record.results import Results
from trueoracle.record.status import read_status
from trueoracle.record.store import Failed, Store
from trueoracle.record.verify import verify
from trueoracle.run import retrain as driver
from trueoracle.run import runner
from trueoracle.run.chunks import Chunk, retrain_chunk
from trueoracle.study import Study

TINY_FILE = """
criteria = ["oracle", "l1"]
[network]
name = "lenet5-mini"
[data]
name = "tiny"
validation_images = 100
[dense]
epochs = 4
batch_size = 32
learning_rate = 0.05
[pruning]
layers = { conv1 = 0.1 }
[retraining]
epochs = 2
batch_size = 64
learning_rate = 0.01
seeds = [0, 1]
"""

Fails = Callable[[Chunk], Exception | None]


@pytest.fixture
def study(tiny_fields: dict[str, Any], finished: Results) -> Study:
    """A study whose networks of the second seed are still to be retrained."""
    without_seed(finished.folder, 1)
    return Study(**tiny_fields, runs=finished.folder.parent)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Fails) -> list[int]:
    """Let chunks fail; returns how many networks each tried chunk trains in a call."""
    tried: list[int] = []
    whole = retrain_chunk

    def chunk_or_error(chunk: Chunk, *args: Any) -> Any:
        tried.append(len(chunk.calls[0]))
        if (error := fails(chunk)) is not None:
            raise error
        return whole(chunk, *args)

    monkeypatch.setattr(driver, "retrain_chunk", chunk_or_error)
    return tried


def one_of(names: Sequence[str]) -> Fails:
    def fails(chunk: Chunk) -> Exception | None:
        bad = any(seed == 1 and name in names for seed, name in chunk.members)
        return RuntimeError("this loader\nis broken") if bad else None

    return fails


def rows(results: Results) -> pd.DataFrame:
    return results.outcomes.sort_values(["seed", "candidate", "epoch"], ignore_index=True)


def test_the_network_that_fails_is_found_and_the_others_are_retrained(
    study: Study, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = finished.candidates["candidate"].tolist()[3]
    with monkeypatch.context() as patch:
        tried = failing(patch, one_of([bad]))
        results = study.run(progress=False)
    assert tried.count(1) >= 1
    assert results.failures.to_numpy().tolist() == [[bad, 1, "RuntimeError: this loader"]]
    undisturbed = rows(finished)
    left = undisturbed[(undisturbed["seed"] != 1) | (undisturbed["candidate"] != bad)]
    pd.testing.assert_frame_equal(rows(results), left.reset_index(drop=True), rtol=1e-5)
    assert results.status()["state"] == "failed"
    assert not results.finished

    # Statistics leave the candidate out with both seeds, and keep both seeds of the others.
    table = results.table("test_loss")
    place = results.candidates["candidate"].tolist().index(bad)
    assert table.seeds == 2
    assert np.isnan(table.outcomes[place]).all()
    assert np.isfinite(np.delete(table.outcomes, place, axis=0)).all()
    assert not table.diverged.any()
    relation = results.relation("oracle", "test_loss")
    assert (relation.n, relation.dropped, relation.diverged) == (9, 1, 0)
    assert results.points()["outcome"].isna().sum() == 1
    replayed = results.replay()
    assert len(replayed)

    # A plain resume leaves it; --retry-failed ends with what an undisturbed run has.
    with monkeypatch.context() as patch:
        tried = failing(patch, one_of([]))
        assert study.run(progress=False).counts["failed"] == 1
        assert tried == []
        again = study.run(progress=False, retry_failed=True)
        assert tried == [1]
    assert again.finished
    assert again.failures.empty
    pd.testing.assert_frame_equal(rows(again), undisturbed, rtol=1e-5)


def test_every_network_fails(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_seed(study.folder, 0)  # too
    failing(monkeypatch, lambda chunk: ValueError("no images"))
    results = study.run()
    assert len(results.failures) == 20
    assert results.outcomes.empty
    said = capsys.readouterr().err
    assert said.count("failed: ValueError: no images") == 2  # as it happens, and at the end
    assert "20 of 20 retrainings failed: ValueError: no images; the same command with" in said
    page = study.report().page.read_text()
    assert "No network has been retrained yet" in page
    assert "20 of 20 retrainings failed" in page


def test_where_all_candidates_fail_with_one_seed_the_other_counts(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda chunk: ValueError("no"))
    results = study.run(progress=False)
    assert len(results.failures) == 10
    table = results.table("test_loss")
    assert table.seeds == 1
    assert np.isfinite(table.outcomes).all()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        StoreError("cannot write"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        KeyboardInterrupt(),
        WorkerError("mine cannot be built where it is retrained"),
        ModuleNotFoundError("No module named 'mine'"),
    ],
)
def test_what_the_machine_lacks_is_no_failure_of_a_network(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def raises(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(driver, "retrain_chunk", raises)
    with pytest.raises(type(error)):
        study.run(progress=False)
    counts = study.results().counts
    assert (counts["failed"], counts["retrainings"]) == (0, 10)


def test_too_little_memory_halves_all_later_chunks(
    study: Study, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(chunk: Chunk) -> Exception | None:
        return torch.OutOfMemoryError("CUDA out of memory") if len(chunk.calls[0]) > 3 else None

    many = Plan("loop", "a test's", group=4, groups=1)
    monkeypatch.setattr(runner, "plan_retraining", lambda *_: many)
    tried = failing(monkeypatch, fails)
    results = study.run(progress=False)
    assert tried == [4, 2, 2, 2]  # the chunks stay whole: two of them have two calls
    assert results.finished
    assert results.provenance[-1]["most_at_once"] == 2
    pd.testing.assert_frame_equal(rows(results), rows(finished), rtol=1e-5)


@pytest.mark.slow
def test_the_commands_show_what_failed(
    study: Study,
    finished: Results,
    write_study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = write_study(TINY_FILE, "tiny.toml")
    monkeypatch.chdir(tmp_path)
    names = finished.candidates["candidate"].tolist()
    with monkeypatch.context() as patch:
        failing(patch, one_of(names[:2]))
        ran = call("run", path)
    assert ran.code == 6, ran.err
    assert "2 of 20 retrainings failed: RuntimeError: this loader; their cand" in ran.out
    assert "error: 2 retrainings failed, all others are recorded; the same" in ran.err
    (row,) = json.loads(call("status", "--json").out)
    assert (row["state"], row["retrained"], row["failed"]) == ("failed", 18, 2)
    assert "failed" in call("status").out
    assert call("run", path, "--quiet").code == 6
    said = call("verify", path)
    assert said.code == 0
    assert "failures: 2 rows in 2 commits, each a retraining that failed" in said.out
    assert call("export", path, "--out", "tables").code == 0
    table = pd.read_csv(tmp_path / "tables" / "failures.csv")
    assert table["candidate"].tolist() == names[:2]
    assert call("report", path).code == 0
    (page,) = tmp_path.glob("runs/*/report/report.html")
    assert "2 of 20 retrainings failed: RuntimeError: this loader</b>; their candidates are" in (
        page.read_text()
    )
    summary = json.loads(page.with_name("summary.json").read_text())
    assert summary[0]["failed"] == 2
    assert summary[0]["relations"][0]["dropped"] == 2
    assert call("run", path, "--retry-failed", "--quiet").code == 0
    (row,) = json.loads(call("status", "--json").out)
    assert (row["state"], row["failed"]) == ("finished", 0)


def test_a_failure_is_kept_until_the_network_is_retrained(finished: Results) -> None:
    name = finished.candidates["candidate"].iloc[0]
    with Store(finished.folder) as store:
        store.record_failed([Failed(name, 7, "first"), Failed(name, 8, "other")])
        store.record_failed([Failed(name, 7, "second")])
        assert store.failed() == {(7, name): "second", (8, name): "other"}
        assert store.counts()["failed"] == 2
    assert verify(finished.folder).state == "whole"
    assert read_status(finished.folder)["failed"] == 2


def test_what_a_sibling_retrained_is_no_failure_here_any_more(
    tiny_fields: dict[str, Any], finished: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_fields |= {"name": "fewer", "retraining": {**tiny_fields["retraining"], "seeds": [1]}}
    fewer = Study(**tiny_fields, runs=tmp_path / "runs")
    finished.folder.rename(tmp_path / "aside")
    failing(monkeypatch, lambda chunk: ValueError("no"))
    assert fewer.run(progress=False).counts["failed"] == 10
    (tmp_path / "aside").rename(finished.folder)
    again = fewer.run(progress=False)
    assert again.finished
    assert again.failures.empty


def test_a_record_before_failures_has_none_and_goes_on(
    tiny_fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = Results(older_record(tmp_path, 5))
    assert before.failures.columns.tolist() == ["candidate", "seed", "error"]
    assert before.status()["failed"] == 0
    assert verify(before.folder).state == "whole"
    failing(monkeypatch, lambda chunk: ValueError("no"))
    after = Study(**tiny_fields, runs=tmp_path).run(progress=False)
    assert (len(after.failures), after.counts["failed"]) == (10, 10)
    pd.testing.assert_frame_equal(rows(after), rows(before))
    assert verify(before.folder).state == "whole"
