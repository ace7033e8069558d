"""Real handwritten digits of 8×8 pixels (scikit-learn), and a plain training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from trueoracle import Results

torch.manual_seed(0)
_digits = load_digits()
images = torch.tensor(_digits.images, dtype=torch.float32).unsqueeze(1) / 16
"""``[1797, 1, 8, 8]``, from 0 to 1."""
labels = torch.tensor(_digits.target)
TRAIN = slice(0, 1200)
TEST = slice(1200, 1797)


def trained(
    network: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], steps: int = 300
) -> nn.Module:
    """The network after some steps of Adam on batches of 64; ``loss(network, rows)``."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, torch.randint(0, TRAIN.stop, (64,))).backward()
        optimizer.step()
    return network.eval()


def show(results: Results) -> None:
    """Kendall's tau of each criterion with each outcome, and its interval."""
    table = results.correlate()
    print(table[["criterion", "metric", "n", "kendall_tau", "kendall_low", "kendall_high"]])
