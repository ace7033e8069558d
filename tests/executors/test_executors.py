"""A study on any executor records what it records in this process, row by row."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.executors.work import (
    Backwards,
    Unreadable,
    Unsendable,
    add,
    die,
    die_once,
    fail,
    fail_from,
    gpu_beside,
    set_variable,
    small_study,
    wait_beside,
)
from trueoracle.errors import InputError, TrueOracleError, WorkerError
from trueoracle.executors.base import (
    ChunkExecutor,
    InThisProcess,
    Pickled,
    Raised,
    as_executor,
    attempted,
    completed,
    pickled,
)
from trueoracle.executors.ray import RayExecutor, _beyond
from trueoracle.executors.slurm import SlurmExecutor
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.run.chunks import Chunk
from trueoracle.run.faults import is_the_machines
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study

SHORT = {
    "data.train_images": 80,
    "data.test_images": 20,
    "data.validation_images": 20,
    "dense.epochs": 1,
    "retraining.epochs": 1,
    "retraining.milestones": [],
    "pruning.candidates": 3,
    "criteria": ["l1"],
}

WAIT = 300
"""Seconds after which a result will not come, however busy the machine is."""

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What this process records."""
    torch.set_num_threads(1)
    return small_study(tmp_path_factory.mktemp("local")).run(progress=False, engine="loop")


def compare(found: Results, wanted: Results) -> None:
    pd.testing.assert_frame_equal(found.outcomes, wanted.outcomes)
    pd.testing.assert_frame_equal(found.scores, wanted.scores)
    pd.testing.assert_frame_equal(found.candidates, wanted.candidates)
    with Store(found.folder, read_only=True) as one, Store(wanted.folder, read_only=True) as two:
        pd.testing.assert_frame_equal(one.block_sums().sort_index(), two.block_sums().sort_index())


def ran(executor: Executor, runs: Path) -> Results:
    return small_study(runs).run(progress=False, engine="loop", executor=executor)


class Outdated(ChunkExecutor):
    """Its workers hold what no longer can be opened, as where the code there is another one."""

    def carried(self, *_: Any, **__: Any) -> tuple[Any, ...]:
        return (Pickled(b"no pickle"),)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return InThisProcess().submit(fn, *args, **kwargs)


def test_results_in_any_order_make_the_same_record(local: Results, tmp_path: Path) -> None:
    executor = Backwards()
    compare(ran(executor, tmp_path), local)
    assert executor.order != sorted(executor.order)
    assert executor.most == 3  # of 12 networks, no more waited at a time


def test_an_interrupted_run_keeps_what_came_and_goes_on_elsewhere(
    local: Results, tmp_path: Path
) -> None:
    class Stopper(SilentProgress):
        def advance(self, count: float = 1, note: str = "") -> None:
            if len(executor.order) == 5:
                raise KeyboardInterrupt

    executor, study = Backwards(), small_study(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stopper(), engine="loop", executor=executor)
    assert 4 <= study.results().counts["retrainings"] <= 5
    assert len(executor.order) <= 8  # nothing more was submitted
    compare(ran(InThisProcess(), tmp_path), local)


@pytest.mark.slow
def test_a_pool_of_processes_records_the_same(local: Results, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        compare(ran(pool, tmp_path), local)


@pytest.mark.slow
def test_ray_records_the_same(
    local: Results, tmp_path: Path, ray: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and dense network are sent once, and not with the chunks."""
    put, sent, sizes = ray._ray.put, list[object](), list[int]()
    submit = ray.submit

    def submitted(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        sizes.append(len(pickled((fn, args[:2]))))
        return submit(fn, *args, **kwargs)

    def putting(shared: object) -> Any:
        sent.append(shared)
        return put(shared)

    monkeypatch.setattr(ray._ray, "put", putting)
    monkeypatch.setattr(ray, "submit", submitted)
    compare(ran(ray, tmp_path), local)
    assert len(sent) == 1
    assert sizes
    assert max(sizes) < 20_000  # bytes; the data alone has more


@pytest.mark.slow
def test_chunks_share_a_gpu_of_ray(tmp_path: Path, ray: RayExecutor) -> None:
    halves, whole = RayExecutor(gpus=0.5), RayExecutor(gpus=1)
    assert (halves.workers, whole.workers) == (2, 1)
    futures = [halves.submit(gpu_beside, tmp_path, 1) for _ in range(2)]
    assert [one.result(WAIT) for one in futures] == ["0 beside 1"] * 2


def test_a_worker_where_the_study_cannot_be_built_stops_the_run(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    with pytest.raises(WorkerError, match=r"^small cannot be built where it is retrained: "):
        study.run(progress=False, engine="loop", executor=Outdated())
    assert study.results().counts["failed"] == 0


def test_a_ray_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"^no Ray answers at '127\.0\.0\.1:1': "):
        RayExecutor("127.0.0.1:1")


@pytest.mark.slow
def test_a_chunk_that_no_node_can_hold_is_said(ray: RayExecutor) -> None:
    with pytest.warns(
        UserWarning, match=r"needs 64 CPUs, and the largest node of Ray has 2: chunk"
    ):
        RayExecutor(cpus=64)


def test_a_chunk_that_this_machine_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library, stopped = pytest.importorskip("ray"), list[int]()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(library, "is_initialized", lambda: False)
    monkeypatch.setattr(library, "init", lambda *_, **__: None)
    monkeypatch.setattr(library, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr(library, "shutdown", lambda: stopped.append(1))
    with pytest.raises(
        InputError, match=r"^a chunk needs 8 CPUs, and the largest node of Ray has 4"
    ):
        RayExecutor(cpus=8)
    assert stopped


@pytest.mark.parametrize(
    ("cpus", "gpus", "said"),
    [
        (4, 0, ""),
        (2, 0.5, ""),
        (8, 0, "8 CPUs, and the largest node of Ray has 4"),
        (2, 2, "2 GPUs, and the largest node of Ray has 1"),
        (4, 1, "4 CPUs and 1 GPUs, and no node of Ray has both"),
    ],
)
def test_what_a_chunk_needs_is_compared_with_each_node(cpus: int, gpus: float, said: str) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert _beyond(nodes, cpus, gpus) == said


@pytest.mark.slow
def test_slurm_records_the_same(local: Results, tmp_path: Path, slurm: SlurmExecutor) -> None:
    compare(ran(slurm, tmp_path / "runs"), local)
    slurm.shutdown()
    assert not (tmp_path / "jobs").exists()


def check_work(executor: ChunkExecutor, folder: Path) -> None:
    """What every executor owes: results, errors, and another try after a death."""
    futures: dict[str, Future[Any]] = {
        "sum": executor.submit(add, 1, b=2),
        "error": executor.submit(fail, "no such luck"),
        "again": executor.submit(die_once, folder / "died"),
        "dead": executor.submit(die),
    }
    assert futures["sum"].result(WAIT) == 3
    assert futures["again"].result(WAIT) == "alive"
    with pytest.raises(ValueError, match=r"^no such luck$"):
        futures["error"].result(WAIT)
    with pytest.raises(Exception, match=r"died|without a result"):
        futures["dead"].result(WAIT)


def check_reading(executor: ChunkExecutor) -> None:
    """Where work cannot be read, no network is at fault."""
    future = executor.submit(add, Unreadable(), 1)  # type: ignore[arg-type]
    with pytest.raises(WorkerError, match=r"cannot begin: .*libmissing\.so\.3: cannot open"):
        future.result(WAIT)


def check_cancelling(executor: ChunkExecutor, folder: Path) -> None:
    """A chunk that is cancelled is not computed on."""
    future = executor.submit(wait_beside, folder / "waits")
    process = None
    for _ in range(10 * WAIT):
        with suppress(FileNotFoundError):
            process = int((folder / "waits").read_text())
            break
        time.sleep(0.1)
    assert process is not None
    assert future.cancel()
    for _ in range(10 * WAIT):
        if not Path(f"/proc/{process}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the chunk is still computed")


@pytest.mark.slow
def test_ray_tries_again_and_cancels(tmp_path: Path, ray: RayExecutor) -> None:
    check_work(ray, tmp_path)
    check_reading(ray)
    check_cancelling(ray, tmp_path)


@pytest.mark.slow
def test_slurm_tries_again_and_cancels(tmp_path: Path, slurm: SlurmExecutor) -> None:
    check_work(slurm, tmp_path)
    check_reading(slurm)
    check_cancelling(slurm, tmp_path)


def test_this_process_keeps_errors_for_the_future() -> None:
    executor = InThisProcess()
    assert executor.submit(add, 1, 2).result() == 3
    with pytest.raises(ValueError, match="no such luck"):
        executor.submit(fail, "no such luck").result()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.submit(interrupted)


def test_what_came_is_kept_and_the_rest_cancelled() -> None:
    futures: list[Future[int]] = []

    def submit(number: int) -> Future[int]:
        futures.append(Future())
        if number % 2 == 0:
            futures[-1].set_result(number)
        return futures[-1]

    found = completed(submit, iter([*range(100)]).__next__, at_once=4)
    with closing(found):
        assert sorted(number for number, _ in (next(found), next(found))) == [0, 2]
        assert len(futures) <= 6
    assert [one.cancelled() for one in futures] == [i % 2 == 1 for i in range(len(futures))]


def test_an_executor_that_breaks_down_ends_the_run(local: Results, tmp_path: Path) -> None:
    def broken(_: int) -> Future[int]:
        future: Future[int] = Future()
        future.set_exception(BrokenExecutor("a process died"))
        return future

    with pytest.raises(TrueOracleError, match="the executor broke down: a process died"):
        next(completed(broken, lambda: 1, at_once=2))
    pool = ProcessPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(TrueOracleError, match="broke down: cannot schedule new futures after sh"):
        ran(pool, tmp_path)
    compare(ran(InThisProcess(), tmp_path), local)  # and the study goes on


def test_an_error_that_cannot_be_sent_breaks_no_pool_down() -> None:
    """It comes with its words, and with the errors that it was raised from."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        raised = pool.submit(attempted, fail_from, "the disk is full").result(WAIT)
        assert isinstance(raised, Raised)
        assert str(raised.error) == "Unsendable: 1 and 2"
        assert is_the_machines(raised.error)  # as the OSError below it says
        assert pool.submit(attempted, add, 1, 2).result(WAIT) == 3
    here = attempted(fail_from, "the disk is full")
    assert isinstance(here, Raised)
    assert isinstance(here.error, Unsendable)


class Dies(Backwards):
    """Loses work on some chunks, as where a worker dies; ``chunks`` are their sizes."""

    def __init__(self, lost: Callable[[str, Chunk], bool]) -> None:
        super().__init__()
        self.lost, self.chunks = lost, list[int]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        work, chunk = args[0].__name__, args[1]
        if work == "retrain_chunk":
            self.chunks.append(len(chunk.members))
        if not self.lost(work, chunk):
            return super().submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        future.set_exception(RuntimeError("the worker died"))
        return future


def test_workers_that_cannot_begin_stop_the_run(tmp_path: Path) -> None:
    """No network is at fault where none could be retrained."""
    executor = Dies(lambda *_: True)
    with pytest.raises(WorkerError, match=r"^Dies can begin no chunk: the worker died$"):
        ran(executor, tmp_path)
    assert len(executor.chunks) <= 3  # those that were submitted before the first was lost
    with Store(small_study(tmp_path).folder, read_only=True) as store:
        assert store.counts()["failed"] == store.counts()["retrainings"] == 0


def test_workers_without_the_kernels_stop_the_run(tmp_path: Path) -> None:
    """As where one image of a cluster was built without a compiler."""
    empty = str(tmp_path / "empty")
    study = Study("digits-conv1-0.2", overrides=SHORT, runs=tmp_path)
    with ProcessPoolExecutor(1, SPAWN, set_variable, ("TRUEORACLE_NATIVE", empty)) as pool:
        why = "cannot be retrained here as where it was started: the native kernels were not built"
        with pytest.raises(WorkerError, match=why):
            study.run(progress=False, engine="native", executor=pool)
    with Store(study.folder, read_only=True) as store:
        assert store.counts()["failed"] == store.counts()["retrainings"] == 0


@pytest.mark.parametrize("others", [True, False])
def test_a_network_whose_worker_dies_is_found(local: Results, tmp_path: Path, others: bool) -> None:
    """Also where it is the only one that is left: a worker that begins shows that it is."""
    bad = (1, local.candidates["candidate"].iloc[2])

    def lost(work: str, chunk: Chunk) -> bool:
        return work == "retrain_chunk" and bad in chunk.members

    if not others:
        ran(Dies(lost), tmp_path)
    executor = Dies(lost)
    found = small_study(tmp_path).run(
        progress=False, engine="loop", executor=executor, retry_failed=True
    )
    assert found.failures.to_numpy().tolist() == [[bad[1], 1, "RuntimeError: the worker died"]]
    assert found.counts["retrainings"] == 11
    assert others or executor.chunks == [1]


def test_threads_and_other_things_are_no_executors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="random numbers that threads share: take processes"):
        ran(ThreadPoolExecutor(1), tmp_path)
    with pytest.raises(InputError, match=r"type str, expected one of concurrent.futures"):
        as_executor("ray")  # type: ignore[arg-type]


def test_a_study_that_cannot_be_sent_says_so(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    assert study._network is not None
    study._network.register_forward_hook(lambda *_: None)
    with (
        ProcessPoolExecutor(1, mp_context=SPAWN) as pool,
        pytest.raises(InputError, match=r"cannot be sent to another process: .*lambda"),
    ):
        study.run(progress=False, executor=pool)


def test_gpus_are_asked_for_where_networks_need_them(tmp_path: Path) -> None:
    class WithGpus(Backwards):
        gpus = 0.5

    with pytest.raises(InputError, match=r"asks for 0.5 GPUs a chunk, and .* computes on cpu"):
        small_study(tmp_path).run(progress=False, device="cpu", executor=WithGpus())
