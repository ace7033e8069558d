"""What is measured of a network, and which way it is better. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["ACCURACY", "CLASSIFICATION", "LOSS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """One number that a task measures on a split.

    ``name`` is its part of a column's name (``test_accuracy`` is the accuracy on the test split),
    ``label`` what sentences and figures call it, ``unit`` is empty where it has none. ``better``
    says which way it improves; its values lie between ``low`` and ``high``, both included.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    low: float = -math.inf
    high: float = math.inf

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""
        return self.better == "higher"


LOSS = Metric("loss", "loss", unit="nats", low=0.0)
"""A cross-entropy."""

ACCURACY = Metric("accuracy", "accuracy", better="higher", low=0.0, high=1.0)
"""The share of examples that are classified right."""

CLASSIFICATION = (LOSS, ACCURACY)
"""What every record held before it named its metrics."""
