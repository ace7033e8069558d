"""A 1-d convolution network on sequences: a digit read as eight channels over eight steps."""

from data import TEST, TRAIN, images, labels, show, trained
from torch import nn
from torch.nn import functional

from trueoracle import Study

rows_of = images[:, 0]  # [1797, 8 channels, 8 steps]
network = nn.Sequential(
    nn.Conv1d(8, 12, 3),
    nn.BatchNorm1d(12),
    nn.ReLU(),
    nn.Conv1d(12, 12, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(48, 10),
)
trained(network, lambda net, rows: functional.cross_entropy(net(rows_of[rows]), labels[rows]))
study = Study(
    name="sequences",
    network=network,
    data=((rows_of[TRAIN], labels[TRAIN]), (rows_of[TEST], labels[TEST])),
    pruning={"layers": {"0": 0.5}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1]},
)
show(study.run())
