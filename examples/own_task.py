"""A task of one's own: regression by the Huber loss, measured by the share that is near."""

from collections.abc import Mapping

import torch
from data import TEST, TRAIN, images, show, trained
from torch import Tensor, nn
from torch.nn import functional

from trueoracle import Metric, Study, Task

ink = images.mean((1, 2, 3))


class Huber(Task):
    """Numbers that are compared by the Huber loss."""

    metrics = (
        Metric("loss", "Huber loss"),
        Metric("near", "share within 0.02", better="higher", low=0, high=1),
    )

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean over a batch."""
        return functional.huber_loss(outputs[:, 0], batch["target"], delta=0.1)

    def sums(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over a batch."""
        given, target = outputs[:, 0], batch["target"]
        return {
            "loss": functional.huber_loss(given, target, delta=0.1, reduction="sum"),
            "near": ((given - target).abs() < 0.02).sum(),
            "count": torch.tensor(len(target)),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over a split."""
        return {"loss": sums["loss"] / sums["count"], "near": sums["near"] / sums["count"]}


network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 1))
trained(network, lambda net, rows: functional.huber_loss(net(images[rows])[:, 0], ink[rows]))
study = Study(
    name="own-task",
    network=network,
    data=((images[TRAIN], ink[TRAIN]), (images[TEST], ink[TEST])),
    task=Huber,
    pruning={"layers": {"0": 0.3}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1]},
)
show(study.run())
