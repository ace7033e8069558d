"""Work for executors, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import nn

from tests.small import images, targets
from trueoracle.executors.base import ChunkExecutor
from trueoracle.study import Study

__all__ = [
    "Backwards",
    "Unreadable",
    "Unsendable",
    "add",
    "die",
    "die_once",
    "fail",
    "gpu_beside",
    "set_variable",
    "small_study",
    "wait_beside",
    "wait_once",
]


def add(a: int, b: int) -> int:
    return a + b


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


def fail(message: str) -> None:
    raise ValueError(message)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(marker: Path) -> str:
    """Killed the first time, as by the system when memory runs out."""
    if not marker.exists():
        marker.touch()
        die()
    return "alive"


class Unreadable:
    """What no other process can read, as where code that it needs is not installed there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unreadable, ()


def _unreadable() -> None:
    raise ImportError("libmissing.so.3: cannot open shared object file")


class Unsendable(Exception):  # noqa: N818
    """An error that another process cannot read."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def fail_from(message: str) -> None:
    """Raise an error that was raised from another one."""
    try:
        raise OSError(28, message)
    except OSError as error:
        raise Unsendable(1, 2) from error


def wait_beside(marker: Path) -> None:
    """Write this process's number, and wait for long."""
    marker.with_suffix(".new").write_text(str(os.getpid()))
    marker.with_suffix(".new").rename(marker)
    time.sleep(600)


def gpu_beside(folder: Path, others: int) -> str:
    """The GPU that this work is given, once so many others run beside it."""
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 120
    while len([*folder.iterdir()]) < others + 1 and time.monotonic() < until:
        time.sleep(0.1)
    return f"{os.environ['CUDA_VISIBLE_DEVICES']} beside {len([*folder.iterdir()]) - 1}"


def wait_once(marker: Path) -> str:
    """The first time, wait for long, and take any error for one's own, as a retraining does."""
    if marker.exists():
        return "went on"
    try:
        wait_beside(marker)
    except Exception as error:
        return f"failed: {error}"
    return "waited"


def small_study(runs: Path, *, filters: int = 4, epochs: int = 2) -> Study:
    """A study of noise, given in Python: 6 candidates, 2 seeds, 2 epochs, in a second."""
    data = [(x, targets("classification", x)) for x in (images(n, n) for n in (60, 30, 40))]
    network = nn.Sequential(
        nn.Conv2d(2, filters, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(36 * filters, 3),
    )
    for place, value in enumerate(network.parameters()):
        noise = images(value.numel() // 128 + 1, place).flatten()[: value.numel()]
        value.data = noise.view_as(value) / 9
    return Study(
        name="small",
        network=network,
        data=tuple(data),
        pruning={"layers": {"0": 0.5}},
        criteria=["l1"],
        retraining={"epochs": epochs, "batch_size": 16, "learning_rate": 0.05, "seeds": [0, 1]},
        runs=runs,
    )


class Backwards(ChunkExecutor):
    """Carries chunks out at once, and gives the result of the last one first."""

    at_once, workers, seconds = 3, 12, (0.0, 60.0)

    def __init__(self) -> None:
        self.held: list[tuple[Future[Any], Any, int]] = []
        self.order: list[int] = []
        self.most = 0
        self.timer = threading.Timer(0.0, self.give)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.timer.cancel()
        future: Future[Any] = Future()
        self.held.append((future, fn(*args, **kwargs), len(self.held) + len(self.order)))
        self.most = max(self.most, len(self.held))
        self.later()
        return future

    def later(self) -> None:
        self.timer = threading.Timer(0.05, self.give)
        self.timer.start()

    def give(self) -> None:
        future, value, number = self.held.pop()
        self.order.append(number)
        if self.held:
            self.later()
        if future.set_running_or_notify_cancel():
            future.set_result(value)
