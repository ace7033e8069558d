"""Loss and accuracy of one network on one split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from trueoracle.data.splits import Split

__all__ = ["Metrics", "evaluate"]


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy in nats, and the fraction of images classified rightly."""

    loss: float
    accuracy: float


def evaluate(network: nn.Module, split: Split, batch_size: int = 500) -> Metrics:
    """Evaluate in evaluation mode, without augmentation; the network's mode is restored.

    Batches are added up in float64. ``batch_size`` bounds memory and changes nothing else; 500
    small images fit a CPU's cache, where larger batches measured slower.
    """
    was_training = network.training
    network.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    try:
        with torch.inference_mode():
            for images, labels in zip(
                split.images.split(batch_size), split.labels.split(batch_size), strict=True
            ):
                logits = network(images)
                loss += functional.cross_entropy(logits, labels, reduction="sum")
                right += (logits.argmax(1) == labels).sum()
    finally:
        network.train(was_training)
    return Metrics(float(loss) / len(split), int(right) / len(split))
