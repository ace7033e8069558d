"""What is measured of a network, and which direction is better; this module needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trueoracle.errors import InputError

__all__ = [
    "ACCURACY",
    "CLASSIFICATION",
    "LOSS",
    "SPLITS",
    "Metric",
    "check_metrics",
    "columns_of",
    "headline",
]

SPLITS = ("train", "validation", "test")
"""The splits on which every metric is measured; a study may have no validation split."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST = 50


@dataclass(frozen=True)
class Metric:
    """One number that a task measures on a split.

    - ``name``: its part of a column's name (``test_accuracy`` is the accuracy on the test split):
      up to 40 lower-case letters, digits and underscores, a letter first;
    - ``label``: what sentences and figures call it;
    - ``unit``: empty where it has none;
    - ``better``: which direction is better;
    - ``low``, ``high``: the smallest and the largest possible value;
    - ``exponential``: the name of its exponential, such as ``"perplexity"``, where readers expect
      to see that too; it is shown beside the metric, and never a finding of its own.

    Raises :class:`InputError` for a value that a field cannot have.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    low: float = -math.inf
    high: float = math.inf
    exponential: str = ""

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for a value that could not be recorded or shown."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(
                f"a metric's name is {self.name!r}, expected up to 40 lower-case letters, digits "
                "and underscores, a letter first"
            )
        for field in ("label", "unit", "exponential"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
                raise InputError(f"metric {self.name!r}: {field} is {value!r}, expected plain text")
        if not self.label.strip():
            raise InputError(f"metric {self.name!r}: its label is empty, expected a few words")
        if self.better not in ("lower", "higher"):
            raise InputError(
                f"metric {self.name!r}: better is {self.better!r}, expected 'lower' or 'higher'"
            )
        if not self.low <= self.high:  # NaN too
            raise InputError(
                f"metric {self.name!r}: its values lie from {self.low} to {self.high}, expected "
                "low <= high"
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return self.better == "higher"

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share from 0 to 1, which is shown in percent."""
        return (self.low, self.high, self.unit) == (0, 1, "")


# The lower bound is not 0: rounding can make the loss of a network that is never wrong negative.
LOSS = Metric("loss", "loss", unit="nats")
"""A cross-entropy."""

ACCURACY = Metric("accuracy", "accuracy", better="higher", low=0.0, high=1.0)
"""The share of examples that are classified right."""

CLASSIFICATION = (LOSS, ACCURACY)
"""The metrics of every record from before records named their metrics."""


def check_metrics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """The metrics of a task, of which the first is the loss.

    Raises :class:`InputError` where there is none, where two share a name, or where a higher value
    of the first would be better.
    """
    checked = tuple(metrics)
    names = [metric.name for metric in checked]
    if not 1 <= len(names) <= _MOST:
        raise InputError(f"a task has {len(names)} metrics, expected 1 to {_MOST}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"a task has two metrics named {twice[0]!r}")
    if checked[0].higher_is_better:
        raise InputError(
            f"the first metric of a task is its loss, of which less is better; got {names[0]!r}"
        )
    return checked


def columns_of(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """The columns that the metrics are recorded in: ``train_loss``, …, split by split."""
    return tuple(f"{split}_{metric.name}" for split in SPLITS for metric in metrics)


def headline(metrics: Sequence[Metric]) -> Metric:
    """The metric that reports name first: the second one, or the loss where it is the only one."""
    return metrics[1] if len(metrics) > 1 else metrics[0]
