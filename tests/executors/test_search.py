"""A search on any executor takes the course that it takes in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.executors.test_executors import SPAWN
from tests.executors.work import Backwards, small_study
from trueoracle.errors import FailedError, TrueOracleError
from trueoracle.executors.ray import RayExecutor
from trueoracle.executors.slurm import SlurmExecutor
from trueoracle.run.progress import SilentProgress
from trueoracle.search.live import RECORD
from trueoracle.search.search import SearchResult


def searched(runs: Path, executor: Executor | None = None, progress: Any = False) -> SearchResult:
    """10 candidates, which begin in two batches; four rungs."""
    study = small_study(runs, filters=5, epochs=5)
    return study.search("60%", progress=progress, engine="loop", executor=executor)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """What this process finds."""
    torch.set_num_threads(1)
    found = searched(tmp_path_factory.mktemp("local"))
    assert len(found.schedule.rungs) == 4
    assert found.strategy == "guided"
    return found


def recorded(found: SearchResult) -> dict[str, Any]:
    """All that is recorded of a search but its seconds; weights by their checksums."""
    fields: dict[str, Any] = json.loads((found.folder / RECORD).read_text(encoding="utf-8"))
    return {name: own for name, own in fields.items() if name not in ("seconds", "sha256")}


def compare(found: SearchResult, wanted: SearchResult) -> None:
    assert recorded(found) == recorded(wanted)
    assert found.history.equals(wanted.history)
    weights = wanted.network.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in found.network.state_dict().items())


def test_results_in_any_order_are_the_same_search(local: SearchResult, tmp_path: Path) -> None:
    executor = Backwards()
    compare(searched(tmp_path, executor), local)
    assert executor.order != sorted(executor.order)
    assert executor.most == 3


@pytest.mark.slow
def test_a_pool_of_processes_is_the_same_search(local: SearchResult, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, SPAWN, torch.set_num_threads, (1,)) as pool:
        compare(searched(tmp_path, pool), local)


@pytest.mark.slow
def test_ray_is_the_same_search(local: SearchResult, tmp_path: Path, ray: RayExecutor) -> None:
    compare(searched(tmp_path, ray), local)


@pytest.mark.slow
def test_slurm_is_the_same_search(
    local: SearchResult, tmp_path: Path, slurm: SlurmExecutor
) -> None:
    compare(searched(tmp_path / "runs", slurm), local)
    slurm.shutdown()
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("chunks", [1, 5, 9, 12])
def test_an_interrupted_search_keeps_what_came_and_goes_on_elsewhere(
    local: SearchResult, tmp_path: Path, chunks: int
) -> None:
    """In the first batch, in the second one, and in later rungs."""

    class Stopper(SilentProgress):
        came = 0

        def stage(self, name: str, total: int, done: int, unit: str) -> None:
            self.came = 0

        def advance(self, count: float = 1, note: str = "") -> None:
            self.came += 1
            if executor.order and self.came == chunks:
                raise KeyboardInterrupt

    executor = Backwards()
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, executor, Stopper())
    executor = Backwards()
    compare(searched(tmp_path, executor), local)
    trained = sum(rung.candidates for rung in local.schedule.rungs)
    assert len(executor.order) == trained - chunks


def test_an_executor_that_breaks_down_loses_nothing(local: SearchResult, tmp_path: Path) -> None:
    class Breaks(Backwards):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if len(self.order) >= 4:
                raise RuntimeError("no more")
            return super().submit(fn, *args, **kwargs)

    with pytest.raises(TrueOracleError, match="the executor broke down: no more"):
        searched(tmp_path, Breaks())
    executor = Backwards()
    compare(searched(tmp_path, executor), local)
    trained = sum(rung.candidates for rung in local.schedule.rungs)
    assert len(executor.order) <= trained - 4


def test_a_network_that_always_fails_ends_the_search_by_name(
    local: SearchResult, tmp_path: Path
) -> None:
    """What was trained by then is kept."""
    failing = local.history.query("rung == 1")["candidate"].unique()[4]

    class Fails(Backwards):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            names = [name for _, name in args[1].members]
            if failing not in names or args[0].__name__ == "build":
                return super().submit(fn, *args, **kwargs)
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("the worker died"))
            return future

    with pytest.raises(FailedError, match=rf"candidate {failing} .* RuntimeError: the worker died"):
        searched(tmp_path, Fails())
    executor = Backwards()
    compare(searched(tmp_path, executor), local)
    trained = sum(rung.candidates for rung in local.schedule.rungs)
    assert len(executor.order) < trained
