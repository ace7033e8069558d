from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trueoracle
from trueoracle.data.splits import AnySplit, Split
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.metric import Metric
from trueoracle.tasks.registry import TASKS, find_task, given_task
from trueoracle.tasks.regression import Regression


def kind(one: object) -> str:
    return one if isinstance(one, str) else type(one).__name__


TRAIN = Split.of(torch.zeros(6, 2), torch.arange(6) % 3)


class Absolute(Task):
    """The mean absolute error."""

    metrics: Sequence[Metric] = (Metric("loss", "mean absolute error", low=0.0),)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs[:, 0] - batch["target"]).abs().mean() * self.scale

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        total = (outputs[:, 0] - batch["target"]).abs().sum() * self.scale
        return {"loss": total, "count": torch.tensor(len(outputs))}

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sums["loss"] / sums["count"]}


class Nameless(Absolute):
    metrics = (Metric("error", "an error"),)


class Twice(Absolute):
    metrics = (Metric("loss", "one"), Metric("loss", "other"))


class Empty(Absolute):
    metrics = ()


def test_the_shipped_tasks() -> None:
    assert sorted(TASKS) == [
        "answers", "classification", "multilabel", "next-token", "regression", "segmentation",
    ]  # fmt: skip
    assert all(TASKS[name].name == name for name in TASKS)
    assert trueoracle.Task is Task
    assert trueoracle.Metric is Metric


def test_tasks_are_found_by_name_class_or_object() -> None:
    named = find_task("classification", TRAIN)
    assert isinstance(named, Classification)
    assert named.classes == 3
    made = find_task(Classification, TRAIN)
    assert isinstance(made, Classification)
    assert made.classes == 3
    given = Classification(12)
    assert find_task(given, TRAIN) is given
    assert isinstance(find_task(Absolute, TRAIN), Absolute)


def test_a_task_of_ones_own_is_found_by_module_and_attribute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_tasks.py").write_text(
        "from tests.tasks.test_registry import Absolute\n"
        "class Doubled(Absolute):\n"
        "    @classmethod\n"
        "    def of(cls, train):\n"
        "        return cls(2.0 * len(train))\n"
        "tripled = Absolute(3.0)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert vars(find_task("their_tasks:Doubled", TRAIN)) == {"scale": 12.0}
        assert vars(find_task("their_tasks:tripled", TRAIN)) == {"scale": 3.0}
        with pytest.raises(
            InputError, match=r"^task 'their_tasks:number' is a int, expected a Task$"
        ):
            find_task("their_tasks:number", TRAIN)
        with pytest.raises(InputError, match=r"^cannot import the task 'their_tasks:Missing': "):
            find_task("their_tasks:Missing", TRAIN)
    finally:
        sys.modules.pop("their_tasks", None)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("clasification", "unknown task 'clasification'"),
        ("nowhere:Task", "cannot import the task 'nowhere:Task'"),
        (
            Nameless,
            r"task 'Nameless' has the metrics \['error'\]: expected different names, 'loss'",
        ),
        (Twice(), r"task 'Twice' has the metrics \['loss', 'loss'\]: expected different names"),
        (Empty, r"task 'Empty' has the metrics \[\]"),
        (3, "task 3 is a int, expected a Task"),
    ],
    ids=kind,
)
def test_what_is_no_task_is_refused(task: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_task(task, TRAIN)
    assert "\n" not in str(caught.value)


def test_a_study_names_a_given_task_by_its_code_and_values() -> None:
    assert given_task(Classification) == "classification"
    assert given_task(Regression) == "regression"
    same = given_task(Absolute(2.0))
    assert same == given_task(Absolute(2.0))
    assert same.startswith("given:Absolute-")
    names = {same, given_task(Absolute(3.0)), given_task(Nameless(2.0)), given_task(Twice(2.0))}
    assert len(names) == 4


def test_a_task_may_leave_out_what_it_does_not_know() -> None:
    task: Task = Absolute()
    split: AnySplit = TRAIN
    with pytest.raises(InputError, match=r"^task 'Absolute' does not say how many outputs a netw"):
        task.outputs(split)
    with pytest.raises(InputError, match=r"^task 'Absolute' has no logits$"):
        task.logits(torch.zeros(1))
    assert task.chance() is None
    assert task.options() == {}
    assert task.groups(split).tolist() == [0] * 6
    assert task.weight({"a": torch.zeros(5, 2)}) == 5
    assert task.label == "Absolute"


def test_a_given_task_is_told_apart_by_every_number_that_it_holds() -> None:
    """A tensor of weights is printed in part only."""
    weights = torch.ones(3000)
    other = weights.clone()
    other[1500] = 2
    one, same, another = (Absolute() for _ in range(3))
    for task, held in ((one, weights), (same, weights.clone()), (another, other)):
        task.weights = held  # type: ignore[attr-defined]
    assert given_task(one) == given_task(same)
    assert given_task(one) != given_task(another)
