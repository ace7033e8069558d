"""Work for executors, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from torch import nn

from tests.small import images, targets
from trueoracle.study import Study

__all__ = ["add", "die", "die_once", "fail", "small_study", "wait_beside"]


def add(a: int, b: int) -> int:
    return a + b


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


def wait_beside(marker: Path) -> None:
    """Write this process's number, and wait for long."""
    marker.with_suffix(".new").write_text(str(os.getpid()))
    marker.with_suffix(".new").rename(marker)
    time.sleep(600)


def small_study(runs: Path) -> Study:
    """A study of noise, given in Python: 6 candidates, 2 seeds, 2 epochs, in a second."""
    data = [(x, targets("classification", x)) for x in (images(n, n) for n in (60, 30, 40))]
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3)
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
        retraining={"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "seeds": [0, 1]},
        runs=runs,
    )
