"""A training under way, kept in a file so that an interruption costs little."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from trueoracle.files import read_checked, write_checked

__all__ = ["Checkpoint"]

EVERY_SECONDS = 30.0
"""Shorter trainings are not kept: they are done again as fast as they are read."""


class Checkpoint:
    """The state of one training after its last kept epoch.

    ``path`` is the file, ``identity`` says which training it is of: a file of another one, or a
    damaged one (:attr:`is_damaged`), is as none. Since the random numbers of an epoch come from
    its seed and number, a training that goes on from here ends with the same numbers as one that
    was never interrupted.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self._kept = time.monotonic()

    @property
    def is_damaged(self) -> bool:
        """Whether a file is there that is not what was written."""
        return self._path.exists() and read_checked(self._path) is None

    def load(self, network: nn.Module, optimizer: optim.Optimizer) -> list[dict[str, Any]]:
        """Put network and optimiser in the kept state; the rows of the epochs so far."""
        initial = copy.deepcopy(network.state_dict())
        content = read_checked(self._path)
        if content is None:
            return []
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if state["identity"] != self._identity:
                return []
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            return list(state["records"])
        except Exception:  # of another version, say, which can raise anything
            network.load_state_dict(initial)
            return []

    def save(self, network: nn.Module, optimizer: optim.Optimizer, records: Sequence[Any]) -> None:
        """Keep the state, where the last time is long enough ago.

        Raises :class:`StoreError` where the disk does not take it.
        """
        if time.monotonic() - self._kept < EVERY_SECONDS:
            return
        state = {
            "identity": self._identity,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "records": list(records),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_checked(self._path, content.getvalue())
        self._kept = time.monotonic()

    def remove(self) -> None:
        """Forget the training: it is done."""
        self._path.unlink(missing_ok=True)
