"""The searches that are recorded in a study's folder, as far as they have come. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trueoracle.analysis.outcomes import find_outcome
from trueoracle.errors import InputError
from trueoracle.files import read_checked_json
from trueoracle.record.paths import SEARCHES
from trueoracle.tasks.metric import Metric, columns_of

__all__ = ["is_searched", "recorded_searches"]


_NOT_OURS = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, InputError
)  # fmt: skip
"""What reading a record raises that is damaged, or another program's."""


def recorded_searches(folder: Path, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """The searches among candidates whose records can be read, as plain values.

    Each has ``strategy``, ``criterion`` (None where candidates came in a random order), ``by`` (the
    metric that it compared), ``seed``, ``complete``, ``networks`` and ``epochs`` (how many of both
    it trained) and, once complete, ``chosen`` (a candidate's id) with its ``outcome``, the metrics
    after the last epoch; both are None before, and where every network diverged. A damaged record
    is left out: ``trueoracle verify`` names it.
    """
    found = []
    for fields in _records(folder):
        with suppress(*_NOT_OURS):
            if "candidate" not in fields["settings"]:  # else a retraining of a choice from a record
                found.append(_as_values(fields, metrics))
    return found


def is_searched(folder: Path) -> bool:
    """Whether any search of a study's folder has come to its end."""
    ended = False
    for fields in _records(folder):
        with suppress(*_NOT_OURS):
            ended = ended or _has_ended(fields)
    return ended


def _records(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted(folder.glob(f"{SEARCHES}/*/*.json")):
        with suppress(*_NOT_OURS):
            yield read_checked_json(path.read_text(encoding="utf-8"))


def _has_ended(fields: Mapping[str, Any]) -> bool:
    return len(fields["rungs"]) == len(fields["settings"]["rungs"])


def _as_values(fields: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    settings, epochs = fields["settings"], fields["epochs"]
    chosen = _chosen(fields, metrics) if _has_ended(fields) else None
    last = {} if chosen is None else epochs[chosen][-1]
    criterion = settings["criterion"]
    return {
        "strategy": str(settings["strategy"]),
        "criterion": None if criterion is None else str(criterion),
        "by": str(settings["by"]),
        "seed": int(settings["seed"]),
        "complete": _has_ended(fields),
        "networks": len(epochs),
        "epochs": sum(len(own) for own in epochs.values()),
        "chosen": chosen,
        "outcome": None
        if chosen is None
        else {c: _value(last.get(c)) for c in columns_of(metrics)},
    }


def _value(value: Any) -> float | None:
    return None if value is None else float(value)


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _chosen(fields: Mapping[str, Any], metrics: Sequence[Metric]) -> str | None:
    """The candidate of the best last value: of equal ones the first, as the search chooses.

    A network that diverged, whose train loss is not finite, is not chosen, whatever it scores.
    """
    by = fields["settings"]["by"]
    higher = find_outcome(metrics, by).higher_is_better
    last = {str(name): fields["epochs"][name][-1] for name in fields["rungs"][-1]}
    known = {
        name: float(own[by])
        for name, own in last.items()
        if _is_finite(own[by]) and _is_finite(own.get("train_loss", 0.0))
    }
    return max(known, key=lambda name: known[name] if higher else -known[name], default=None)
