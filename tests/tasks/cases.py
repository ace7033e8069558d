"""A batch of every shipped task, and what networks might give for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.classification import Classification, Multilabel, Smoothed
from trueoracle.tasks.language import Answers, NextToken
from trueoracle.tasks.regression import Regression
from trueoracle.tasks.segmentation import IGNORED, Segmentation
from trueoracle.training.evaluate import add_sums

N = 7


@dataclass(frozen=True)
class Case:
    """``outputs`` is the shape of one network's, ``make(seed)`` a batch of N examples."""

    name: str
    task: Task
    outputs: tuple[int, ...]
    make: Callable[[torch.Generator], Batch]

    def batch(self, seed: int = 0) -> Batch:
        return self.make(torch.Generator().manual_seed(100 + seed))

    def given(self, seed: int = 0) -> Tensor:
        """What a network gives."""
        return torch.randn(self.outputs, generator=torch.Generator().manual_seed(seed))


def _pairs(make: Callable[[torch.Generator], Tensor]) -> Callable[[torch.Generator], Batch]:
    return lambda generator: {"input": torch.zeros(N, 2), "target": make(generator)}


def _classes(*shape: int, classes: int = 3) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(classes, (N, *shape), generator=generator)


def _numbers(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(N, *shape, generator=generator)


def _probabilities(generator: torch.Generator) -> Tensor:
    return torch.randn(N, 3, generator=generator).softmax(1)


def _some(generator: torch.Generator) -> Tensor:
    return (torch.rand(N, 5, generator=generator) > 0.6).float()


def masks(*shape: int) -> Callable[[torch.Generator], Tensor]:
    """Masks of which about a third is ignored, and all of the last."""

    def make(generator: torch.Generator) -> Tensor:
        made = torch.randint(3, (N, *shape), generator=generator)
        made[torch.rand(N, *shape, generator=generator) < 0.3] = IGNORED
        made[-1] = IGNORED
        return made

    return make


def tokens(*, padded: bool, labelled: bool) -> Callable[[torch.Generator], Batch]:
    """Texts of 6 tokens, of which example i has i + 1; labels for the last of each."""

    def make(generator: torch.Generator) -> Batch:
        fields = {"input_ids": torch.randint(11, (N, 6), generator=generator)}
        lengths = torch.arange(N).clamp(max=5) + 1
        if padded:
            fields["attention_mask"] = (torch.arange(6) < lengths[:, None]).long()
        if labelled:
            fields["labels"] = fields["input_ids"].masked_fill(
                torch.arange(6) < lengths[:, None] - 2, -100
            )
        return fields

    return make


CASES = [
    Case("classes", Classification(3), (N, 3), _pairs(_classes())),
    Case("fewer classes than logits", Classification(3), (N, 4), _pairs(_classes())),
    Case("probabilities", Classification(3), (N, 3), _pairs(_probabilities)),
    Case("fewer probabilities", Classification(3), (N, 4), _pairs(_probabilities)),
    Case("smoothed", Smoothed(3, 0.2), (N, 4), _pairs(_classes())),
    Case("multilabel", Multilabel(), (N, 5), _pairs(_some)),
    Case("one number", Regression(), (N,), _pairs(_numbers())),
    Case("a column of numbers", Regression(), (N, 1), _pairs(_numbers())),
    Case("maps of numbers", Regression(), (N, 2, 3), _pairs(_numbers(2, 3))),
    Case("masks", Segmentation(3), (N, 4, 5, 6), _pairs(masks(5, 6))),
    Case("sequences of classes", Segmentation(3), (N, 3, 9), _pairs(masks(9))),
    Case("text", NextToken(), (N, 6, 11), tokens(padded=False, labelled=False)),
    Case("padded text", NextToken(), (N, 6, 11), tokens(padded=True, labelled=False)),
    Case("answers", Answers(), (N, 6, 11), tokens(padded=True, labelled=True)),
]


def cut(batch: Batch, start: int, end: int) -> Batch:
    return {name: value[start:end] for name, value in batch.items()}


def measured(
    task: Task, outputs: Tensor, batch: Batch, cuts: Sequence[int] = ()
) -> dict[str, float]:
    """The metrics of a batch, or of its parts, added up."""
    totals: dict[str, Tensor] = {}
    edges = [0, *cuts, len(outputs)]
    for start, end in pairwise(edges):
        add_sums(totals, task.sums(outputs[start:end], cut(batch, start, end)))
    return {name: float(value) for name, value in task.finish(totals).items()}


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Of plain numbers."""
    total = math.log(sum(math.exp(one) for one in logits))
    return [one - total for one in logits]


def largest(values: Sequence[float]) -> int:
    """Where the largest of some numbers is, the first of equal ones."""
    return max(range(len(values)), key=lambda place: (values[place], -place))
