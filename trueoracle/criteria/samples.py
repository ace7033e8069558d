"""The small, fixed parts of the images on which costly criteria are computed."""

from __future__ import annotations

from trueoracle.data.splits import AnySplit, capped

__all__ = ["SAMPLE_IMAGES", "sample"]

SAMPLE_IMAGES = 512
"""Images of a criterion that is not computed on all."""


def sample(split: AnySplit, images: int = SAMPLE_IMAGES) -> AnySplit:
    """At most so many of the images, with equal shares of each class: always the same ones."""
    return split.select(capped(split.labels.cpu(), images, seed=0).to(split.device))
