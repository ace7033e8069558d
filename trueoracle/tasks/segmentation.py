"""A class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Examples, Targets, Task, target_of
from trueoracle.tasks.metric import LOSS, Metric

__all__ = ["IGNORED", "Segmentation"]

IGNORED = 255
"""The class of pixels that do not count, as in PASCAL VOC's masks."""


class Segmentation(Task):
    """Cross-entropy (nats) over pixels and mean IoU of logits ``[N, C, H, W]``.

    Targets are classes ``[N, H, W]`` (with any number of spatial axes); class 255 is ignored. The
    intersection over union of a class is computed over all pixels of a split together, and averaged
    over the classes that occur in targets or predictions.
    """

    name: ClassVar[str] = "segmentation"
    targets: ClassVar[Targets] = "indices"
    has_spatial_targets: ClassVar[bool] = True
    metrics: Sequence[Metric] = (
        LOSS,
        Metric("mean_iou", "mean IoU", better="higher", low=0.0, high=1.0),
        Metric("accuracy", "pixel accuracy", better="higher", low=0.0, high=1.0),
    )

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @classmethod
    def of(cls, train: Examples) -> Segmentation:
        """As many classes as the largest training target implies, ignored ones left out."""
        known = train.targets[train.targets != IGNORED]
        return cls(int(known.max()) + 1 if len(known) else 1)

    def options(self) -> dict[str, Any]:
        return {"classes": self.classes}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        # The mean is written out: for a batch without any pixel that counts it is 0, not 0 / 0.
        total = functional.cross_entropy(
            outputs, target_of(batch), ignore_index=IGNORED, reduction="sum"
        )
        return total / (target_of(batch) != IGNORED).sum().clamp(min=1)

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        target = target_of(batch)
        counted = target != IGNORED
        each = torch.arange(outputs.shape[1], device=outputs.device).view(-1, *[1] * target.ndim)
        said = (outputs.argmax(1) == each) & counted
        true = target == each
        axes = tuple(range(1, said.ndim))
        return {
            "loss": functional.cross_entropy(
                outputs, target, ignore_index=IGNORED, reduction="sum"
            ),
            "hits": (said & true).sum(axes),
            "either": (said | true).sum(axes),
            "count": counted.sum(),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        occurs = sums["either"] > 0
        iou = sums["hits"] / sums["either"].clamp(min=1)
        return {
            "loss": sums["loss"] / sums["count"],
            "mean_iou": iou.sum(-1) / occurs.sum(-1).clamp(min=1),
            "accuracy": sums["hits"].sum(-1) / sums["count"],
        }

    def outputs(self, train: Examples) -> int:
        return self.classes

    def weight(self, batch: Batch) -> float:
        return float((target_of(batch) != IGNORED).sum())

    def counted(self, outputs: Tensor, batch: Batch) -> Tensor:
        return target_of(batch) != IGNORED

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs.movedim(1, -1)

    def check(self, outputs: Tensor, batch: Batch) -> list[str]:
        target = target_of(batch)
        if target.ndim < 2:
            raise InputError(f"masks are {list(target.shape)}, expected classes [N, H, W]")
        expected = (len(target), *target.shape[1:])
        if outputs.ndim < 3 or (len(outputs), *outputs.shape[2:]) != expected:
            raise InputError(
                f"the network gives {list(outputs.shape)} for masks {list(target.shape)}: expected "
                f"[{len(target)}, {self.classes}, {', '.join(map(str, target.shape[1:]))}]"
            )
        if outputs.shape[1] < self.classes:
            raise InputError(
                f"the network gives {outputs.shape[1]} logits for each pixel, and the masks have "
                f"{self.classes} classes"
            )
        return []

    def check_targets(self, split: Examples, where: str) -> None:
        targets = split.targets
        if targets.dtype != torch.int64 or targets.ndim < 2:
            raise InputError(
                f"the {where} split's masks are {targets.dtype} of shape {list(targets.shape)}: "
                "expected classes [N, H, W] (int64)"
            )
        counted = targets[targets != IGNORED]
        low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
        if low < 0 or high >= self.classes:
            raise InputError(
                f"masks out of range in the {where} split: found {low}…{high}, expected "
                f"0…{self.classes - 1} for {self.classes} classes, or {IGNORED} for ignored pixels"
            )
