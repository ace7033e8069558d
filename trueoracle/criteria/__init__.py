"""Scores before retraining; importing this package registers the shipped criteria."""

from trueoracle.criteria import (
    activity,
    baseline,
    curvature,
    fisher,
    flow,
    influence,
    layerwise,
    magnitude,
    oracle,
    reconstruction,
    redundancy,
    retrained,
    sensitivity,
    trainability,
)

__all__ = [
    "activity",
    "baseline",
    "curvature",
    "fisher",
    "flow",
    "influence",
    "layerwise",
    "magnitude",
    "oracle",
    "reconstruction",
    "redundancy",
    "retrained",
    "sensitivity",
    "trainability",
]
