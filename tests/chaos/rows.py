"""What is recorded, row by row, without what may differ between two runs: seconds and times."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueoracle.errors import StoreError
from trueoracle.record.paths import DATABASE
from trueoracle.record.store import Store

__all__ = ["Rows", "files_of", "lost", "rows_of"]

Rows = Mapping[tuple[Any, ...], tuple[Any, ...]]
"""Values by what identifies a row."""

_KEYS = {
    "candidates": ("id",),
    "scores": ("criterion", "candidate"),
    "retrainings": ("seed", "candidate"),
    "outcomes": ("seed", "candidate", "epoch"),
    "dense_epochs": ("epoch",),
    "failures": ("seed", "candidate"),
}
_LEFT_OUT = {"seconds"}


def rows_of(runs: Path, *, of: str = "") -> Rows:
    """All rows of all records below a folder, or of those whose folders begin with ``of``."""
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path in sorted(runs.glob(f"{of}*/{DATABASE}")):
        try:
            with Store(path.parent, read_only=True) as store:
                found |= _rows(store, path.parent.name)
        except StoreError as error:
            if "nothing is recorded" not in str(error):
                raise
    return found


def _rows(store: Store, folder: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for table, key in _KEYS.items():
        frame = store.frame(table)
        names = [name for name in frame.columns if name not in (*key, *_LEFT_OUT)]
        for row in frame.to_dict("records"):
            place = (folder, table, *(row[name] for name in key))
            found[place] = tuple(_plain(row[name]) for name in names)
    if (dense := store.dense()) is not None:
        kept = {name: value for name, value in dense.items() if name != "seconds"}
        found[folder, "dense"] = tuple(map(_plain, kept.values()))
    sums = store.block_sums() if store.task is not None else None
    for index, values in () if sums is None else sums.iterrows():
        found[folder, "blocks", index] = tuple(map(_plain, values))
    return found


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def files_of(folder: Path, pattern: str) -> Rows:
    """The contents of files, each as one row; of a search's record, what it has found."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        content = path.read_bytes()
        if path.name == "search.json":
            fields = json.loads(content)
            for name in ("seconds", "sha256"):
                del fields[name]
            content = json.dumps(fields, sort_keys=True).encode()
        elif path.suffix == ".safetensors":  # whose facts are in any order
            size = 8 + int.from_bytes(content[:8], "little")
            header = json.dumps(json.loads(content[8:size]), sort_keys=True)
            content = header.encode() + content[size:]
        place = ("file", str(path.relative_to(folder)))
        found[place] = (hashlib.sha256(content).hexdigest(),)
    return found


def lost(before: Rows, after: Rows) -> list[tuple[Any, ...]]:
    """Which rows are gone, or have other values; a cost that was not known may become known."""
    return [
        place
        for place, values in before.items()
        if place not in after
        or any(
            old is not None and old != new for old, new in zip(values, after[place], strict=True)
        )
    ]
