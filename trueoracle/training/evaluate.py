"""A task's metrics of networks on one split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trueoracle.data.splits import AnySplit
from trueoracle.tasks.base import Task

__all__ = ["add_sums", "evaluate", "evaluate_together", "evaluation_batch"]

_MOST_EXAMPLES = 500
"""So many small images fit a CPU's cache, where larger batches measured slower."""

_MOST_NUMBERS = 128 * 3 * 224 * 224
"""Most numbers in a batch: large images, and logits of a vocabulary, take memory."""

_MOST_TOKENS = 8192
"""Most tokens in a batch of texts whose vocabulary is not known."""


def evaluation_batch(split: AnySplit) -> int:
    """How many examples are evaluated at a time: 500 small ones, fewer large ones.

    A text counts by what a network gives for it: a number for each token and each of a vocabulary.
    """
    tokens = math.prod(split.shapes.get("input_ids", ()))
    numbers = sum(math.prod(shape) for shape in split.shapes.values())
    numbers += tokens * getattr(split, "vocabulary", 0)
    most = min(_MOST_NUMBERS // max(1, numbers), _MOST_TOKENS // tokens)
    return max(1, min(_MOST_EXAMPLES, most))


def evaluate(
    network: nn.Module, split: AnySplit, task: Task, batch_size: int | None = None
) -> dict[str, float]:
    """The metrics by name, in evaluation mode, without augmentation; the mode is restored.

    Batches are added up in float64. ``batch_size`` (by default :func:`evaluation_batch`) bounds
    memory and changes nothing else.
    """
    return evaluate_together([network], split, task, batch_size)[0]


def evaluate_together(
    networks: Sequence[nn.Module], split: AnySplit, task: Task, batch_size: int | None = None
) -> list[dict[str, float]]:
    """Evaluate each of some networks, as :func:`evaluate`, going through the examples once."""
    modes = [network.training for network in networks]
    totals: list[dict[str, Tensor]] = [{} for _ in networks]
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode():
            for batch in split.batches(batch_size or evaluation_batch(split)):
                for network, total in zip(networks, totals, strict=True):
                    add_sums(total, task.sums(task.forward(network, batch), batch))
            found = [task.finish(total) for total in totals]
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    return [{name: float(value) for name, value in metrics.items()} for metrics in found]


def add_sums(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add a batch's sums to those of the batches before, in float64."""
    for name, value in sums.items():
        exact = value.double()
        totals[name] = totals[name] + exact if name in totals else exact
