"""Every fault once; the long version is ``python -m tests.chaos --rounds N``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import FAULTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, mounts and /proc are Linux's"),
]

SLOW = "report"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The tallies by fault, of a process that has started no threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--rounds", "1", "--json", "--but", SLOW],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    tallies: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return tallies


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS if SLOW not in fault.name])
def test_nothing_is_lost(found: dict[str, Any], name: str) -> None:
    tally = found[name]
    if tally["problems"] and tally["problems"][0].startswith("skipped"):
        pytest.skip(tally["problems"][0])
    assert tally["problems"] == []
    assert tally["injected"] > 0
    assert tally["compared"] + tally["refused"] > 0
    assert (tally["equal"], tally["lost"]) == (tally["compared"], 0)
