"""The small, fixed parts of the images on which costly criteria are computed."""

from __future__ import annotations

import torch

from trueoracle.data.splits import AnySplit, capped

__all__ = ["SAMPLE_IMAGES", "filled_sample", "sample"]

SAMPLE_IMAGES = 512
"""Images of a criterion that is not computed on all."""


def sample(split: AnySplit, images: int = SAMPLE_IMAGES) -> AnySplit:
    """At most so many of the images, with equal shares of each class: always the same ones."""
    return split.select(capped(split.labels.cpu(), images, seed=0).to(split.device))


def filled_sample(split: AnySplit, images: int) -> AnySplit:
    """Exactly so many of the images: where a class has fewer than its share, others give more."""
    drawn = capped(split.labels.cpu(), images, seed=0)
    is_left = torch.ones(len(split), dtype=torch.bool)
    is_left[drawn] = False
    left = is_left.nonzero()[:, 0]
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))
    more = left[order[: images - len(drawn)]]
    return split.select(torch.cat([drawn, more]).sort().values.to(split.device))
