"""Pruned networks that learn from the dense one as well."""

from data import TEST, TRAIN, images, labels, show, trained
from torch import nn
from torch.nn import functional

from trueoracle import Study

network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 10))
trained(network, lambda net, rows: functional.cross_entropy(net(images[rows]), labels[rows]))
study = Study(
    name="distillation",
    network=network,
    data=((images[TRAIN], labels[TRAIN]), (images[TEST], labels[TEST])),
    pruning={"layers": {"0": 0.3}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1], "distil": {"weight": 0.7, "temperature": 4}},
)
show(study.run())
