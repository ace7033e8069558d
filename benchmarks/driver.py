"""The driver alone: how many results a second it records, against what 512 workers would give.

    python benchmarks/driver.py [--networks 37000] [--workers 512] [--json]

A study of so many LeNet5-Minis is run on an executor that computes nothing: every chunk comes back
at once with made-up results of the real size, pickled as they would be sent. All else is the real
driver: it submits, receives, records and commits. The workers' rate is that of a trial of the
engines on this machine, one thread a worker.
"""

from __future__ import annotations

import argparse
import pickle
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine, show

from trueoracle.executors.base import ChunkExecutor
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import SilentProgress
from trueoracle.run.workload import measure, synthetic
from trueoracle.study import Study

OVERRIDES = {
    "data.name": "mnist-5k",
    "network.arguments.width": 20,
    "criteria": ["l1"],
    "dense.epochs": 1,
    "retraining.seeds": [0],
}
"""184,756 candidates, of which as many are sampled as networks are wanted."""


class MadeUp(ChunkExecutor):
    """Gives made-up results at once."""

    threads = 1
    gpus = 0

    def __init__(self, prepared: Prepared, workers: int) -> None:
        self.workers = workers
        (self._one,) = synthetic(prepared, [(0, "")], random.Random(0))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        chunk, future = args[1], Future[Any]()  # the first is the work on it
        sent = pickle.dumps(
            [replace(self._one, candidate=name, seed=seed) for seed, name in chunk.members]
        )
        future.set_result(pickle.loads(sent))  # noqa: S301
        return future


class Clock(SilentProgress):
    """When how many networks were recorded."""

    def __init__(self) -> None:
        self.networks, self.times = [0.0], list[float]()

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.networks, self.times = [0.0], [time.perf_counter()]

    def advance(self, count: float = 1, note: str = "") -> None:
        self.networks.append(self.networks[-1] + count)
        self.times.append(time.perf_counter())

    def rate(self, begin: float, end: float) -> float:
        """Networks a second between two shares of the stage."""
        last = len(self.times) - 1
        i, j = round(begin * last), round(end * last)
        return (self.networks[j] - self.networks[i]) / (self.times[j] - self.times[i])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=37_000)
    parser.add_argument("--workers", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        overrides = OVERRIDES | {"pruning.candidates": given.networks}
        study = Study("lenet5-mini-conv1-0.5", overrides=overrides, runs=runs)
        prepared, clock = study.prepare("cpu"), Clock()
        tried = measure(prepared, Path(runs), 1)
        study.run(progress=clock, device="cpu", executor=MadeUp(prepared, given.workers))
        epochs = study.spec.retraining.epochs
        size = sum(path.stat().st_size for path in study.folder.iterdir())
    rate, wanted = clock.rate(0, 1), given.workers / tried.average
    row = {
        "networks": given.networks,
        "chunks": len(clock.times) - 1,
        "recorded a second": rate,
        "rows a second": rate * (1 + epochs),
        "first tenth": clock.rate(0, 0.1),
        "last tenth": clock.rate(0.9, 1),
        f"{given.workers} workers give": wanted,
        "driver / workers": rate / wanted,
        "record, MB": size / 1e6,
    }
    show({"machine": machine(), "driver": row}, given.json, [row])


if __name__ == "__main__":
    main()
