"""Loss and accuracy of networks on one split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from trueoracle.data.splits import AnySplit

__all__ = ["Metrics", "evaluate", "evaluate_together", "evaluation_batch"]

_MOST_IMAGES = 500
"""So many small images fit a CPU's cache, where larger batches measured slower."""

_MOST_NUMBERS = 128 * 3 * 224 * 224
"""Most numbers in a batch: large images take memory in every layer."""


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy in nats, and the fraction of images classified rightly."""

    loss: float
    accuracy: float


def evaluation_batch(image_shape: Sequence[int]) -> int:
    """How many images of a shape are evaluated at a time: 500 small ones, fewer large ones."""
    return max(1, min(_MOST_IMAGES, _MOST_NUMBERS // math.prod(image_shape)))


def evaluate(network: nn.Module, split: AnySplit, batch_size: int | None = None) -> Metrics:
    """Evaluate in evaluation mode, without augmentation; the network's mode is restored.

    Batches are added up in float64. ``batch_size`` (by default :func:`evaluation_batch`) bounds
    memory and changes nothing else.
    """
    return evaluate_together([network], split, batch_size)[0]


def evaluate_together(
    networks: Sequence[nn.Module], split: AnySplit, batch_size: int | None = None
) -> list[Metrics]:
    """Evaluate each of some networks, as :func:`evaluate`, going through the images once."""
    modes = [network.training for network in networks]
    device, count = split.device, len(networks)
    losses = torch.zeros(count, dtype=torch.float64, device=device)
    right = torch.zeros(count, dtype=torch.int64, device=device)
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode():
            for images, labels in split.batches(batch_size or evaluation_batch(split.image_shape)):
                for i, network in enumerate(networks):
                    logits = network(images)
                    losses[i] += functional.cross_entropy(logits, labels, reduction="sum")
                    right[i] += (logits.argmax(1) == labels).sum()
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    return [
        Metrics(loss / len(split), hits / len(split))
        for loss, hits in zip(losses.tolist(), right.tolist(), strict=True)
    ]
