"""How much pruned losses would differ because of the choice of the measured examples alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from statistics import NormalDist, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from trueoracle.criteria.samples import sample
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.pruning.candidates import CandidateList
from trueoracle.tasks.base import Batch, Task
from trueoracle.training.evaluate import evaluation_batch

__all__ = ["example_losses", "loss_noise"]

_COMPARED = 8
"""Most candidates compared example by example, spread from the lowest to the highest loss."""


def loss_noise(
    dense: nn.Module, candidates: CandidateList, losses: np.ndarray, data: Splits
) -> dict[str, float] | None:
    """The range of pruned ``losses`` ``[P]``, and the range that the choice of examples would make.

    - ``standard_error`` is that of the difference between two candidates' losses on the same
      examples, so that how hard an example is does not matter. It is the median over pairs of some
      candidates, spread from the lowest to the highest loss, on at most 512 examples, scaled to
      the number of all measured ones;
    - ``range`` is the largest loss minus the smallest;
    - ``noise`` is the range below which equally many candidates that do not differ at all would
      stay in 95 of 100 choices of examples;
    - ``candidates`` and ``examples`` are the numbers of both.

    None where fewer than two losses are finite.
    """
    known = np.flatnonzero(np.isfinite(losses))
    if len(known) < 2:
        return None
    order = known[np.argsort(losses[known], kind="stable")]
    places = np.linspace(0, len(order) - 1, min(_COMPARED, len(order))).round().astype(int)
    split = sample(data.measured_train, data.task)
    each = []
    for index in order[places]:
        own, weights = example_losses(candidates.prune(dense, int(index)), split, data.task)
        each.append(own)
    counts = weights > 0
    errors = [
        _standard_error(one[counts] - other[counts], weights[counts])
        for one, other in itertools.combinations(each, 2)
    ]
    measured = len(data.measured_train)
    error = median(errors) * math.sqrt(len(split) / measured)
    # In 95 % of cases P standard normal numbers are all this near to zero. The standard error of a
    # single loss is error / √2, and the range spans both sides of zero.
    reach = NormalDist().inv_cdf((1 + 0.95 ** (1 / len(known))) / 2)
    return {
        "standard_error": error,
        "range": float(np.ptp(losses[known])),
        "noise": math.sqrt(2) * reach * error,
        "candidates": len(known),
        "examples": measured,
    }


def _standard_error(differences: np.ndarray, weights: np.ndarray) -> float:
    """The standard error of the weighted mean of differences, one per example."""
    if len(differences) < 2:
        return math.nan
    mean = weights @ differences / weights.sum()
    squares = (weights**2) @ (differences - mean) ** 2
    return math.sqrt(squares * len(weights) / (len(weights) - 1)) / float(weights.sum())


def example_losses(
    network: nn.Module, split: AnySplit, task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """Each example's own loss ``[N]``, and how much it counts in the mean, in evaluation mode."""
    losses: list[float] = []
    weights: list[float] = []
    network.eval()
    with torch.no_grad():
        for batch in split.batches(evaluation_batch(split)):
            outputs = task.forward(network, batch)
            singles = [_one(batch, i) for i in range(len(next(iter(batch.values()))))]
            weights += [task.weight(one) for one in singles]
            losses += _losses(task, outputs, batch, singles)
    return np.array(losses), np.array(weights)


def _losses(task: Task, outputs: Any, batch: Batch, singles: list[Batch]) -> list[float]:
    def own(output: Any, example: Mapping[str, Tensor]) -> Tensor:
        return task.loss(_with_axis(output), {n: v[None] for n, v in example.items()})

    if task.is_mappable:
        found: list[float] = vmap(own, (0, 0))(outputs, dict(batch)).double().cpu().tolist()
        return found
    return [
        float(task.loss(pytree.tree_map(lambda v, i=i: v[i : i + 1], outputs), one))
        for i, one in enumerate(singles)
    ]


def _with_axis(output: Any) -> Any:
    return pytree.tree_map(lambda value: value[None], output)


def _one(batch: Batch, index: int) -> Batch:
    return {name: value[index : index + 1] for name, value in batch.items()}
