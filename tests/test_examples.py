"""Every example runs as it is, from a trained network to tau and its interval."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
STUDIES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "data")


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_an_example_ends_in_tau_and_its_interval(name: str, tmp_path: Path) -> None:
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    ended = subprocess.run(
        [sys.executable, f"{name}.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    for criterion in ("oracle", "l1"):
        rows = re.findall(rf"^\d+ +{criterion} +test_\w+ +(.*)$", ended.stdout, re.M)
        assert len(rows) == 2, ended.stdout
        for row in rows:
            count, tau, low, high = map(float, row.split())
            assert count == 40
            assert -1 <= low <= tau <= high <= 1
