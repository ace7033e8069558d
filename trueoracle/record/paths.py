"""What the files in a run's folder are called."""

from __future__ import annotations

__all__ = [
    "AROUND",
    "CANDIDATES",
    "DATABASE",
    "DENSE",
    "LOCK",
    "NETWORKS",
    "RETRAINING",
    "SEARCHES",
    "UNDER_WAY",
    "retraining_under_way",
]

DATABASE = "study.sqlite"
"""All tables."""

LOCK = "study.lock"
"""Held by the process that works on the run."""

DENSE = "dense.safetensors"
"""The dense network."""

UNDER_WAY = "dense.partial.pt"
"""The dense network's training, until it is done."""

RETRAINING = "retraining-*.partial.pt"
"""Retrainings of more than half a minute, until they are recorded."""


def retraining_under_way(seed: int, candidate: str) -> str:
    """The file of one of them, or of those that are trained as one with it."""
    return RETRAINING.replace("*", f"{seed}-{candidate}")


CANDIDATES = "candidates.json"
"""The candidates, which another study can take (``pruning.candidates``)."""

AROUND = "around.safetensors"
"""What the criterion says of each filter, weight or layer, around whose choice candidates are."""

SEARCHES = "search"
"""The folder of the searches."""

NETWORKS = "networks.json"
"""In the folder of a study over several dense networks: the study, whose networks have theirs."""
