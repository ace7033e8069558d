"""A U-Net: of every pixel with ink the digit that it is part of; paper is ignored."""

import torch
from data import TEST, TRAIN, images, labels, show, trained
from torch import Tensor, nn
from torch.nn import functional

from trueoracle import Study

masks = torch.where(images[:, 0] > 0.25, labels[:, None, None], 255)


class UNet(nn.Module):
    """One level down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 12, 3, padding=1)
        self.deep = nn.Conv2d(12, 24, 3, padding=1)
        self.up = nn.Conv2d(36, 24, 3, padding=1)
        self.head = nn.Conv2d(24, 10, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits as torchvision's segmentation networks give them."""
        fine = functional.relu(self.down(x))
        coarse = functional.relu(self.deep(functional.max_pool2d(fine, 4)))
        joined = torch.cat([functional.interpolate(coarse, scale_factor=4), fine], 1)
        return {"out": self.head(functional.relu(self.up(joined)))}


network = trained(
    UNet(),
    lambda net, rows: functional.cross_entropy(
        net(images[rows])["out"], masks[rows], ignore_index=255
    ),
)
study = Study(
    name="segmentation",
    network=network,
    data=((images[TRAIN], masks[TRAIN]), (images[TEST], masks[TEST])),
    task="segmentation",
    pruning={"layers": {"deep": 0.5}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1]},
)
show(study.run())
