"""The small, fixed parts of the data on which costly criteria are computed."""

from __future__ import annotations

import torch

from trueoracle.data.splits import AnySplit, capped
from trueoracle.tasks.base import Task

__all__ = ["SAMPLE", "filled_sample", "sample"]

SAMPLE = 512
"""How many examples a criterion uses that is not computed on all of them."""


def sample(split: AnySplit, task: Task, count: int = SAMPLE) -> AnySplit:
    """At most ``count`` examples, with equal shares of each class; always the same ones."""
    return split.select(capped(task.groups(split).cpu(), count, seed=0).to(split.device))


def filled_sample(split: AnySplit, task: Task, count: int) -> AnySplit:
    """Exactly ``count`` examples; where a class has fewer than its share, others give more."""
    drawn = capped(task.groups(split).cpu(), count, seed=0)
    is_left = torch.ones(len(split), dtype=torch.bool)
    is_left[drawn] = False
    left = is_left.nonzero()[:, 0]
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))
    more = left[order[: count - len(drawn)]]
    return split.select(torch.cat([drawn, more]).sort().values.to(split.device))
