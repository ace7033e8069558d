"""Networks of a few hundred weights, their candidates and their images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.criteria.base import find_criterion
from trueoracle.data.splits import Split, Splits
from trueoracle.pruning.candidates import CandidateList, Candidates, list_candidates
from trueoracle.pruning.unstructured import WeightCandidates, list_weight_candidates
from trueoracle.pruning.walk import find_groups
from trueoracle.tasks.classification import Classification
from trueoracle.training.recipe import Retraining

SHAPE = (1, 8, 8)
CLASSES = 3


class Residual(nn.Module):
    """Two convolutions around one, with batch norm: ``stem`` and ``last`` are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.first, self.bn1 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.last, self.bn2 = nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        y = functional.relu(self.bn1(self.first(x)))
        z = functional.relu(x + self.bn2(self.last(y)))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(z, 1).flatten(1))
        return logits


def chain() -> nn.Sequential:
    """Convolution, pooling, convolution, linear: 4, 3 and 3 filters."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, CLASSES)),
    )


def residual() -> Residual:
    """A :class:`Residual` whose batch norms have seen images and have scales of their own."""
    torch.manual_seed(1)
    network = Residual()
    for norm in (network.bn, network.bn1, network.bn2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 0.5
    network.train()
    for _ in range(3):
        network(torch.randn(16, *SHAPE))
    return network.eval()


def images(count: int = 24, seed: int = 0) -> Splits:
    """Splits of noise and of classes that follow from it."""
    generator = torch.Generator().manual_seed(seed)

    def split(size: int) -> Split:
        pixels = torch.randn(size, *SHAPE, generator=generator)
        labels = pixels.flatten(1)[:, :CLASSES].argmax(1)
        labels[:CLASSES] = torch.arange(CLASSES)
        return Split.of(pixels, labels)

    return Splits(split(count), split(12), split(12), Classification(CLASSES))


def every_way(network: nn.Module, ratios: Mapping[str, float]) -> Candidates:
    return list_candidates(find_groups(network, torch.rand(3, *SHAPE)), ratios)


def masks(network: nn.Module, sparsities: Mapping[str, float]) -> WeightCandidates:
    return list_weight_candidates(network, sparsities, count=5)


def score(
    name: str,
    network: nn.Module,
    candidates: CandidateList,
    data: Splits | None = None,
    recipe: Retraining | None = None,
) -> np.ndarray:
    """The scores ``[P]`` by a registered criterion."""
    return find_criterion(name)(network, candidates, data or images(), recipe)


def summed(
    importance: Mapping[str, list[float] | np.ndarray], candidates: Candidates
) -> list[float]:
    """The importance of the pruned filters, added up one by one."""
    return [
        sum(
            float(importance[group.name][filter_])
            for group, pruned in zip(candidates.groups, way, strict=True)
            for filter_ in pruned
        )
        for way in candidates
    ]


def summed_weights(
    importance: Mapping[str, Tensor | np.ndarray], candidates: WeightCandidates
) -> list[float]:
    """The importance of the pruned weights, added up mask by mask."""
    return [
        sum(
            float(torch.as_tensor(importance[name])[~kept].double().sum())
            for name, kept in candidates.kept(index).items()
        )
        for index in range(len(candidates))
    ]
