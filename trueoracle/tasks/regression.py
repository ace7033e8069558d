"""Real numbers for each example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Examples, Targets, Task, target_of
from trueoracle.tasks.metric import Metric

__all__ = ["Regression"]


class Regression(Task):
    """Mean squared error and R² of outputs and targets of one shape, ``[N, ...]`` or ``[N]``.

    Outputs ``[N, 1]`` are compared with targets ``[N]``. R² is computed over all numbers of a split
    together, relative to their mean: 1 is perfect, 0 is as good as predicting the mean, and NaN
    means that all targets are equal.
    """

    name: ClassVar[str] = "regression"
    targets: ClassVar[Targets] = "numbers"
    metrics: Sequence[Metric] = (
        Metric("loss", "mean squared error", low=0.0),
        Metric("r2", "R²", better="higher", high=1.0),
    )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - _target(outputs, batch)).square().mean()

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        target = _target(outputs, batch)
        return {
            "loss": (outputs - target).double().square().sum(),
            "target": target.double().sum(),
            "square": target.double().square().sum(),
            "count": torch.tensor(outputs.numel(), device=outputs.device),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spread = sums["square"] - sums["target"].square() / sums["count"]
        r2 = torch.where(spread > 0, 1 - sums["loss"] / spread, torch.nan)
        return {"loss": sums["loss"] / sums["count"], "r2": r2}

    def outputs(self, train: Examples) -> int:
        return math.prod(train.targets.shape[1:])

    def chance(self) -> float:
        return 0.0

    def check(self, outputs: Tensor, batch: Batch) -> list[str]:
        target = target_of(batch)
        if outputs.shape != target.shape and outputs.shape != (*target.shape, 1):
            raise InputError(
                f"the network gives {list(outputs.shape)} for targets {list(target.shape)}: "
                "expected one number for each"
            )
        if not outputs.is_floating_point():
            raise InputError(f"the network gives {outputs.dtype} numbers, expected floating point")
        return []

    def check_targets(self, split: Examples, where: str) -> None:
        if not torch.isfinite(split.targets).all():
            raise InputError(f"the {where} targets hold values that are not finite")


def _target(outputs: Tensor, batch: Batch) -> Tensor:
    """The targets in the shape of the outputs, so that nothing is broadcast by accident."""
    target = target_of(batch)
    return target.to(torch.promote_types(outputs.dtype, target.dtype)).reshape(outputs.shape)
