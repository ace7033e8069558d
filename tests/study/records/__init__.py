"""Records that earlier versions made, kept so that they are still read."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["older_record"]


def older_record(runs: Path) -> Path:
    """A copy below ``runs`` of a run of the second format, which kept no checksums.

    It is of the study of the fixture ``tiny_fields``, was stopped while it retrained with the
    second seed, and has been searched with 50 % of the budget.
    """
    (source,) = (Path(__file__).parent / "format-2").iterdir()
    shutil.copytree(source, runs / source.name)
    return runs / source.name
