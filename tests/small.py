"""Small networks of several tasks, and data that they can learn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.tasks.segmentation import IGNORED

__all__ = ["InADict", "Net", "SmallUNet", "TransposedUNet", "images", "targets"]


class Net(nn.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.fc = nn.Linear(20, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 4)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class SmallUNet(nn.Module):
    """Down, up, and a connection past both, in the manner of a U-Net."""

    def __init__(self, classes: int, *, transposed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.down = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.transposed = transposed
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2) if transposed else nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(11, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.up(torch.relu(self.norm(self.down(x))))
        if not self.transposed:
            y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
        logits: Tensor = self.head(torch.cat([x, y], dim=1))
        return logits


class TransposedUNet(SmallUNet):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, transposed=True)


class InADict(SmallUNet):
    """Gives what torchvision's segmentation networks give."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return {"out": logits, "aux": logits * 2}


def images(count: int, seed: int) -> Tensor:
    """Noise ``[N, 2, 8, 8]``."""
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def targets(task: str, inputs: Tensor) -> Tensor:
    """What follows from the images: two numbers, four labels, masks or one of three classes."""
    means = inputs.mean((2, 3))
    if task == "regression":
        return means * 8
    if task == "multilabel":
        return (torch.cat([means, -means], 1) > 0).float()
    if task == "segmentation":
        masks = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
        return masks.masked_fill(inputs[:, 0] > 1.5, IGNORED)
    return (means[:, 0] > means[:, 1]).long() + (means.sum(1) > 0.1).long()
