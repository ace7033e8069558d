"""A long run: does anything grow while thousands of tiny networks are retrained?

Run from the repository: ``python benchmarks/soak.py``. One study retrains 5,040 networks (all 252
ways to prune 5 of 10 filters, 20 seeds), recorded as any study is. After every fiftieth part of
them, the memory of the process, its open files, the size of its database and the time are noted.
Everything after the first fifth (the warm-up) is held against these bounds; the command fails where
one is left:

- memory: within 5 % of its middle value;
- open files: none more than after the warm-up;
- database: every part adds as many bytes, within 5 % of the mean of five parts;
- networks per second: in the last fifth, within 5 % of those in the second. On a machine that does
  other work, ``--loaded`` shows this one and the next without judging them;
- networks per second of the processor's time: the same.
"""

from __future__ import annotations

import argparse
import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import machine, show
from torch import nn

from trueoracle.record.paths import DATABASE
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study

PARTS, WARM = 50, 10
WITHIN = 0.05


@dataclass(frozen=True)
class Sample:
    """What the process holds after so many networks; sizes in bytes."""

    networks: int
    seconds: float
    cpu_seconds: float
    memory: int
    files: int
    database: int


class Watch(SilentProgress):
    """Takes a sample whenever another part of the networks is recorded."""

    def __init__(self, folder: Path, networks: int) -> None:
        self._folder, self._every = folder, networks / PARTS
        self._done, self._is_retraining = 0.0, False
        self._started = time.perf_counter()
        self.samples: list[Sample] = []

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self._is_retraining = name == "retrain"

    def advance(self, count: float = 1, note: str = "") -> None:
        if not self._is_retraining:
            return
        self._done += count
        if self._done + 1e-6 >= self._every * (len(self.samples) + 1):
            seconds = time.perf_counter() - self._started
            with closing(sqlite3.connect(self._folder / DATABASE)) as database:
                ((pages,),) = database.execute("PRAGMA page_count").fetchall()
                ((size,),) = database.execute("PRAGMA page_size").fetchall()
            gc.collect()
            self.samples.append(
                Sample(
                    *(round(self._done), seconds, time.process_time()),
                    *(_memory(), _files(), pages * size),
                )
            )


def _memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def _files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def made(seeds: int, runs: Path) -> Study:
    """A study of a network with ten filters, on random images of two classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 2))
    )
    images = torch.randn(96, 1, 8, 8)
    labels = (images.mean((1, 2, 3)) > 0).long()
    return Study(
        name="soak",
        network=network,
        data=((images[:64], labels[:64]), (images[64:], labels[64:])),
        pruning={"layers": {"0": 0.5}},
        criteria=["l1"],
        retraining={"epochs": 1, "batch_size": 32, "seeds": list(range(seeds))},
        runs=runs,
    )


def judged(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row per bound: what was found, what is allowed, and whether it is kept."""
    after = samples[WARM:]
    middle = statistics.median(one.memory for one in after)
    away = max(abs(one.memory - middle) for one in after) / middle
    grown = max(one.files for one in after) - samples[WARM - 1].files
    sizes = [one.database for one in samples[WARM - 1 :: 5]]
    adds = [later - sooner for sooner, later in pairwise(sizes)]
    mean = statistics.mean(adds)
    uneven = max(abs(one - mean) for one in adds) / mean
    return [
        _row("memory", f"{middle / 1e6:.0f} MB ± {away:.1%}", f"± {WITHIN:.0%}", away <= WITHIN),
        _row("open files", f"{samples[-1].files}, {grown} more", "0 more", grown <= 0),
        _row(
            "database",
            f"{mean / (samples[-1].networks / PARTS * 5):,.0f} bytes a network ± {uneven:.1%}",
            f"± {WITHIN:.0%}",
            uneven <= WITHIN,
        ),
        _speed("networks per second", samples, [one.seconds for one in samples]),
        _speed("per processor second", samples, [one.cpu_seconds for one in samples]),
    ]


def _speed(what: str, samples: Sequence[Sample], times: Sequence[float]) -> dict[str, Any]:
    """Networks per second in the last fifth beside those in the second."""
    counts = [one.networks for one in samples]
    first, last = (
        (counts[end] - counts[start]) / (times[end] - times[start])
        for start, end in ((WARM - 1, 2 * WARM - 1), (-WARM - 1, -1))
    )
    change = last / first - 1
    found = f"{first:.1f}, at the end {last:.1f} ({change:+.1%})"
    return _row(what, found, f"± {WITHIN:.0%}", abs(change) <= WITHIN)


def _row(what: str, found: str, allowed: str, is_kept: bool) -> dict[str, Any]:
    return {"what": what, "found": found, "allowed": allowed, "kept": "yes" if is_kept else "NO"}


def main() -> None:
    """Run the study, print what was found, and fail where a bound is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=20, help="252 networks each")
    parser.add_argument("--engine", default="loop", help="loop commits each network by itself")
    parser.add_argument("--memory", help="for retraining, such as 1GB")
    parser.add_argument("--loaded", action="store_true", help="do not judge the speed")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        study = made(given.seeds, Path(folder))
        watch = Watch(study.folder, 252 * given.seeds)
        study.run(progress=watch, engine=given.engine, memory=given.memory)
    rows = judged(watch.samples)
    told = {"networks": watch.samples[-1].networks, "seconds": watch.samples[-1].seconds}
    result = {"machine": machine() | told, "bounds": rows}
    result["samples"] = [vars(one) for one in watch.samples]
    show(result, given.json, rows)
    if left := [row["what"] for row in rows if row["kept"] == "NO"]:
        if given.loaded and all("second" in what for what in left):
            return
        sys.exit(f"out of bounds: {', '.join(left)}")


if __name__ == "__main__":
    main()
