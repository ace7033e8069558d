"""Candidates drawn around what a criterion would prune, which only the dense network decides."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from trueoracle.criteria.base import find_criterion
from trueoracle.criteria.importance import importance_of
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.files import tensors_sha256
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import weights_sha256, write_tensors
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.ways import Importance
from trueoracle.record.paths import AROUND
from trueoracle.run.prepare import Prepared
from trueoracle.spec.spec import AROUND_COUNT, AROUND_SHARE, PruningSpec

__all__ = ["candidates_for"]


def candidates_for(prepared: Prepared, dense: nn.Module, folder: Path) -> Prepared:
    """The study with the candidates that belong to its dense network.

    Candidates around a criterion's choice are drawn now; all others stay as they were. The
    criterion's importance of each filter, weight or layer is kept in ``folder``, so that a resumed
    study, on another machine too, has exactly the same candidates. Raises :class:`InputError` where
    the criterion gives no such numbers.
    """
    pruning = prepared.spec.pruning
    if pruning.around is None:
        return prepared
    path, whose = folder / AROUND, f"{pruning.around} of {weights_sha256(dense)}"
    importance = _kept(path, whose)
    if importance is None:
        importance = _importance(pruning.around, dense, prepared.candidates, prepared.data)
        tensors = {n: one.contiguous() for n, one in importance.items()}
        digest, _ = tensors_sha256(BytesIO(save(tensors, {"of": whose})))
        write_tensors(tensors, path, {"of": whose, "sha256": digest})
    return replace(prepared, candidates=_drawn(prepared.candidates, importance, pruning))


def _drawn(
    candidates: CandidateList, importance: Importance, pruning: PruningSpec
) -> CandidateList:
    share = AROUND_SHARE if pruning.share is None else pruning.share
    return candidates.around(
        pruning.around or "", importance, pruning.count or AROUND_COUNT, share, pruning.seed
    )


def _importance(
    name: str, dense: nn.Module, candidates: CandidateList, data: Splits
) -> dict[str, torch.Tensor]:
    """The importance of each filter, weight or layer by a criterion, in single precision."""
    try:
        found = importance_of(find_criterion(name), copied(dense).eval(), candidates, data)
    except NotApplicableError as error:
        raise InputError(f"pruning.candidates = 'around:{name}': {error}") from error
    return {name: torch.from_numpy(values).float() for name, values in found.items()}


def _kept(path: Path, whose: str) -> Importance | None:
    """What an earlier sitting kept; None where it kept nothing, or that of another network.

    What is no longer as it was written is not taken; older files have no checksum.
    """
    try:
        with path.open("rb") as content:
            digest, noted = tensors_sha256(content)
        if noted not in (None, digest):
            return None
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("of") != whose:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError):
        return None
