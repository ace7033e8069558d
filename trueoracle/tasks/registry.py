"""Tasks by name."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

from trueoracle.errors import InputError
from trueoracle.registry import Registry
from trueoracle.sources import code_fingerprint, content_in_words
from trueoracle.tasks.base import Examples, Task
from trueoracle.tasks.classification import Classification, Multilabel
from trueoracle.tasks.language import Answers, NextToken
from trueoracle.tasks.regression import Regression
from trueoracle.tasks.segmentation import Segmentation

__all__ = ["GIVEN", "TASKS", "find_task", "given_task"]

GIVEN = "given:"
"""The beginning of the name of a task that was given in Python."""

TASKS: Registry[Any] = Registry("task")
for _task in (Classification, Multilabel, Regression, Segmentation, NextToken, Answers):
    TASKS.add(_task.name, _task, _task)


def given_task(task: Task | type[Task]) -> str:
    """The name in a study of a task that is given in Python: made of its code and its content."""
    kind = task if inspect.isclass(task) else type(task)
    # What a shipped task reads from the data is part of the data, and of the data's fingerprint.
    if TASKS.get(getattr(kind, "name", "")) is kind:
        return str(kind.name)
    code = code_fingerprint(kind) or kind.__qualname__
    held = {} if inspect.isclass(task) else vars(task)
    text = f"{code}{sorted((name, content_in_words(value)) for name, value in held.items())}"
    return f"{GIVEN}{kind.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def find_task(reference: str | Task | type[Task], train: Examples) -> Task:
    """A task by name or ``module:attribute`` (a class or an object), made for training examples.

    Raises :class:`InputError` for an unknown name, and for an attribute that is no task.
    """
    found: object = TASKS.find(reference) if isinstance(reference, str) else reference
    if inspect.isclass(found) and issubclass(found, Task):
        found = found.of(train)
    if not isinstance(found, Task):
        raise InputError(f"task {reference!r} is a {type(found).__name__}, expected a Task")
    names = [metric.name for metric in found.metrics]
    if not names or names[0] != "loss" or len(set(names)) < len(names):
        raise InputError(
            f"task {found.label!r} has the metrics {names}: expected different names, 'loss' first"
        )
    return found
