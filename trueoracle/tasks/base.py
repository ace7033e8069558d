"""What a network is trained for: its loss, its metrics, and which way each is better."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import InputError, first_line
from trueoracle.tasks.metric import Metric

__all__ = [
    "INPUT",
    "TARGET",
    "TARGETS",
    "Batch",
    "Examples",
    "Targets",
    "Task",
    "Wrapped",
    "as_input",
    "in_words",
    "inputs_of",
    "is_by_example",
    "is_positional",
    "read_part",
    "run_network",
    "target_of",
    "unwrap",
]

Targets = Literal["classes", "indices", "numbers", "any"]
"""Classes ``[N]`` or class probabilities; whole numbers; real numbers; anything."""

Batch = Mapping[str, Tensor]
"""Some examples: named tensors with a leading axis N."""

INPUT, TARGET = "input", "target"
"""The fields of examples that are given as pairs (input, target)."""

TARGETS = (TARGET, "targets", "label", "labels")
"""The usual names of targets: fields that are never a network's input."""

_MASK, _POSITIONS = "attention_mask", "position_ids"
_PIXELS, _GRID = "pixel_values", "image_grid_thw"
"""Names of inputs in transformers."""

_READ = ("logits", "out")
"""The part that is read of an output with several parts, as transformers or torchvision name it."""


class Examples(Protocol):
    """What a task needs of a split; ``trueoracle.data.splits.AnySplit`` has it."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The fields of an example, each with its shape."""

    @property
    def targets(self) -> Tensor:
        """What the network should predict for each example, ``[N, ...]``."""

    def __len__(self) -> int: ...


class Task(ABC):
    """What a network is trained for.

    A task of one's own derives from this class and defines ``metrics``, :meth:`loss`, :meth:`sums`
    and :meth:`finish`; the first metric is named ``loss``. Its functions are also called under
    ``torch.vmap``, for many networks at a time, and must therefore use torch operations only and
    branch on shapes, never on values. A task that cannot be called so (``is_mappable = False``) is
    trained by the loop.
    """

    name: ClassVar[str] = ""
    """The task's name in a study file; a task of one's own may leave it empty."""

    metrics: Sequence[Metric]
    """What is measured on every split. The first one is the loss."""

    targets: ClassVar[Targets] = "any"
    """The kind of numbers that targets given in Python are read as."""
    is_mappable: ClassVar[bool] = True
    """Whether the task's functions work under ``torch.vmap``."""
    has_spatial_targets: ClassVar[bool] = False
    """Whether targets lie over the images, so that shifting an image would have to shift them."""

    @classmethod
    def of(cls, train: Examples) -> Task:
        """The task for these training examples, from which it reads, say, the number of classes."""
        return cls()

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        """The part of the network's output that loss and metrics read."""
        args, kwargs = inputs_of(network, batch)
        return unwrap(network(*args, **kwargs))

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch, a differentiable scalar."""

    @abstractmethod
    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """What the metrics are computed from, each as a sum over the batch's examples.

        They have to be sums and counts, which can be added up over all batches of a split, or over
        a block of its examples.
        """

    @abstractmethod
    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The metrics of a split by name, from its added sums (float64).

        The sums may have further axes in front: one entry per network.
        """

    def weight(self, batch: Batch) -> float:
        """The weight of a batch's mean loss in a split's: its count of examples, pixels, tokens."""
        return len(next(iter(batch.values())))

    def check(self, outputs: Any, batch: Batch) -> Sequence[str]:
        """Raise :class:`InputError` for outputs or targets that do not fit.

        Returns notes, one line each, on what fits but may surprise a user.
        """
        return ()

    def check_targets(self, split: Examples, where: str) -> None:  # noqa: B027
        """Raise :class:`InputError` for targets of a split that cannot be meant."""

    def outputs(self, train: Examples) -> int:
        """How many numbers a network should give for an example, a pixel or a token.

        Registered networks are built with as many outputs. Raises :class:`InputError` where the
        number is not known.
        """
        raise InputError(f"task {self.label!r} does not say how many outputs a network needs")

    def chance(self) -> float | None:
        """The headline's value (the second metric's) without any learning; None if not known."""
        return None

    def groups(self, split: Examples) -> Tensor:
        """The kind ``[N]`` of each example; random draws take equal shares of every kind."""
        return torch.zeros(len(split), dtype=torch.int64)

    def logits(self, outputs: Any) -> Tensor:
        """Unnormalised log-probabilities ``[..., classes]``, for distillation.

        Raises :class:`InputError` for a task that has none.
        """
        raise InputError(f"task {self.label!r} has no logits")

    def counted(self, outputs: Any, batch: Batch) -> Tensor | None:
        """Which of the :meth:`logits` count, bool ``[...]``; None where all of them do."""
        return None

    def options(self) -> dict[str, Any]:
        """What :meth:`of` read from the data, as plain values: part of the data's identity."""
        return {}

    @property
    def label(self) -> str:
        """The task's name in messages."""
        return self.name or type(self).__name__


class Wrapped(Task):
    """A task that passes everything on to another ``task``; what derives from it changes a part."""

    def __init__(self, task: Task) -> None:
        self.task, self.metrics = task, task.metrics

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        return self.task.forward(network, batch)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return self.task.loss(outputs, batch)

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        return self.task.sums(outputs, batch)

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.task.finish(sums)

    def weight(self, batch: Batch) -> float:
        return self.task.weight(batch)

    def groups(self, split: Examples) -> Tensor:
        return self.task.groups(split)

    def logits(self, outputs: Any) -> Tensor:
        return self.task.logits(outputs)

    def counted(self, outputs: Any, batch: Batch) -> Tensor | None:
        return self.task.counted(outputs, batch)

    @property
    def label(self) -> str:
        return self.task.label


def is_positional(field: str) -> bool:
    """Whether a field's name only gives its place: ``input``, ``input_1`` and so on."""
    return re.fullmatch(rf"{INPUT}(_\d+)?", field) is not None


def inputs_of(network: nn.Module, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The network's arguments from a batch: positional and keyword ones.

    These are all fields but the targets: by keyword where ``forward`` has all their names, else in
    order. Where texts are padded, and the network takes positions, those of the tokens are added.
    """
    fields = {name: value for name, value in batch.items() if name not in TARGETS}
    if all(map(is_positional, fields)):  # given as a tuple
        return tuple(fields.values()), {}
    parameters = inspect.signature(network.forward).parameters.values()
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not fields.keys() <= known and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return tuple(fields.values()), {}
    if _MASK in fields and _POSITIONS in known - fields.keys() and not _places_itself(network):
        # Learned positions would count padding on the left, and see another text.
        fields[_POSITIONS] = (fields[_MASK].cumsum(-1) - 1).clamp(min=0)
    if _GRID in fields and fields[_PIXELS].ndim > 2:
        # Qwen-VL takes the patches of all images along one axis.
        fields[_PIXELS] = fields[_PIXELS].flatten(0, 1)
    return (), fields


def _places_itself(network: nn.Module) -> bool:
    """Whether a network computes positions of several numbers itself, as Qwen2-VL for images."""
    return any(hasattr(module, "get_rope_index") for module in network.modules())


def target_of(batch: Batch) -> Tensor:
    """What the network should predict: the field that has one of the names of targets."""
    for name in TARGETS:
        if name in batch:
            return batch[name]
    raise InputError(f"the data has no targets, only {', '.join(batch)}")


def unwrap(output: Any) -> Tensor:
    """The part of an output that the shipped tasks read, as :func:`read_part` finds it.

    Raises :class:`InputError` where that is no tensor.
    """
    found, _ = read_part(output)
    if not isinstance(found, Tensor):
        raise InputError(f"the network gives {type(output).__name__}, in which no tensor was found")
    return found


def read_part(output: Any) -> tuple[Any, str]:
    """The part of an output that is read, and a description of it; None where there is none.

    A tensor is read as a whole, with an empty description. Of an object or mapping ``logits`` or
    ``out`` is read, else the first tensor of a mapping; of a tuple or list, the first element.
    """
    if isinstance(output, Tensor):
        return output, ""
    of = f"of the network's {type(output).__name__}"
    if isinstance(output, Mapping):
        tensors = (name for name, value in output.items() if isinstance(value, Tensor))
        name = next((name for name in _READ if name in output), None) or next(tensors, None)
        return (None, "") if name is None else (output[name], f"{of} ['{name}'] is read")
    if name := next((name for name in _READ if hasattr(output, name)), ""):
        return getattr(output, name), f"{of} .{name} is read"
    if isinstance(output, tuple | list) and output:
        return output[0], f"{of} of {len(output)} the first element is read"
    return None, ""


def as_input(network: nn.Module, batch: Batch) -> Any:
    """The network's input in the form that tracing takes: a tensor, a tuple, or keywords."""
    args, kwargs = inputs_of(network, batch)
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args


def run_network(network: nn.Module, batch: Batch, task: Task) -> Any:
    """The network's outputs for a few examples, in evaluation mode and without gradients.

    Raises :class:`InputError` where the network does not run on them.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return task.forward(network, batch)
    except InputError:
        raise
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"{type(network).__name__} does not run on {in_words(batch)}: {first_line(error)}"
        ) from error
    finally:
        network.train(was_training)


def is_by_example(task: Task, outputs: Any, batch: Batch) -> bool:
    """Whether a batch's sums equal those of its first example plus those of the others.

    They do not where an example is compared with others of its batch, and where the outputs cannot
    be cut because they are not tensors ``[N, ...]``.
    """
    count = len(next(iter(batch.values())))
    leaves = pytree.tree_leaves(outputs)
    if not all(isinstance(v, Tensor) and v.ndim and len(v) == count for v in leaves):
        return False

    def sums(some: slice) -> dict[str, Tensor]:
        part = {name: value[some] for name, value in batch.items()}
        return task.sums(pytree.tree_map(lambda v: v[some], outputs), part)

    try:
        with torch.no_grad():
            whole, first, others = sums(slice(None)), sums(slice(1)), sums(slice(1, None))
            return all(
                torch.allclose(
                    first[name].double() + others[name].double(), value.double(), rtol=1e-3
                )
                for name, value in whole.items()
            )
    except Exception:  # a task of the user's own runs: anything can come out
        return False


def in_words(batch: Batch) -> str:
    """The shapes of one example, such as "input [3, 32, 32]"."""
    return ", ".join(
        f"{name} {list(value.shape[1:])}" for name, value in batch.items() if name not in TARGETS
    )
