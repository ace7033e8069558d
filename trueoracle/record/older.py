"""What records of earlier formats lack, filled in as far as it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueoracle.record.layout import Task
from trueoracle.tasks.metric import CLASSIFICATION

__all__ = ["NAMED", "OLDER_TASK", "fallback_label", "with_chance"]

NAMED = 4
"""The first format that names the task, its metrics and the labels of scores."""

OLDER_TASK = Task("classification", CLASSIFICATION)
"""The task of every record of an earlier format."""

_CLASSES = "classes"


def with_chance(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A sitting's facts with the headline metric's chance level, which older facts lack."""
    made = dict(facts)
    count = made.pop(_CLASSES, None)
    if count is not None and "chance" not in made:
        made["chance"] = 1 / count if type(count) is int and count > 0 else str(count)
    return made


def fallback_label(criterion: str) -> str:
    """The label of a score whose record has none."""
    return "pruned train loss" if criterion == "oracle" else f"score by {criterion}"
