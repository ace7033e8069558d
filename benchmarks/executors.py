"""Ray and Slurm's jobs (submitit, on this machine) against a pool of processes and this process.

    python benchmarks/executors.py [--seconds 30] [--chunks 8] [--workers 2] [--rounds 3] [--json]

The same chunks of LeNet5-Minis, of about so many seconds each, on as many workers of one thread
each. The executors take turns; an executor is started before its time is taken, and so are its
workers, which serve all chunks. ``ideal`` is the time of the chunks by themselves, one after the
other in this process on one thread, over the number of workers; ``overhead`` is what an executor
takes beyond the pool of processes, whose chunks share the machine's caches and memory just as the
executor's do. On a quiet machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import machine, show, timed

from trueoracle import RayExecutor, SlurmExecutor, Study
from trueoracle.executors.base import InThisProcess, as_executor, completed
from trueoracle.record.paths import DENSE
from trueoracle.run.chunks import Chunk, Shared, retrain_chunk, threads, under_way
from trueoracle.run.retrain import plan_networks

OVERRIDES = {
    "data.name": "mnist-5k",
    "criteria": ["l1"],
    "dense.epochs": 1,
    "retraining.seeds": [0],
}


@contextmanager
def opened(name: str, workers: int, folder: Path) -> Iterator[Executor]:
    """An executor by name, whose workers have begun."""
    made: Executor = InThisProcess()
    if name == "pool":
        made = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    elif name == "ray":
        made = RayExecutor()
    elif name == "slurm":
        made = SlurmExecutor(folder, options={"cluster": "local"}, at_once=workers)
    with made:
        yield made


def carry_out(executor: Executor, chunks: list[Chunk], shared: Shared) -> None:
    """Retrain all chunks, and forget the results."""
    own, left = as_executor(executor), iter(chunks)
    carried = own.carried(shared, lambda _: None, is_plain=True)

    def submit(chunk: Chunk) -> Any:
        return own.submit(retrain_chunk, chunk, *carried)

    for chunk, future in completed(submit, lambda: next(left, None), own.at_once):
        future.result()
        for path in under_way(chunk):  # as the driver does, or the next turn would go on from them
            path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", nargs="+", default=["pool", "ray", "slurm"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        study = Study("lenet5-mini-conv1-0.5", overrides=OVERRIDES, runs=runs)
        study.score(progress=False, device="cpu")
        rows = compared(study, given)
    show({"machine": machine(), "executors": rows}, given.json, rows)


def compared(study: Study, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for this process and one for each executor."""
    prepared = study.prepare("cpu")
    shared = Shared.of(prepared, recorded_dense(study, prepared))
    with threads(1):
        plan = plan_networks(prepared, "auto", None, len(prepared.candidates))
    ids, group = prepared.candidates.ids, plan.group
    first = Chunk(
        study.spec,
        (study.folder / DENSE).absolute(),
        tuple((0, name) for name in ids[:group]),
        plan.engine,
        shared.identity,
        device="cpu",
        threads=1,
    )
    carry_out(InThisProcess(), [first], shared)  # warms up
    a_group = timed(lambda: carry_out(InThisProcess(), [first], shared))
    calls = max(1, round(given.seconds / a_group))
    seeds = [range(one * calls, (one + 1) * calls) for one in range(1, given.chunks + 1)]
    chunks = [
        replace(
            first,
            members=tuple((seed, name) for seed in own for name in ids[:group]),
            together=group,
        )
        for own in seeds
    ]
    jobs = study.folder.parent / "jobs"
    taken: dict[str, list[float]] = {name: [] for name in ("local", *given.names)}
    for _ in range(given.rounds):
        for name, seconds in taken.items():
            with opened(name, given.workers, jobs) as executor:
                if name != "local":  # workers serve many chunks, and begin before the clock
                    some = [first] * 2 * given.workers
                    carry_out(executor, some, shared)
                work: Callable[[], None] = lambda e=executor: carry_out(e, chunks, shared)  # noqa: E731
                seconds.append(timed(work))
    ideal = statistics.median(taken.pop("local")) / given.workers
    rows = [{"executor": "ideal", "seconds": ideal, "a chunk": calls * a_group}]
    for name, seconds in taken.items():
        others = taken.get("pool", [ideal] * given.rounds)
        shares = [one / other - 1 for one, other in zip(seconds, others, strict=True)]
        rows.append(
            {
                "executor": name,
                "seconds": statistics.median(seconds),
                "of ideal": statistics.median(seconds) / ideal,
                "overhead": statistics.median(shares),
                "least": min(shares),
                "most": max(shares),
            }
        )
    return rows


def recorded_dense(study: Study, prepared: Any) -> torch.nn.Module:
    """The recorded dense network."""
    from trueoracle.run.dense import read_dense

    return read_dense(prepared, study.folder, study.results().dense or {})


if __name__ == "__main__":
    main()
