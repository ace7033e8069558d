"""Executors that are started for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trueoracle.executors.ray import RayExecutor
from trueoracle.executors.slurm import SlurmExecutor


@pytest.fixture(scope="module")
def ray() -> Iterator[RayExecutor]:
    """Ray on this machine, with two CPUs and, by its word, a GPU."""
    library = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    library.init("local", num_cpus=2, num_gpus=1, **own)
    try:
        with RayExecutor(retries=1) as executor:
            yield executor
    finally:
        library.shutdown()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[SlurmExecutor]:
    """Jobs as processes of this machine."""
    pytest.importorskip("submitit")
    with SlurmExecutor(
        tmp_path / "jobs", options={"cluster": "local"}, retries=1, at_once=2
    ) as executor:
        executor.seconds = (0.0, 60.0)  # eight chunks, of a second in all
        executor.grace = executor.pause = 0.0
        yield executor
