"""A folder of runs that is renamed or removed while a study is under way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from trueoracle.errors import StoreError
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study


class Meddler(SilentProgress):
    """Moves the folder away (or removes it) when a stage begins."""

    def __init__(self, runs: Path, stage: str, to: Path | None) -> None:
        self.runs, self.at, self.to = runs, stage, to

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        if name.startswith(self.at):
            if self.to is None:
                shutil.rmtree(self.runs)
            else:
                self.runs.rename(self.to)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dense network", "score by oracle", "score by l1", "retrain"])
@pytest.mark.parametrize("renamed", [True, False])
def test_a_lost_folder_is_a_store_error(
    stage: str, renamed: bool, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    runs, to = tmp_path / "runs", tmp_path / "elsewhere"
    study = Study(**tiny_fields, runs=runs)
    with pytest.raises(StoreError) as found:
        study.run(progress=Meddler(runs, stage, to if renamed else None))
    assert str(study.folder) in str(found.value)
    assert "\n" not in str(found.value)
    if renamed:  # what was committed is there, and goes on from there
        again = Study(**tiny_fields, runs=to).run(progress=False)
        assert again.finished
