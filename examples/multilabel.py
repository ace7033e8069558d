"""A multi-label network: whether a digit is even, above four, prime, and drawn with a loop."""

import torch
from data import TEST, TRAIN, images, labels, show, trained
from torch import nn
from torch.nn import functional

from trueoracle import Study

loops = torch.isin(labels, torch.tensor([0, 6, 8, 9]))
primes = torch.isin(labels, torch.tensor([2, 3, 5, 7]))
marks = torch.stack([labels % 2 == 0, labels > 4, primes, loops], 1).float()
network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 4))
trained(
    network,
    lambda net, rows: functional.binary_cross_entropy_with_logits(net(images[rows]), marks[rows]),
)
study = Study(
    name="multilabel",
    network=network,
    data=((images[TRAIN], marks[TRAIN]), (images[TEST], marks[TEST])),
    task="multilabel",
    pruning={"layers": {"0": 0.3}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1]},
)
show(study.run())
