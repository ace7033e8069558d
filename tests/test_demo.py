"""What the default study says, it says however many threads its dense networks are trained by."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def default_study() -> str:
    (name,) = re.findall(r"^STUDY \?= (\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    return str(name)


@pytest.mark.slow
def test_the_default_studys_answers_do_not_hang_on_the_number_of_threads(tmp_path: Path) -> None:
    # Sums round otherwise by two threads, and so each dense network is another one.
    answers = []
    for threads in ("1", "2"):
        command = [sys.executable, "-m", "trueoracle", "run", default_study(), "--quiet", "--json"]
        done = subprocess.run(
            [*command, "--runs", str(tmp_path / threads)],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            timeout=1500,
            check=True,
        )
        said = json.loads(done.stdout)["relations"]
        answers.append({(one["criterion"], one["metric"]): one["answer"] for one in said})
    for metric in ("test_loss", "test_accuracy"):
        assert answers[0]["oracle", metric] == answers[1]["oracle", metric] == "Yes"
