"""The state of a running training, kept in a file so that an interruption costs little."""

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
from trueoracle.networks.checkpoints import check_stored
from trueoracle.training.continuing import MemberState

__all__ = ["Checkpoint", "Keepable", "Kept"]

EVERY_SECONDS = 30.0
"""Shorter trainings are not kept: repeating one takes little longer than reading the file."""

SHARE = 0.05
"""The largest share of the time that writing checkpoints may take."""


Keepable = tuple[Mapping[str, Any], MemberState]
"""What is kept of one network: the tensors that training changes, and the optimiser's state."""


@dataclass(frozen=True)
class Kept:
    """What a training continues from, network by network.

    ``states`` are the states of the optimisers, ``records`` the rows of the finished epochs.
    """

    states: list[MemberState]
    records: list[list[dict[str, Any]]]


class Checkpoint:
    """The last kept state of some networks in training.

    ``path`` is the file, ``identity`` says which training it belongs to. The file of another
    training, or a damaged one (:attr:`is_damaged`), is treated as if there were none. Since all
    random numbers come from seed, epoch and step, a training that continues from a checkpoint ends
    with the same numbers as one that was never interrupted.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self._kept = time.monotonic()
        self._took = 0.0

    @property
    def is_damaged(self) -> bool:
        """Whether there is a file whose content is not what was written."""
        return self._path.exists() and read_checked(self._path) is None

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint was written long enough ago."""
        return time.monotonic() - self._kept >= max(EVERY_SECONDS, self._took / SHARE)

    def load(self, networks: Sequence[nn.Module]) -> Kept | None:
        """Load the kept weights into the networks; None, and no change, where nothing is kept."""
        content = read_checked(self._path)
        if content is None:
            return None
        initial = [copy.deepcopy(network.state_dict()) for network in networks]
        try:
            file = io.BytesIO(content)
            check_stored(file)
            found = torch.load(file, map_location="cpu", weights_only=True)
            if found["identity"] != self._identity:
                return None
            for network, weights in zip(networks, found["weights"], strict=True):
                if network.load_state_dict(weights, strict=False).unexpected_keys:
                    return None
            return Kept(found["states"], found["records"])
        except Exception:  # a file of another version, say, can raise anything
            for network, weights in zip(networks, initial, strict=True):
                network.load_state_dict(weights)
            return None

    def save(
        self,
        members: Sequence[Keepable],
        records: Sequence[Sequence[Mapping[str, Any]]],
    ) -> None:
        """Keep each network's changed tensors, its optimiser's state, and its epochs so far.

        Raises :class:`StoreError` where the file cannot be written.
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
        """Remove the file, since the training is finished."""
        self._path.unlink(missing_ok=True)
