"""Jobs of Slurm, run as processes of this machine: who takes what, and when a job ends."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cluster import CANNOT_IMPORT
from tests.executors.test_executors import WAIT
from tests.executors.work import add, fail, small_study, wait_once
from trueoracle.errors import WorkerError
from trueoracle.executors import work as jobs
from trueoracle.executors.base import PickledFile, Raised, opened
from trueoracle.executors.slurm import SlurmExecutor
from trueoracle.executors.work import serve
from trueoracle.files import new_draft
from trueoracle.record.store import Store

submitit = pytest.importorskip("submitit")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of work, in which this process is job 7; its signals stay as they are."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "IDLE_SECONDS", 0.2)
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    (tmp_path / "driver").touch()
    yield tmp_path
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def put(work: Path, name: str, fn: Any, *args: Any) -> None:
    (work / name).write_bytes(pickle.dumps((fn, args, {})))


def names(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir())


def test_a_job_does_what_waits_and_then_waits_for_more(work: Path) -> None:
    put(work, "1.todo", add, 1, 2)
    put(work, "2.todo", fail, "no such luck")
    put(work, "3.8", add, 1, 2)  # another job's
    draft = new_draft(work / "4.todo")
    put(work, draft.name, add, 1, 2)
    started = time.monotonic()
    serve(str(work))
    assert time.monotonic() - started >= 0.2
    assert names(work) == [draft.name, "1.done", "2.done", "3.8", "driver"]
    assert opened(PickledFile(work / "1.done")) == pickle.dumps(3)
    raised = opened(PickledFile(work / "2.done"))
    assert isinstance(raised, Raised)
    assert str(raised.error) == "no such luck"


def test_a_job_that_slurm_begins_anew_does_its_own_first(work: Path) -> None:
    put(work, "2.7", add, 1, 1)
    put(work, "1.todo", add, 1, 2)
    assert jobs._take(work, ".7") == work / "1.7"  # the oldest
    (work / "1.7").unlink()
    serve(str(work))
    assert names(work) == ["2.done", "driver"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_job_without_its_driver_takes_no_more(
    gone: bool, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the driver has ended, or was killed and is silent."""
    monkeypatch.setattr(jobs, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "IDLE_SECONDS", 60.0)
    if gone:
        (work / "driver").unlink()
        put(work, "1.todo", add, 1, 2)
    else:
        put(work, "1.todo", time.sleep, 0.3)  # after which the driver was silent for too long
        put(work, "2.todo", add, 1, 2)
    serve(str(work))
    left = [name for name in names(work) if name != "driver"]
    assert left == (["1.todo"] if gone else ["1.done", "2.todo"])


def test_work_is_taken_once(work: Path) -> None:
    for number in range(200):
        put(work, f"{number:03}.todo", add, number, 0)
    taken: dict[str, list[str]] = {}

    def take(own: str) -> None:
        taken[own] = []
        while (path := jobs._take(work, own)) is not None:
            taken[own].append(path.stem)
            path.unlink()

    threads = [threading.Thread(target=take, args=(f".{number}",)) for number in range(8)]
    for job in threads:
        job.start()
    for job in threads:
        job.join()
    assert sorted(itertools.chain(*taken.values())) == [f"{number:03}" for number in range(200)]


def test_a_rename_that_a_server_answers_twice_is_one(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may say that a file is not there, as it has just been renamed."""
    rename = Path.rename

    def renamed(path: Path, target: Path) -> None:
        rename(path, target)
        rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    put(work, "1.todo", add, 1, 2)
    assert jobs._take(work, ".7") == work / "1.7"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL])
def test_a_chunk_whose_job_is_ended_is_taken_up_by_another(
    number: signal.Signals, tmp_path: Path, slurm: SlurmExecutor
) -> None:
    """At its time limit, where it is preempted, and where it is killed; the chunk is not blamed."""
    future = slurm.submit(wait_once, tmp_path / "marker")
    others = [slurm.submit(add, 1, one) for one in range(4)]
    until = time.monotonic() + WAIT
    while not (tmp_path / "marker").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(int((tmp_path / "marker").read_text()), number)
    assert future.result(WAIT) == "went on"
    assert [one.result(WAIT) for one in others] == [1, 2, 3, 4]


@pytest.mark.slow
def test_jobs_that_cannot_import_stop_the_run(
    tmp_path: Path, slurm: SlurmExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CANNOT_IMPORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    study = small_study(tmp_path / "runs")
    with pytest.raises(WorkerError, match=r"^a job of Slurm cannot begin: ImportError: libmissing"):
        study.run(progress=False, engine="loop", executor=slurm)
    with Store(study.folder, read_only=True) as store:
        assert store.counts()["failed"] == store.counts()["retrainings"] == 0


@pytest.mark.slow
def test_a_queue_that_takes_one_job_is_enough(
    slurm: SlurmExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, asked = slurm._queue.submit, []

    def refuses(*args: Any) -> Any:
        asked.append(args)
        if len(asked) > 1:
            raise RuntimeError("sbatch: error: QOSMaxSubmitJobPerUserLimit\nmore")
        return submit(*args)

    slurm.pause = 60.0
    monkeypatch.setattr(slurm._queue, "submit", refuses)
    futures = [slurm.submit(add, 1, one) for one in range(8)]
    assert [one.result(WAIT) for one in futures] == [*range(1, 9)]
    assert len(asked) == 2


def test_a_queue_that_takes_no_job_ends_the_run(
    slurm: SlurmExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("sbatch: error: invalid partition specified: nowhere\nmore")

    monkeypatch.setattr(slurm._queue, "submit", refuses)
    with pytest.raises(BrokenExecutor, match=r"^sbatch: error: invalid partition .*: nowhere$"):
        slurm.submit(add, 1, 2).result(WAIT)
