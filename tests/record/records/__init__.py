"""Records that tests begin with: of earlier versions, kept so that they are still read."""

from __future__ import annotations

import shutil
from pathlib import Path

from trueoracle.record.store import Retrained, Store

__all__ = ["older_record", "stopped_early"]


def older_record(runs: Path) -> Path:
    """A copy below ``runs`` of a run of the second format, which kept no checksums.

    It is of the study of the fixture ``tiny_fields``, was stopped while it retrained with the
    second seed, and has been searched with 50 % of the budget.
    """
    (source,) = (Path(__file__).parent / "format-2").iterdir()
    shutil.copytree(source, runs / source.name)
    return runs / source.name


def stopped_early(folder: Path) -> None:
    """Make a run one that has retrained a single network: its first candidate."""
    with Store(folder) as store:
        own = store.frame("outcomes").query("candidate == candidate.iloc[0] and seed == seed.min()")
        rows = [{str(k): v for k, v in row.items()} for row in own.to_dict("records")]
        with store._transaction():
            store._drop("retrainings")
            store._drop("outcomes")
        first = Retrained(own["candidate"].iloc[0], int(own["seed"].iloc[0]), False, 1.0, rows)
        store.record_retrained([first])
