from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tests.tasks.cases import CASES, Case, largest, log_softmax, measured
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.classification import Classification, Multilabel, Smoothed
from trueoracle.tasks.distillation import Distilled
from trueoracle.tasks.language import NextToken
from trueoracle.tasks.regression import Regression
from trueoracle.tasks.segmentation import IGNORED, Segmentation

IMAGES = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (9,), generator=torch.Generator().manual_seed(1))
BATCH = {"input": IMAGES, "target": LABELS}


class Constant(nn.Module):
    """A teacher that gives the same whatever it is given."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.given


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5))


def apart(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The mean divergence of the rows of ``[..., C]``, by plain loops."""
    total = []
    for s, t in zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist(), strict=True):
        said = log_softmax([one / temperature for one in s])
        taught = log_softmax([one / temperature for one in t])
        total.append(sum(math.exp(b) * (b - a) for a, b in zip(said, taught, strict=True)))
    return sum(total) / len(total)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_by_hand(weight: float, temperature: float) -> None:
    student, teacher = networks()
    task = Distilled(Classification(4), teacher, weight, temperature)
    logits, taught = student(IMAGES).detach(), teacher(IMAGES).detach()
    own = -sum(log_softmax(r)[t] for r, t in zip(logits.tolist(), LABELS.tolist(), strict=True)) / 9
    expected = (1 - weight) * own + weight * temperature**2 * apart(logits, taught, temperature)
    assert float(task.loss(logits, BATCH)) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_the_difference_of_soft_answers() -> None:
    """Hinton et al., equation 2: T² times (soft student - soft teacher) / (T N)."""
    student, teacher = networks()
    logits = student(IMAGES).detach().requires_grad_()
    task = Distilled(Classification(4), teacher, 1.0, 3.0)
    (found,) = torch.autograd.grad(task.loss(logits, BATCH), logits)
    soft = (logits / 3).softmax(1) - (teacher(IMAGES) / 3).softmax(1)
    torch.testing.assert_close(found, 3 * soft.detach() / 9)


def test_a_student_like_its_teacher_learns_from_labels_alone() -> None:
    _, teacher = networks()
    task = Distilled(Classification(4), teacher, 1.0, 4.0)
    logits = teacher(IMAGES).detach().requires_grad_()  # in evaluation mode by now
    loss = task.loss(logits, BATCH)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(torch.autograd.grad(loss, logits)[0].abs().max()) < 1e-6


def test_the_teacher_gives_its_answers_and_stays_as_it_is() -> None:
    student, teacher = networks()
    before = copy.deepcopy(teacher.state_dict())
    task = Distilled(Classification(4), teacher, 0.5, 4.0)
    losses = [task.loss(student(IMAGES), BATCH) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])  # its dropout is off
    losses[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_what_is_measured_is_the_tasks_own() -> None:
    student, teacher = networks()
    own = Classification(4)
    task = Distilled(own, teacher, 0.7, 4.0)
    logits = student(IMAGES).detach()
    assert measured(task, logits, BATCH) == measured(own, logits, BATCH)
    assert task.metrics == own.metrics
    assert task.label == "classification"
    assert task.weight(BATCH) == 9
    assert torch.equal(task.forward(student, BATCH), own.forward(student, BATCH))


def test_smoothing_is_of_the_tasks_part() -> None:
    student, teacher = networks()
    logits = student(IMAGES).detach()
    for weight in (0.0, 0.4):
        smooth = Distilled(Smoothed(4, 0.2), teacher, weight, 2.0).loss(logits, BATCH)
        plain = Distilled(Classification(4), teacher, weight, 2.0).loss(logits, BATCH)
        differ = Smoothed(4, 0.2).loss(logits, BATCH) - Classification(4).loss(logits, BATCH)
        assert float(smooth - plain) == pytest.approx((1 - weight) * float(differ), rel=1e-3)


@pytest.mark.parametrize("task", [Regression(), Multilabel()], ids=["regression", "multilabel"])
def test_a_task_without_logits_is_refused(task: Task) -> None:
    given = torch.zeros(9, 4)
    distilled = Distilled(task, Constant(given), 0.5, 4.0)
    with pytest.raises(InputError, match=f"^task '{task.name}' has no logits$"):
        distilled.loss(given, {"input": IMAGES, "target": given})


WITH_CLASSES = [case for case in CASES if not isinstance(case.task, Regression | Multilabel)]


@pytest.mark.parametrize("case", WITH_CLASSES, ids=lambda case: case.name)
def test_only_what_counts_is_learnt_from_a_teacher(case: Case) -> None:
    """The mean over the examples, pixels or tokens that the task's own loss is the mean of."""
    student, teacher, batch = case.given(0), case.given(1), case.batch()
    found = Distilled(case.task, Constant(teacher), 1.0, 2.0).loss(student, batch)
    rows = [case.task.logits(one) for one in (student, teacher)]
    counts = _counted(case.task, batch, rows[0].shape[:-1])
    kept = [one[: counts.shape[0], : counts.shape[1]] if counts.ndim > 1 else one for one in rows]
    expected = 4 * apart(kept[0][counts], kept[1][counts], 2.0)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def _counted(task: Task, batch: Batch, shape: torch.Size) -> Tensor:
    """Which rows of logits the task's own loss reads, as a mask."""
    if isinstance(task, Segmentation):
        return batch["target"] != IGNORED
    if isinstance(task, NextToken):
        return task.labels(batch)[:, 1:] != -100
    return torch.ones(shape, dtype=torch.bool)


def test_largest_is_the_first_of_equal_ones() -> None:
    assert largest([0.0, 2.0, 2.0]) == 1
