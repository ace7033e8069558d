"""Finds the whole layers of a network that can be taken out, and takes them out.

A layer is an item of a ``ModuleList`` or ``Sequential`` (here called a stack) that adds something
to a residual stream: a transformer's block, a residual block. Taking a layer out gives the network
in which the layer adds zero, and so is the identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import Example, Graph, Recorder, answer, compared
from trueoracle.pruning.parity import check_network

__all__ = [
    "Gone",
    "Stack",
    "StackMap",
    "cut_layers",
    "difference_without",
    "find_stacks",
    "stream_of_layer",
    "with_stream",
    "without_layers",
]

_TOLERANCE = 1e-5
"""Relative to the largest output: nothing but the order of a few sums can differ."""

_COUNTS = re.compile(r"(num_(hidden_)?|n_|(en|de)coder_)?layers?|depth|num_blocks")
"""The names that configurations and modules give to the number of layers."""

_NUMBERS = re.compile(r"(layer|block)_?(idx|id|index)")
"""The names that a layer gives to its own number."""

_INDEX_LISTS = ("cross_attention_layers", "full_attn_idxs", "mlp_only_layers", "sparse_layers")
"""Lists in configurations that hold layers' numbers; other lists have an entry for each layer."""


@dataclass(frozen=True)
class Stack:
    """Layers of one list that can be taken out.

    ``name`` is the list's path, ``layers`` are the paths of those layers, and ``places`` are their
    positions among the list's ``length`` items. ``values`` is how many values a layer returns, or
    None where it returns a tensor. Where the network relies on the positions of the items, so that
    none can leave the list, an identity replaces each removed layer (``in_place``).
    """

    name: str
    layers: tuple[str, ...]
    places: tuple[int, ...]
    length: int
    values: int | None = None
    in_place: bool = False


@dataclass(frozen=True)
class StackMap:
    """The stacks of a network by name, and why the other items of its lists cannot be removed."""

    stacks: dict[str, Stack] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def stream_of_layer(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The stream that a layer is given: the first tensor among its arguments."""
    return next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))


def with_stream(output: Any, stream: Tensor) -> Any:
    """A layer's output with the stream replaced; its other values stay."""
    if isinstance(output, Tensor):
        return stream
    return type(output)((stream, *output[1:]))


class _Passing(nn.Module):
    """Stands in for a layer that was taken out: the stream passes, and nothing is added."""

    def __init__(self, values: int | None) -> None:
        super().__init__()
        self.values = values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        stream = stream_of_layer(args, kwargs)
        return stream if self.values is None else (stream, *[None] * (self.values - 1))


@dataclass(frozen=True)
class _Call:
    """What a layer was given, what it returned, and the operations in between."""

    given: tuple[Sequence[Any], Mapping[str, Any]]
    result: Any
    steps: range


class _Calls(Recorder):
    """A recorder that also notes the calls of some modules, with tensors by their numbers."""

    def __init__(self, network: nn.Module, example: Example, names: Sequence[str]) -> None:
        super().__init__(network, example)
        self.calls: dict[str, list[_Call]] = {name: [] for name in names}

    def leave(self, module: nn.Module, name: str, given: Any, result: Any) -> None:
        begun = self._began[-1]
        super().leave(module, name, given, result)
        if name in self.calls:
            steps = range(begun, len(self.graph.steps))
            self.calls[name].append(_Call(given, result, steps))

    def number(self, tensor: Tensor) -> int:
        """A tensor's number in the graph."""
        return self._ref(tensor).number


def find_stacks(network: nn.Module, example: Example) -> StackMap:
    """Find the layers of ``network`` that can be taken out.

    ``example`` is a batch for the network. Each stack found has been tried on the batch: taking out
    every second layer equals bypassing those layers. Raises :class:`InputError` where the network
    does not run.
    """
    check_network(network, example)
    found = _offered(network, example)
    for name, stack in list(found.stacks.items()):
        ways = (stack, replace(stack, in_place=True))
        reasons = [_failure(network, one, example) for one in ways]
        fitting = [one for one, reason in zip(ways, reasons, strict=True) if not reason]
        if fitting:
            found.stacks[name] = fitting[0]
        else:
            del found.stacks[name]
            found.refused.update(dict.fromkeys(stack.layers, reasons[-1]))
    return found


def _offered(network: nn.Module, example: Example) -> StackMap:
    """The stacks that one run of the network shows, not tried yet."""
    twin = copied(network).eval()
    lists = {
        name: list(module.named_children())
        for name, module in twin.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    paths = {f"{name}.{key}".lstrip("."): name for name, own in lists.items() for key, _ in own}
    recorder = _Calls(twin, example, list(paths))
    try:
        recorder.run()
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"cannot follow the operations of {type(network).__name__}: {first_line(error)}"
        ) from error
    stacks, refused = {}, {}
    for name, own in lists.items():
        fine = []
        for place, (key, _) in enumerate(own):
            path = f"{name}.{key}".lstrip(".")
            if reason := _why_needed(recorder, path):
                refused[path] = reason
            else:
                fine.append((path, place))
        if len(fine) > 1:  # with one layer there would be nothing to choose
            layers, places = zip(*fine, strict=True)
            given = recorder.calls[layers[0]][0].result
            values = None if isinstance(given, Tensor) else len(given)
            stacks[name] = Stack(name, layers, places, len(own), values)
        else:
            refused |= {path: "it is the only such layer of its list" for path, _ in fine}
    return StackMap(stacks, refused)


def _why_needed(recorder: _Calls, path: str) -> str:
    """Why an item of a list cannot be taken out; empty where its run shows no reason."""
    calls = recorder.calls[path]
    if len(calls) != 1:
        return f"it is used {len(calls)} times" if calls else "it is not used"
    (args, kwargs), result = calls[0].given, calls[0].result
    first = result[0] if isinstance(result, tuple | list) and result else result
    given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
    if given is None or not isinstance(first, Tensor):
        return "it does not take a tensor and give one"
    if given.shape != first.shape:
        return f"it makes {list(first.shape[1:])} of {list(given.shape[1:])}"
    start, end = recorder.number(given), recorder.number(first)
    if not _is_residual(recorder.graph, calls[0].steps, start, end):
        return "no sum carries what it is given past it"
    return ""


_CARRYING = {
    *("native_layer_norm", "native_batch_norm", "cudnn_batch_norm", "native_dropout", "clone"),
    *("native_group_norm", "_fused_rms_norm", "view", "_unsafe_view", "reshape", "detach"),
    *("permute", "transpose", "unsqueeze", "squeeze", "_to_copy", "alias", "contiguous", "t"),
}
"""Operations, beside pointwise ones, that a stream may pass and still be the same stream."""


def _is_residual(graph: Graph, steps: range, start: int, end: int) -> bool:
    """Whether a layer's input is carried to its output and something is added to it on the way.

    Only sums with values computed from that same input, pointwise operations and norms may lie in
    between.
    """
    made = {start}  # values computed from the input in whatever way
    carried = {start: False}  # the stream, and whether something has been added to it
    for index in steps:
        step = graph.steps[index]
        numbers = [ref.number for ref in step.tensors]
        streams = [number for number in numbers if number in carried]
        is_sum = step.name in ("add", "add_") and len(made.intersection(numbers)) > 1
        passes = bool(streams) and (step.is_pointwise or step.name in _CARRYING)
        for ref in step.results[:1]:
            if ref is None:
                continue
            added = is_sum or any(carried[number] for number in streams)
            if made.intersection(numbers):
                made.add(ref.number)
            if passes:
                carried[ref.number] = added
            elif step.effect == "write":
                carried.pop(ref.number, None)
    return carried.get(end, False)


Gone = Mapping[str, tuple[Stack, Sequence[int]]]
"""For each stack by name: the stack, and the indices of its ``layers`` that are taken out."""


def _failure(network: nn.Module, stack: Stack, example: Example) -> str:
    """What goes wrong when the even or the odd layers of a stack are taken out; empty: nothing."""
    halves = (range(start, len(stack.layers), 2) for start in (0, 1))
    reasons = (difference_without(network, {stack.name: (stack, half)}, example) for half in halves)
    return next(filter(None, reasons), "")


def difference_without(network: nn.Module, gone: Gone, example: Example) -> str:
    """How taking layers out differs from bypassing them; empty where it does not differ."""
    held = [*network.parameters(), *network.buffers()]  # which nothing here changes
    twin = copied(network, held).eval()
    try:
        with torch.no_grad():
            found = compared(answer(cut_layers(twin, gone, held), example), example)
            with without_layers(twin, gone):
                expected = compared(answer(twin, example), example)
    except Exception as error:  # the user's forward runs: anything can come out
        return f"without it the network does not run: {first_line(error)}"
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not torch.allclose(
            one, other, rtol=0, atol=_TOLERANCE * float(other.abs().max()), equal_nan=True
        ):
            return "without it the network is another one than with it passed by"
    return ""


@contextmanager
def without_layers(network: nn.Module, gone: Gone) -> Iterator[nn.Module]:
    """Within the block, the stream bypasses the layers that are ``gone``: they add nothing."""

    def passed(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return with_stream(output, stream_of_layer(args, kwargs))

    paths = [stack.layers[index] for stack, which in gone.values() for index in which]
    handles = [
        network.get_submodule(path).register_forward_hook(passed, with_kwargs=True)
        for path in paths
    ]
    try:
        yield network
    finally:
        for handle in handles:
            handle.remove()


def cut_layers(network: nn.Module, gone: Gone, sharing: Sequence[Tensor] = ()) -> nn.Module:
    """A copy of ``network`` without the layers that are ``gone``.

    The layers that stay move up, and their own numbers (``layer_idx``) are adapted. So are counts
    of layers (``num_hidden_layers``) in configurations and in the module that holds the stack, and
    lists of layers (``layer_types``) in configurations. The tensors in ``sharing`` are not copied.
    """
    made = copied(network, sharing)
    for stack, which in gone.values():
        places = {stack.places[index] for index in which}
        if stack.in_place:
            _pass(made.get_submodule(stack.name), places, stack.values)
        else:
            kept = [place for place in range(stack.length) if place not in places]
            _fit_configurations(made, stack, kept)
            _take_out(made.get_submodule(stack.name), places)
    return made


def _pass(items: nn.Module, places: set[int], values: int | None) -> None:
    """Replace some items of a list by identities."""
    for place, key in enumerate(list(items._modules)):
        if place in places:
            items._modules[key] = _Passing(values)


def _take_out(items: nn.Module, places: set[int]) -> None:
    """Take some items out of a list and renumber those that stay, where they are numbered."""
    before = list(items.named_children())
    is_numbered = all(key.isdecimal() for key, _ in before)
    kept = [
        (key, module, place) for place, (key, module) in enumerate(before) if place not in places
    ]
    items._modules.clear()
    for new, (key, module, old) in enumerate(kept):
        items._modules[str(new) if is_numbered else key] = module
        for part in module.modules():
            for name, value in vars(part).items():
                if type(value) is int and value == old and _NUMBERS.fullmatch(name):
                    setattr(part, name, new)


def _fit_configurations(network: nn.Module, stack: Stack, kept: Sequence[int]) -> None:
    """Set how many layers are left in configurations and in the module that holds the stack."""
    path = stack.name.rpartition(".")[0]
    _count_layers(network.get_submodule(path), stack, kept, lists=False)
    while True:  # the configuration of the stack, and not of another part of the network
        config = getattr(network.get_submodule(path), "config", None)
        if config is not None and any(_is_count(n, v, stack) for n, v in vars(config).items()):
            break
        if not path:
            return
        path = path.rpartition(".")[0]
    # Other modules may hold copies of this configuration: a text model has its own, and the
    # configuration of the whole network contains the same one.
    said = config.to_dict()
    for one in _configurations(network):
        if type(one) is type(config) and one.to_dict() == said:
            _count_layers(one, stack, kept, lists=True)


def _is_count(name: str, value: object, stack: Stack) -> bool:
    """Whether a number is this stack's length, not that of the other half (encoder, decoder)."""
    other = {"encoder": "decoder", "decoder": "encoder"}
    about_other = any(half in stack.name and name.startswith(other[half]) for half in other)
    return bool(
        type(value) is int and value == stack.length and _COUNTS.fullmatch(name) and not about_other
    )


def _count_layers(holder: Any, stack: Stack, kept: Sequence[int], *, lists: bool) -> None:
    for name, value in list(vars(holder).items()):
        if _is_count(name, value, stack):
            setattr(holder, name, len(kept))
        elif not lists or not isinstance(value, list | tuple) or "layer" not in name:
            continue
        elif name in _INDEX_LISTS:
            moved = [kept.index(place) for place in value if place in kept]
            setattr(holder, name, type(value)(moved))
        elif len(value) == stack.length:
            setattr(holder, name, type(value)(value[place] for place in kept))


def _configurations(network: nn.Module) -> list[Any]:
    """All configurations that modules hold, and those nested in them, each once."""
    found: dict[int, Any] = {}
    waiting = [getattr(module, "config", None) for module in network.modules()]
    while waiting:
        config = waiting.pop()
        if config is None or id(config) in found or not hasattr(config, "to_dict"):
            continue
        found[id(config)] = config
        waiting += [value for value in vars(config).values() if hasattr(value, "to_dict")]
    return list(found.values())
