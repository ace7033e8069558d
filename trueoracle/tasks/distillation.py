"""Learning from a teacher: any task with logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.tasks.base import Batch, Task, Wrapped

__all__ = ["Distilled"]


class Distilled(Wrapped):
    """A task whose training loss is in part the distance from a teacher's answers.

    The loss is ``(1 - weight) · loss + weight · T² · KL(teacher ‖ student)`` at temperature T
    (Hinton et al. 2015, arXiv 1503.02531, section 2), the mean over examples (pixels, tokens). The
    teacher runs in evaluation mode on the batch that the student sees. The metrics are those of the
    task.
    Raises :class:`InputError` for a task without logits.
    """

    def __init__(self, task: Task, teacher: nn.Module, weight: float, temperature: float) -> None:
        super().__init__(task)
        self.teacher = teacher.eval().requires_grad_(False)
        self.share, self.temperature = weight, temperature

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mixed loss of a batch."""
        with torch.no_grad():
            given = self.task.forward(self.teacher, batch)
        taught = functional.log_softmax(self.task.logits(given) / self.temperature, -1)
        said = functional.log_softmax(self.task.logits(outputs) / self.temperature, -1)
        apart = (taught.exp() * (taught - said)).sum(-1)
        counted = self.task.counted(outputs, batch)
        if counted is not None:
            apart = apart * counted
        count = torch.tensor(apart.numel()) if counted is None else counted.sum()
        mean = apart.sum() / count.clamp(min=1)
        own = self.task.loss(outputs, batch)
        return (1 - self.share) * own + self.share * self.temperature**2 * mean
