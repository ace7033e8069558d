"""Records what a network does on one real batch: its ATen operations in the order they ran.

The batch is really run, so a forward may branch on values and take any number and kind of inputs.
Nothing is compiled, and ``torch.export``, whose import takes seconds, is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from trueoracle.networks.copying import copied
from trueoracle.networks.heads import free_heads
from trueoracle.networks.watching import Watch, limited
from trueoracle.tasks.base import read_part

__all__ = [
    "Example",
    "Graph",
    "Norming",
    "Recorder",
    "Ref",
    "Step",
    "answer",
    "compared",
    "converted",
    "no_fast_path",
    "plain_attention",
    "record",
    "without_padding",
]

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""A batch for a network: a tensor, a tuple of positional arguments, or keyword arguments by name.

Tensors have a leading axis N.
"""

_LONGEST_LIST = 64

OPAQUE = (nn.RNNBase,)
"""Modules recorded as one operation each: their insides depend on sizes that no cut can reach."""


@dataclass(frozen=True)
class Ref:
    """A tensor of a graph, by its number."""

    number: int


@dataclass(frozen=True)
class Step:
    """One operation of a run, with tensors as :class:`Ref`.

    - ``name`` is ATen's name without the overload (``convolution``), or an opaque module's class.
    - ``arguments`` are by the names of the operation's schema.
    - ``results`` has one entry per returned value, None for a value that is no tensor.
    - ``module`` is the path of the innermost module that was running.
    - ``effect`` says what the results are: ``new`` tensors, a ``view`` of the first argument, or
      that argument itself, which the operation has written (``write``).
    """

    name: str
    arguments: Mapping[str, Any]
    results: tuple[Ref | None, ...]
    module: str
    effect: Literal["new", "view", "write"] = "new"
    is_pointwise: bool = False
    is_opaque: bool = False

    @property
    def tensors(self) -> list[Ref]:
        """The tensors among the arguments."""
        leaves = pytree.tree_leaves(dict(self.arguments))
        return [one for one in leaves if isinstance(one, Ref)]


@dataclass(frozen=True)
class Norming:
    """A call of a norm: its input ``given``, by its number, and the steps within the call.

    A norm is a module with "norm" in the name of its class that maps one tensor to one of the same
    shape, and each of whose parameters varies along one axis at most.
    """

    module: str
    given: int
    steps: range


@dataclass
class Graph:
    """The operations of one run, whose tensors have numbers.

    - ``shapes`` are the tensors' shapes, by number.
    - ``named`` has the numbers of parameters and buffers; a shared one is under its first name.
    - ``inputs`` are the numbers of the batch's tensors, ``outputs`` those of the network's answer.
    - ``norms`` are the calls of norms.
    - ``constants`` are the values of short lists of whole numbers that the forward itself writes.
    """

    steps: list[Step] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    named: dict[str, int] = field(default_factory=dict)
    inputs: frozenset[int] = frozenset()
    outputs: tuple[int, ...] = ()
    norms: list[Norming] = field(default_factory=list)
    constants: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def live(self) -> list[int]:
        """The numbers of the steps that the answer depends on, in order.

        A mean that a forward only branches on, for example, is not among them.
        """
        return self._before(range(len(self.steps)), self.outputs, ())

    def unread(self) -> list[int]:
        """The numbers of the other steps that take parameters or buffers, or lead to such steps.

        These steps run, but the answer does not depend on them: layers after the one whose output
        is used, for example.
        """
        live = set(self.live())
        others = [at for at in range(len(self.steps)) if at not in live]
        return self._before(others, (), self.named.values())

    def _before(
        self, steps: Sequence[int], results: Iterable[int], taken: Iterable[int]
    ) -> list[int]:
        """Those of ``steps`` that lead to ``results``, or to a step that takes one of ``taken``."""
        base: dict[int, int] = {}
        for step in self.steps:
            if step.effect == "view":
                of = step.tensors[0].number
                for ref in step.results:
                    if ref is not None:
                        base[ref.number] = base.get(of, of)
        wanted = {base.get(number, number) for number in results}
        ends, found = set(taken), []
        for at in reversed(steps):
            step = self.steps[at]
            made = {base.get(ref.number, ref.number) for ref in step.results if ref is not None}
            given = {base.get(ref.number, ref.number) for ref in step.tensors}
            if wanted & made or ends & given:
                found.append(at)
                wanted |= given
        return found[::-1]


def answer(network: nn.Module, example: Example) -> Any:
    """A network's output for an example batch; for an output object, the part that a task reads.

    An output object has ``.logits``, for example; a plain dictionary is returned whole. Raises
    :class:`TimeoutError` where the run takes longer than ``watching.LIMIT`` allows.
    """
    with limited():
        if isinstance(example, Mapping):
            given = network(**example)
        else:
            given = network(example) if isinstance(example, Tensor) else network(*example)
    is_object = isinstance(given, Mapping) and hasattr(given, "logits")  # as of transformers
    if isinstance(given, Tensor | Mapping | tuple | list) and not is_object:
        return given
    part, _ = read_part(given)
    return given if part is None else part


def compared(output: Any, example: Example) -> list[Tensor]:
    """The tensors of an answer in which two networks have to agree.

    These are the part that a task reads, or all floating-point tensors where there is no such part.
    With such a part, caches are left out, which have an entry for each layer.
    """
    part, _ = read_part(output)
    leaves = pytree.tree_leaves(part if isinstance(part, Tensor) else output)
    found = [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]
    return without_padding(found, example)


def without_padding(answers: Sequence[Tensor], example: Example) -> list[Tensor]:
    """The same answers, zeroed where the example's ``attention_mask`` ``[N, T]`` marks padding.

    The outputs at padding are never read, and after a softmax over no token they may be NaN.
    """
    mask = example.get("attention_mask") if isinstance(example, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not bool(mask.any()):
        return list(answers)
    return [
        one.masked_fill((mask == 0).view(*mask.shape, *[1] * (one.ndim - 2)), 0)
        if one.shape[:2] == mask.shape
        else one
        for one in answers
    ]


def converted(example: Example, dtype: torch.dtype) -> Any:
    """An example batch with its floating-point tensors converted to another precision."""

    def convert(one: Any) -> Any:
        return one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one

    return pytree.tree_map(convert, example)


def record(network: nn.Module, example: Example) -> Graph:
    """Run a copy of ``network`` on an example in evaluation mode, and list what it does.

    Attention runs as :mod:`~trueoracle.networks.heads` writes it. Raises whatever the network's
    forward raises.
    """
    twin = copied(network).eval()
    free_heads(twin)
    recorder = Recorder(twin, example)
    recorder.run()
    return recorder.graph


class Recorder(Watch):
    """Runs a network without gradients and notes its operations.

    ``watch`` is called after each operation, with the operation's number and its result (of an
    opaque module, the first result).
    """

    def __init__(
        self,
        network: nn.Module,
        example: Example,
        watch: Callable[[int, Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self._network, self._example, self._watch = network, example, watch
        self._numbers = WeakTensorKeyDictionary()
        self._running: list[str] = [""]
        self._began: list[int] = []
        self._within: str | None = None
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            self.graph.named[name] = self._ref(value).number
        given = [one for one in pytree.tree_leaves(example) if isinstance(one, Tensor)]
        self.graph.inputs = frozenset(self._ref(one).number for one in given)

    def run(self) -> Any:
        """Run the network once and return its answer."""
        with torch.no_grad(), plain_attention(), self._entering(), self:
            result = answer(self._network, self._example)
        leaves = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        self.graph.outputs = tuple(self._ref(one).number for one in leaves)
        return result

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry out one operation and note it."""
        if self._within is not None:
            return func(*args, **kwargs)
        arguments = self._refs(_by_name(func, args, kwargs))
        result = func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default and _is_list(result):
            self.graph.constants[self._ref(result).number] = tuple(result.tolist())
        space, _, name = func._schema.name.partition("::")
        self._note(
            Step(
                name if space == "aten" else f"{space}.{name}",
                arguments,
                self._results(result),
                self._running[-1],
                _effect(func),
                is_pointwise=torch.Tag.pointwise in func.tags,
            ),
            result,
        )
        return result

    def _note(self, step: Step, result: Any) -> None:
        if self._watch is not None:
            self._watch(len(self.graph.steps), result)
        self.graph.steps.append(step)

    def _ref(self, tensor: Tensor) -> Ref:
        number = self._numbers.get(tensor)
        if number is None:
            number = len(self.graph.shapes)
            self._numbers[tensor] = number
            self.graph.shapes.append(tuple(tensor.shape))
        return Ref(number)

    def _refs(self, values: Any) -> Any:
        return pytree.tree_map(
            lambda one: self._ref(one) if isinstance(one, Tensor) else one, values
        )

    def _results(self, result: Any) -> tuple[Ref | None, ...]:
        leaves = result if isinstance(result, tuple | list) else (result,)
        return tuple(self._ref(one) if isinstance(one, Tensor) else None for one in leaves)

    @contextmanager
    def _entering(self) -> Iterator[None]:
        """Within the block, hooks on all modules report when a module starts and stops running."""
        handles = []
        for name, module in self._network.named_modules():
            handles += [
                module.register_forward_pre_hook(_Enter(self, name)),
                # Placed before the user's own hooks, which are no part of the layer.
                module.register_forward_hook(
                    _Leave(self, name), prepend=True, with_kwargs=True, always_call=True
                ),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, name: str) -> None:
        """Note that a module begins to run."""
        self._running.append(name)
        self._began.append(len(self.graph.steps))
        if isinstance(module, OPAQUE) and self._within is None:
            self._within = name

    def leave(self, module: nn.Module, name: str, given: Any, result: Any) -> None:
        """Note that a module has run."""
        self._running.pop()
        steps = range(self._began.pop(), len(self.graph.steps))
        if self._within is None and (tensor := _normed(module, given, result)) is not None:
            self.graph.norms.append(Norming(name, self._ref(tensor).number, steps))
        if self._within == name and isinstance(module, OPAQUE):
            self._within = None
            own = [self._ref(value) for value in module.parameters()]
            leaves = _unpacked(result)
            step = Step(
                type(module).__name__,
                {"given": self._refs(_unpacked(given)), "own": own},
                tuple(self._ref(one) if isinstance(one, Tensor) else None for one in leaves),
                name,
                is_opaque=True,
            )
            self._note(step, leaves[0] if leaves else None)


class _Enter:
    """A forward pre-hook."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._recorder.enter(module, self._name)


class _Leave:
    """A forward hook."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._recorder.leave(module, self._name, (args, kwargs), result)


def _unpacked(values: Any) -> list[Any]:
    """The leaves of nested values in one list; a packed sequence gives its data tensor."""
    leaves = pytree.tree_leaves(values, is_leaf=lambda one: isinstance(one, PackedSequence))
    return [one.data if isinstance(one, PackedSequence) else one for one in leaves]


def _normed(module: nn.Module, given: Any, result: Any) -> Tensor | None:
    """The tensor that a norm takes; None where the module is no norm."""
    tensors = [one for one in pytree.tree_leaves(given) if isinstance(one, Tensor)]
    is_one = len(tensors) == 1 and isinstance(result, Tensor) and result.shape == tensors[0].shape
    if not is_one or "norm" not in type(module).__name__.lower():
        return None
    is_plain = all(sum(n > 1 for n in value.shape) < 2 for value in module.parameters())
    return tensors[0] if is_plain else None


def _is_list(value: Tensor) -> bool:
    """Whether a tensor is a short list of whole numbers, as an index may be."""
    return value.dtype == torch.int64 and value.ndim == 1 and len(value) <= _LONGEST_LIST


def _effect(func: Any) -> Literal["new", "view", "write"]:
    aliases = [one.alias_info for one in func._schema.returns if one.alias_info is not None]
    if not aliases:
        return "new"
    return "write" if any(one.is_write for one in aliases) else "view"


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of an operation by their names, defaults included."""
    found = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            found[argument.name] = args[position]
        elif argument.name in kwargs:
            found[argument.name] = kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within the block, attention is computed by products of tensors and not by fused kernels."""
    with no_fast_path(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Within the block, torch's transformer layers compute the same way in both modes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
