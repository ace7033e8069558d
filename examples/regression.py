"""A regression network: how much ink is in the lower half of a digit."""

from data import TEST, TRAIN, images, show, trained
from torch import nn

from trueoracle import Study

ink = images[:, 0, 4:].mean((1, 2))
network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 1))
trained(network, lambda net, rows: (net(images[rows])[:, 0] - ink[rows]).square().mean())

study = Study(
    name="regression",
    network=network,
    data=((images[TRAIN], ink[TRAIN]), (images[TEST], ink[TEST])),
    task="regression",
    pruning={"layers": {"0": 0.3}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1]},
)
show(study.run())
