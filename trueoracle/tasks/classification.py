"""One class for each example, or a probability of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Examples, Targets, Task, target_of
from trueoracle.tasks.metric import ACCURACY, LOSS, Metric

__all__ = ["Classification", "Multilabel", "Smoothed"]


class Classification(Task):
    """Cross-entropy (nats) and accuracy of logits ``[N, C]``, ``C`` at least ``classes``.

    Targets are classes ``[N]`` counted from 0, or class probabilities ``[N, classes]``, of which
    the largest is the class that accuracy compares with.
    """

    name: ClassVar[str] = "classification"
    targets: ClassVar[Targets] = "classes"
    metrics: Sequence[Metric] = (LOSS, ACCURACY)

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @classmethod
    def of(cls, train: Examples) -> Classification:
        """As many classes as the largest training label implies, or as there are probabilities."""
        targets = train.targets
        return cls(int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1])

    def options(self) -> dict[str, Any]:
        return {"classes": self.classes}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, _probabilities(outputs, target_of(batch)))

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        target = _probabilities(outputs, target_of(batch))
        label = target if target.ndim == 1 else target.argmax(1)
        return {
            "loss": functional.cross_entropy(outputs, target, reduction="sum"),
            "right": (outputs.argmax(1) == label).sum(),
            "count": torch.tensor(len(outputs), device=outputs.device),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sums["loss"] / sums["count"], "accuracy": sums["right"] / sums["count"]}

    def outputs(self, train: Examples) -> int:
        return self.classes

    def chance(self) -> float:
        return 1 / self.classes

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs

    def groups(self, split: Examples) -> Tensor:
        targets = split.targets.cpu()
        return targets if targets.ndim == 1 else targets.argmax(1)

    def check(self, outputs: Tensor, batch: Batch) -> list[str]:
        count = len(target_of(batch))
        if outputs.ndim != 2 or len(outputs) != count or outputs.shape[1] < self.classes:
            raise InputError(
                f"the network gives {list(outputs.shape)} for {count} examples, expected "
                f"[{count}, {self.classes}]: one logit for each class of the data"
            )
        _check_floating(outputs)
        return _probabilities_noted(outputs, "softmax")

    def check_targets(self, split: Examples, where: str) -> None:
        targets = split.targets
        if targets.ndim == 2 and targets.is_floating_point():
            total = targets.sum(1)
            if targets.shape[1] != self.classes or bool(
                (targets < 0).any() or ((total - 1).abs() > 1e-3).any()
            ):
                raise InputError(
                    f"the {where} split's targets are {list(targets.shape)}: expected classes [N], "
                    f"or the probabilities of {self.classes} classes, which sum to 1"
                )
            return
        if targets.ndim != 1 or targets.dtype != torch.int64:
            raise InputError(
                f"the {where} split's targets are {targets.dtype} of shape {list(targets.shape)}: "
                "expected classes [N] (int64), or class probabilities [N, classes] (float32)"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= self.classes:
            raise InputError(
                f"labels out of range in the {where} split: found {low}…{high}, "
                f"expected 0…{self.classes - 1} for {self.classes} classes"
            )


class Smoothed(Classification):
    """Classification whose training loss spreads a share of each label over all classes.

    This is label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7). Metrics are measured
    without it.
    """

    def __init__(self, classes: int, smoothing: float) -> None:
        super().__init__(classes)
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        target = _probabilities(outputs, target_of(batch))
        return functional.cross_entropy(outputs, target, label_smoothing=self.smoothing)


class Multilabel(Task):
    """Any number of labels for each example: logits and targets ``[N, labels]``.

    The loss is the mean binary cross-entropy (nats) over examples and labels. A label is predicted
    where its logit is above 0: accuracy is the share of right predictions, and ``f1`` is computed
    over all labels together.
    """

    name: ClassVar[str] = "multilabel"
    targets: ClassVar[Targets] = "numbers"
    metrics: Sequence[Metric] = (
        LOSS,
        Metric("f1", "F1", better="higher", low=0.0, high=1.0),
        Metric("accuracy", "label accuracy", better="higher", low=0.0, high=1.0),
    )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            outputs, target_of(batch).to(outputs.dtype)
        )

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        target = target_of(batch).to(outputs.dtype)
        said, true = outputs > 0, target > 0.5
        return {
            "loss": functional.binary_cross_entropy_with_logits(outputs, target, reduction="sum"),
            "right": (said == true).sum(),
            "hits": (said & true).sum(),
            "said": said.sum(),
            "true": true.sum(),
            "count": torch.tensor(outputs.numel(), device=outputs.device),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "loss": sums["loss"] / sums["count"],
            "f1": 2 * sums["hits"] / (sums["said"] + sums["true"]).clamp(min=1),
            "accuracy": sums["right"] / sums["count"],
        }

    def outputs(self, train: Examples) -> int:
        return train.targets.shape[1]

    def check(self, outputs: Tensor, batch: Batch) -> list[str]:
        if outputs.shape != target_of(batch).shape:
            raise InputError(
                f"the network gives {list(outputs.shape)} for targets "
                f"{list(target_of(batch).shape)}: expected one logit for each label"
            )
        _check_floating(outputs)
        return _probabilities_noted(outputs, "sigmoid")

    def check_targets(self, split: Examples, where: str) -> None:
        targets = split.targets
        if targets.ndim != 2 or bool(((targets < 0) | (targets > 1)).any()):
            raise InputError(
                f"the {where} split's targets are {list(targets.shape)}: expected 0 or 1 for each "
                "label, [N, labels]"
            )


def _probabilities(outputs: Tensor, target: Tensor) -> Tensor:
    """Class probabilities, padded to the number of logits; class indices are left unchanged."""
    if not target.is_floating_point():
        return target
    missing = outputs.shape[-1] - target.shape[-1]
    return functional.pad(target, (0, missing)) if missing else target


def _check_floating(outputs: Tensor) -> None:
    if not outputs.is_floating_point():
        kind = str(outputs.dtype).removeprefix("torch.")
        raise InputError(f"the network gives {kind} numbers, expected logits in floating point")


def _probabilities_noted(outputs: Tensor, function: str) -> list[str]:
    within = bool(((outputs >= 0) & (outputs <= 1)).all())
    sums = function != "softmax" or bool(((outputs.sum(1) - 1).abs() < 1e-4).all())
    if within and sums:
        return [
            f"the network seems to end in {function}: its outputs are probabilities, and the loss "
            "reads logits; leave its last operation out"
        ]
    return []
