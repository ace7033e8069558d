"""The settings of a search, in Python and on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["SearchSettings"]


def _optional(text: str) -> Any:
    """A field that is None by default, with the help of its option."""
    return field(default=None, metadata={"help": text})


@dataclass(frozen=True)
class SearchSettings:
    """How a search chooses; a field that is None has the default that its help names."""

    budget: str | None = _optional(
        "Epochs of one candidate to spend, or a share of retraining every candidate, such as 10% "
        "[default: 10%, or one network where that is more]."
    )
    strategy: str | None = _optional(
        "guided, halving, random-halving, top, random, criterion or full (see below) [default: "
        "guided; halving where single weights are pruned]."
    )
    criterion: str | None = _optional(
        "Orders the candidates before retraining [default: the study's first that applies]."
    )
    by: str | None = _optional(
        "What is compared: validation_loss, another validation metric, or train_loss [default: "
        "validation loss; train loss where there is no validation split]."
    )
    seed: int | None = _optional(
        "Of the retraining, and of a random order [default: the study's first]."
    )
