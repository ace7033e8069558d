"""A training procedure of one's own, in place of the recipe's."""

from collections.abc import Callable

import torch
from data import TEST, TRAIN, images, labels, show, trained
from torch import nn
from torch.nn import functional

from trueoracle import Splits, Study


def train(
    network: nn.Module, data: Splits, recipe: object, seed: int, report: Callable[[int], None]
) -> None:
    """Two passes of RMSprop with noise on the images."""
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3)
    x, y = data.train.inputs, data.train.targets
    for epoch in range(2):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            noisy = x[rows] + 0.05 * torch.randn_like(x[rows])
            functional.cross_entropy(network(noisy), y[rows]).backward()
            optimizer.step()
        report(epoch)


if __name__ == "__main__":
    network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 10))
    trained(network, lambda net, rows: functional.cross_entropy(net(images[rows]), labels[rows]))
    study = Study(
        name="own-procedure",
        network=network,
        data=((images[TRAIN], labels[TRAIN]), (images[TEST], labels[TEST])),
        pruning={"layers": {"0": 0.3}, "candidates": 40},
        criteria=["oracle", "l1"],
        retraining={"epochs": 2, "seeds": [0, 1], "procedure": "own_procedure:train"},
    )
    show(study.run())
