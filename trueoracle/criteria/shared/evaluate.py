"""The loss of every candidate: by shared computation where possible, else one at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.shared.losses import SharedLosses
from trueoracle.data.splits import AnySplit
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.tasks.base import INPUT, TARGET, Task
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate, evaluate_together

__all__ = ["STREAMED_IMAGES", "STREAMED_NETWORKS", "TRIED_IMAGES", "evaluate_all", "evaluate_each"]

log = logging.getLogger(__name__)


STREAMED_NETWORKS = 8
"""How many networks that share nothing are evaluated per decoding of a streamed image."""

STREAMED_IMAGES = 256
"""Streamed images whose losses are computed at a time."""

TRIED_IMAGES = 16
"""Images on which the shared computation is compared with the pruned networks themselves."""


def evaluate_each(
    dense: nn.Module,
    candidates: CandidateList,
    split: AnySplit,
    task: Task,
    indices: Iterable[int] | None = None,
) -> np.ndarray:
    """The task's loss ``[P]`` of each pruned network, one network at a time.

    ``indices`` are the candidates to evaluate; by default all. This is the reference for
    :func:`evaluate_all`.
    """
    wanted = list(range(len(candidates)) if indices is None else indices)
    if not split.is_streamed:
        return np.array(
            [evaluate(candidates.prune(dense, index), split, task)["loss"] for index in wanted]
        )
    losses: list[float] = []
    for i in range(0, len(wanted), STREAMED_NETWORKS):
        some = [candidates.prune(dense, index) for index in wanted[i : i + STREAMED_NETWORKS]]
        losses += [metrics["loss"] for metrics in evaluate_together(some, split, task)]
    return np.array(losses)


def evaluate_all(
    dense: nn.Module, candidates: CandidateList, split: AnySplit, task: Task
) -> np.ndarray:
    """The task's loss ``[P]`` of each pruned network, in evaluation mode.

    Candidates are evaluated one at a time where the network's candidates cannot share, where the
    task is not classification, and where a loss is not finite: a pruned channel that overflows does
    not vanish when multiplied by zero.
    """
    # Masks of single weights, and networks of fewer layers, leave nothing to share.
    if candidates.units != "filters" or not _tells_classes(split, task):
        return evaluate_each(dense, candidates, split, task)
    few = split.take(torch.arange(min(TRIED_IMAGES, len(split)))).inputs
    exact = _tried(dense, cast(Candidates, candidates), few)
    if exact is None:
        return evaluate_each(dense, candidates, split, task)
    exact.use_native(few)
    if split.is_streamed:
        losses = np.zeros(len(candidates))
        for batch in split.batches(STREAMED_IMAGES):
            share = len(batch[TARGET]) / len(split)
            losses += exact.losses(batch[INPUT], batch[TARGET]) * share
    else:
        losses = exact.losses(split.inputs, split.targets)
    odd = np.flatnonzero(~np.isfinite(losses))
    losses[odd] = evaluate_each(dense, candidates, split, task, odd)
    return losses


def _tells_classes(split: AnySplit, task: Task) -> bool:
    """Whether examples are (input, class), the only kind that can be computed together."""
    return (
        type(task) is Classification
        and split.shapes.keys() == {INPUT, TARGET}
        and (split.shapes[TARGET] == ())
    )


def _tried(dense: nn.Module, candidates: Candidates, images: Tensor) -> SharedLosses | None:
    """The shared computation, if it agrees with the pruned networks; else None."""
    try:
        exact = SharedLosses(dense, candidates, images)
        if exact.agrees(images):
            return exact
        reason = "its outputs differ from those of the pruned networks"
    except Exception as error:  # a user's own modules run: anything can come out
        reason = f"{type(error).__name__}: {error}"
    log.info("candidates are evaluated one at a time: %s", reason)
    return None
