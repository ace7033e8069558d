"""A training under way, kept in a file so that an interruption costs little."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueoracle.files import read_checked, write_checked
from trueoracle.training.continuing import MemberState

__all__ = ["Checkpoint", "Keepable", "Kept"]

EVERY_SECONDS = 30.0
"""Shorter trainings are not kept: they are done again as fast as they are read."""

SHARE = 0.05
"""Most of the time that keeping may take."""


Keepable = tuple[Mapping[str, Any], MemberState]
"""Of one network: the tensors that training changes, and the optimiser's state."""


@dataclass(frozen=True)
class Kept:
    """What a training goes on from, network by network.

    ``states`` are what their optimisers remember, ``records`` the rows of the epochs that are done.
    """

    states: list[MemberState]
    records: list[list[dict[str, Any]]]


class Checkpoint:
    """The state of some networks in training, when it was last kept.

    ``path`` is the file, ``identity`` says which training it is of: a file of another one, or a
    damaged one (:attr:`is_damaged`), is as none. Since all random numbers come from seed, epoch and
    step, a training that goes on from here ends with the same numbers as one that was never
    interrupted.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self._kept = time.monotonic()
        self._took = 0.0

    @property
    def is_damaged(self) -> bool:
        """Whether a file is there that is not what was written."""
        return self._path.exists() and read_checked(self._path) is None

    @property
    def is_due(self) -> bool:
        """Whether the last time is long enough ago."""
        return time.monotonic() - self._kept >= max(EVERY_SECONDS, self._took / SHARE)

    def load(self, networks: Sequence[nn.Module]) -> Kept | None:
        """Put the kept weights into the networks; None, and no change, where there are none."""
        content = read_checked(self._path)
        if content is None:
            return None
        initial = [copy.deepcopy(network.state_dict()) for network in networks]
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if found["identity"] != self._identity:
                return None
            for network, weights in zip(networks, found["weights"], strict=True):
                if network.load_state_dict(weights, strict=False).unexpected_keys:
                    return None
            return Kept(found["states"], found["records"])
        except Exception:  # of another version, say, which can raise anything
            for network, weights in zip(networks, initial, strict=True):
                network.load_state_dict(weights)
            return None

    def save(
        self,
        members: Sequence[Keepable],
        records: Sequence[Sequence[Mapping[str, Any]]],
    ) -> None:
        """Keep what training changed of each network, its optimiser's state, its epochs so far.

        Raises :class:`StoreError` where the disk does not take it.
        """
        started = time.monotonic()
        state = {
            "identity": self._identity,
            "weights": [dict(weights) for weights, _ in members],
            "states": [dict(state) for _, state in members],
            "records": [list(own) for own in records],
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_checked(self._path, content.getvalue())
        self._kept = time.monotonic()
        self._took = self._kept - started

    def remove(self) -> None:
        """Forget the training: it is done."""
        self._path.unlink(missing_ok=True)
