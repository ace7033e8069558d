"""Scores before retraining; importing the room registers the shipped criteria."""

from trueoracle.criteria import baseline, magnitude, oracle

__all__ = ["baseline", "magnitude", "oracle"]
