"""Plans: chunks simulated on workers, from times that were recorded or tried."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from trueoracle.cli.app import app
from trueoracle.engines.choose import Plan
from trueoracle.errors import InputError
from trueoracle.executors.base import ChunkExecutor, InThisProcess
from trueoracle.executors.slurm import SlurmExecutor
from trueoracle.grid import Grid
from trueoracle.record.layout import CHUNK_THREADS
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.run.drive import chunk_size
from trueoracle.run.workload import Work, _recorded, measure, simulate
from trueoracle.study import Study


def work(seconds: list[float], recording: float = 0.0) -> Work:
    return Work(len(seconds), tuple(seconds), (recording,) * len(seconds))


def test_two_workers_by_hand() -> None:
    # Worker 1: 3, then 1; worker 2: 1, then 2. The study after it begins when both have ended.
    found = simulate([work([3, 1, 2, 1]), work([2])], 2, 10)
    assert (found.wall_seconds, found.chunks) == (4 + 2, 5)
    assert found.idle_share == pytest.approx(1 - 9 / 12)
    assert found.chunk_seconds == pytest.approx(9 / 5)


def test_a_slow_driver_is_what_workers_wait_for() -> None:
    """With one chunk for each worker at a time, a worker has no next one before it is recorded."""
    fast, slow = (simulate([work([1.0] * 8, one)], 2, 2) for one in (0.0, 1.0))
    assert (fast.wall_seconds, fast.driver_share) == (4, 0)
    assert slow.driver_share == pytest.approx(8 / slow.wall_seconds)
    assert slow.wall_seconds == pytest.approx(9)  # the first chunk, and then the driver's eight
    waiting = simulate([work([1.0] * 8, 0.25)], 2, 4)
    assert waiting.wall_seconds == pytest.approx(4 + 2 * 0.25)  # others wait while it records


@settings(max_examples=100, deadline=None)
@given(
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=30),
    workers=st.integers(1, 9),
    more=st.integers(0, 9),
)
def test_without_a_driver_it_is_list_scheduling(
    seconds: list[float], workers: int, more: int
) -> None:
    free = [0.0] * workers
    for one in seconds:
        heapq.heappush(free, heapq.heappop(free) + one)
    found = simulate([work(seconds)], workers, workers + more)
    assert found.wall_seconds == pytest.approx(max(free))
    assert found.wall_seconds <= sum(seconds) / workers + max(seconds) + 1e-9  # Graham 1966
    assert -1e-9 <= found.idle_share < 1


def sized(left: int, workers: int | None, engine: type[ChunkExecutor] = ChunkExecutor) -> int:
    executor = object.__new__(engine)
    executor.workers, executor.threads = workers, 2
    return chunk_size(Plan("native", "a test", 8, 6, 0.5), executor, left)


def test_chunks_fill_their_time_and_leave_some_for_every_worker() -> None:
    assert sized(100_000, 8) == 14  # 60 s of groups that take 4 s, two at a time
    assert sized(1000, 8) == 2 * (1000 * 0.5 / (4 * 8) // 8)  # four chunks for each worker
    assert sized(100, 64) == 2  # at least 10 s
    assert sized(100, 64, SlurmExecutor) == 6  # at least 30 s, since chunks pass by as files
    assert sized(100, None) == 2


def test_recorded_times_are_taken_where_the_workers_are_alike(
    finished: Results, tiny_fields: dict[str, Any]
) -> None:
    study = Study(**tiny_fields, runs=finished.folder.parent)
    prepared = study.prepare("cpu")
    recorded = measure(prepared, study.folder, 1)  # the threads of the recorded sitting
    assert recorded.source == "recorded retrainings"
    assert recorded.average == pytest.approx(finished.retrainings["seconds"].mean())
    tried = measure(prepared, study.folder, 2, networks=1000)
    assert (tried.source, tried.networks) == ("a trial of a few steps", 1000)
    assert tried.recording > 0


class Elsewhere(InThisProcess):
    """As an executor of other processes."""

    threads = 1
    is_elsewhere = True


def test_recorded_times_are_those_of_an_executors_threads(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    tiny_fields["dense"]["epochs"] = tiny_fields["retraining"]["epochs"] = 1
    study = Study(**tiny_fields, runs=tmp_path)
    study.run(progress=False, engine="loop", executor=Elsewhere())
    with Store(study.folder) as store:
        assert store.noted(CHUNK_THREADS) == 1
        store.note(1, CHUNK_THREADS, 2)  # chunks of two threads, sent by a process of one
    assert not _recorded(study.folder, 1, "loop")
    assert len(_recorded(study.folder, 2, "loop")) == 20


def test_a_procedure_of_ones_own_has_no_time_beforehand(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    tiny_fields["retraining"]["procedure"] = "tests.run.test_workload:no_training"
    study = Study(**tiny_fields, runs=tmp_path)
    with pytest.raises(InputError, match="procedure of one's own is not tried beforehand: run"):
        measure(study.prepare("cpu"), study.folder, 1)


def no_training(*_: Any) -> None:
    """Leaves a network as it is."""


@pytest.mark.slow
def test_the_command_plans_for_each_number_of_workers(tmp_path: Path) -> None:
    words = ["plan", "digits-conv1-0.2", "--workers", "1", "--workers", "4", "--runs"]
    words += [str(tmp_path), "--price", "2", "--networks", "300"]
    said = CliRunner().invoke(app, [*words, "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    one, four = found["plans"]
    assert (one["workers"], four["workers"]) == (1, 4)
    assert one["networks"] == four["networks"] == 300
    assert one["idle_share"] == pytest.approx(0, abs=0.05)
    assert four["wall_seconds"] < one["wall_seconds"]
    assert four["cost"] == pytest.approx(2 * 4 * four["wall_seconds"] / 3600)
    assert found["sources"] == ["a trial of a few steps"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "1 thread a worker" in shown.stdout
    assert "cost" in shown.stdout


def test_a_number_of_networks_is_of_one_study(tmp_path: Path) -> None:
    grid = Grid("lenet5-mini-width@small", runs=tmp_path)
    with pytest.raises(InputError, match="networks are of one study, and lenet5-mini-width@small"):
        grid.plan([1], networks=5)
