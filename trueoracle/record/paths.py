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
"""The lock, which the process that works on the run holds."""

DENSE = "dense.safetensors"
"""The dense network."""

UNDER_WAY = "dense.partial.pt"
"""The dense network's training, until it is done."""

RETRAINING = "retraining-*.partial.pt"
"""Retrainings of more than half a minute, until they are recorded."""


def retraining_under_way(seed: int, candidate: str) -> str:
    """The file of one retraining under way, or of all that are trained together with it."""
    return RETRAINING.replace("*", f"{seed}-{candidate}")


CANDIDATES = "candidates.json"
"""The candidates, in a file that another study can use (``pruning.candidates``)."""

AROUND = "around.safetensors"
"""The importance of each filter, weight or layer, around whose choice candidates are drawn."""

SEARCHES = "search"
"""The folder of the searches."""

NETWORKS = "networks.json"
"""The study, in the folder of one over several dense networks, which have folders of their own."""
