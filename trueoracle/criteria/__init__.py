"""Scores before retraining; importing the room registers the shipped criteria."""

from trueoracle.criteria import (
    activity,
    baseline,
    curvature,
    influence,
    layerwise,
    magnitude,
    oracle,
    reconstruction,
    retrained,
    sensitivity,
    trainability,
)

__all__ = [
    "activity",
    "baseline",
    "curvature",
    "influence",
    "layerwise",
    "magnitude",
    "oracle",
    "reconstruction",
    "retrained",
    "sensitivity",
    "trainability",
]
