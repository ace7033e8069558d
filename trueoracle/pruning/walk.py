"""Finding the groups of a network: what must go with each layer's filters.

The traced network (``torch.fx``) is walked once, operation by operation, noting which filters the
channels of every tensor belong to. Where tensors meet in a sum, their filters become one group;
behind a concatenation they lie at an offset; what reads a tensor with weights is a consumer. What
the walk does not know makes the filters unprunable, with the reason in words; ``check_parity`` then
tries the surgery. A network that cannot be traced is left to Torch-Pruning's dependency graph
(``dependencies.py``).
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from trueoracle.errors import InputError, first_line
from trueoracle.networks.attention import Attention
from trueoracle.networks.tracing import trace
from trueoracle.pruning.dependencies import groups_by_dependency
from trueoracle.pruning.groups import Group, GroupMap, Part
from trueoracle.pruning.parity import check_network, failures

__all__ = ["filter_places", "find_groups", "follow_groups"]


# Modules and calls that act on each channel by itself, or drop entries: removal passes through.
_CHANNELWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Identity),
    *(nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
    *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d),
)
_CHANNELWISE_CALLS = {
    *(torch.relu, torch.sigmoid, torch.tanh, torch.max_pool2d, torch.clamp),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu),
    *(functional.relu_, functional.silu, functional.mish, functional.sigmoid, functional.tanh),
    *(functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.softplus),
    *(functional.dropout, functional.dropout2d, functional.interpolate),
    *(functional.max_pool2d, functional.avg_pool2d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
    *(operator.neg, operator.pow, torch.pow, torch.abs, torch.exp, torch.sqrt, torch.square),
    *("relu", "relu_", "sigmoid", "tanh", "contiguous", "clamp", "clamp_", "expand", "pow"),
    *("abs", "exp", "sqrt", "square", "clone", "float", "neg"),
}
_CHANNELWISE_NAMES = {"stochastic_depth"}  # of torchvision, which need not be installed
_ELEMENTWISE = {
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
    *(operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    *(operator.mul, operator.imul, torch.mul, "mul", "mul_"),
    *(operator.truediv, operator.itruediv, torch.div, "div", "div_"),
}
_REDUCTIONS = {"mean", torch.mean, "sum", torch.sum, "amax", torch.amax, "amin", torch.amin}
_ASKS = {"device", "dtype", "ndim", "requires_grad", "dim", "ndimension", "is_floating_point"}
_NAMES = {operator.iadd: "add", operator.isub: "sub", operator.imul: "mul"}
_RESHAPES = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)
_WEIGHTED = (nn.Conv2d, nn.Linear)


def find_groups(network: nn.Module, example: Tensor) -> GroupMap:
    """Find the prunable groups of ``network``; ``example`` is a batch ``[N, C, H, W]`` for it.

    Each has been tried: removing its filters equals zeroing them. Raises :class:`InputError` where
    the network cannot be run on the example or followed, gives no finite numbers, or is another one
    in training than in evaluation mode.
    """
    found = follow_groups(network, example)
    failed = failures(network, list(found.groups.values()), example)
    for name, reason in failed.items():
        found.refuse(found.groups.pop(name).layers, reason)
    return found


def follow_groups(network: nn.Module, example: Tensor) -> GroupMap:
    """The groups as the network's operations show them, none of them tried.

    For names and numbers only; see :func:`find_groups`, which raises the same.
    """
    check_network(network, example)  # first, since the interpreter prints a traceback of its own
    modes = [(module, module.training) for module in network.modules()]
    try:
        traced = [trace(network.train(mode)) for mode in (True, False)]
        # In evaluation mode, in which batch norms stay as they are.
        with torch.no_grad():
            _Shapes(traced[1]).run(example)
    except Exception as error:  # the user's forward runs: anything can come out
        return _untraced(network, example, error)
    finally:
        _restore(modes)
    steps = [[(node.op, node.target) for node in one.graph.nodes] for one in traced]
    if steps[0] != steps[1]:
        raise InputError(
            f"{type(network).__name__} does other things in training than in evaluation mode: "
            "it cannot be pruned as one network"
        )
    return _Walk(network, traced[1].graph).groups()


def filter_places(
    network: nn.Module, graph: fx.GraphModule, example: Tensor
) -> dict[fx.Node, dict[str, Part]]:
    """Where the filters of each group (by name) lie in what the operations of a trace put out.

    A part's ``module`` is the operation's name, its ``axis`` that of the tensor.

    ``graph`` is the trace of ``network``, in the mode in which both are, and ``example`` a batch of
    images for it, ``[N, C, H, W]``. Raises what running the network raises.
    """
    with torch.no_grad():
        _Shapes(graph).run(example)
    walk = _Walk(network, graph.graph)
    walk.groups()
    return walk.places()


def _restore(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _untraced(network: nn.Module, example: Tensor, why: Exception) -> GroupMap:
    """The groups of a network whose forward branches on values, or else cannot be traced."""
    try:
        return groups_by_dependency(network, example)
    except InputError as error:
        raise InputError(
            f"cannot trace {type(network).__name__}: {first_line(why)} "
            f"(its forward branches on values, say); {error}"
        ) from why


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor on its way; torch's own pass imports a computer algebra."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


class _CannotPruneError(Exception):
    """Why filters cannot be removed."""


@dataclass(frozen=True)
class _Block:
    """Neighbouring channels that belong to the filters of one source; None: to nobody's."""

    source: int | None
    filters: int
    spread: int = 1

    @property
    def channels(self) -> int:
        return self.filters * self.spread


@dataclass(frozen=True)
class _Layout:
    """Whose filters the channels of a tensor are, along its ``axis``."""

    axis: int
    blocks: tuple[_Block, ...]

    @property
    def channels(self) -> int:
        return sum(block.channels for block in self.blocks)

    @property
    def sources(self) -> list[int]:
        return [block.source for block in self.blocks if block.source is not None]

    def parts(self, module: str, axis: int | None = None) -> list[tuple[int, Part]]:
        """Where each source's filters lie in a module that reads all the channels."""
        found, offset = [], 0
        for block in self.blocks:
            if block.source is not None:
                found.append((block.source, Part(module, block.spread, offset, axis)))
            offset += block.channels
        return found


@dataclass
class _Source:
    """What is known so far of filters that hang together."""

    filters: int
    layers: list[Part]
    norms: list[Part] = field(default_factory=list)
    consumers: list[Part] = field(default_factory=list)
    reason: str = ""

    def join(self, other: _Source) -> None:
        self.layers += other.layers
        self.norms += other.norms
        self.consumers += other.consumers
        self.reason = self.reason or other.reason


class _Walk:
    """Follows the filters of all layers through the traced operations of one network."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.network, self.graph = network, graph
        self.modules = dict(network.named_modules())
        self._calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        direct = (str(node.target) for node in graph.nodes if node.op == "get_attr")
        self._read_directly = Counter(direct)
        self._owners_read = {name.rpartition(".")[0] for name in self._read_directly}
        owners: dict[int, set[str]] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
        self._tied = set().union(*(names for names in owners.values() if len(names) > 1))
        self._sources: list[_Source] = []
        self._joined: list[int] = []  # union-find: the source that one has become part of
        self._layouts: dict[fx.Node, _Layout] = {}
        self._loose: dict[fx.Node, str] = {}  # parameters that are no layer's, until they meet one

    def groups(self) -> GroupMap:
        """Walk through all operations and sort what was found."""
        for node in self.graph.nodes:
            self._visit(node)
        result = GroupMap()
        roots = [source for i, source in enumerate(self._sources) if self._joined[i] == i]
        known = {part.module for s in roots for part in (*s.layers, *s.norms, *s.consumers)}
        for source in roots:
            reason = source.reason or self._unfit(source)
            if reason:
                result.refuse(source.layers, reason)
                continue
            parts = map(tuple, (source.layers, source.norms, source.consumers))
            found = Group(source.layers[0].module, source.filters, *parts)
            result.groups[found.name] = found
        for name, module in self.modules.items():
            if name not in known and _has_filters(module) and (reason := self._unknown(name)):
                result.refused[name] = reason
        return result

    def _unknown(self, name: str) -> str:
        """Why a module with filters has not been met on the way; empty: its parameters were."""
        module = self.modules[name]
        is_read = name in self._owners_read
        if not isinstance(module, _WEIGHTED):
            return "" if is_read else f"a {type(module).__name__} is not known"
        if is_read and not type(module).__module__.startswith("torch."):
            return f"a {type(module).__name__} has a forward of its own, which is not followed"
        return "its weights are read outside of it" if is_read else "it is not called by itself"

    def places(self) -> dict[fx.Node, dict[str, Part]]:
        """By operation and the name of a group, where its filters lie in what is put out."""
        found: dict[fx.Node, dict[str, Part]] = {}
        for node, layout in self._layouts.items():
            for source, part in layout.parts(node.name, layout.axis):
                name = self._sources[self._root(source)].layers[0].module
                found.setdefault(node, {})[name] = part
        return found

    def _unfit(self, source: _Source) -> str:
        """Why filters that were followed to all their readers still cannot be pruned."""
        if not source.consumers:
            return "no layer with weights reads its output"
        readers = [part.module for part in (*source.norms, *source.consumers)]
        if len(set(readers)) < len(readers):
            return "one layer reads its output more than once"
        return ""

    # Sources

    def _root(self, source: int) -> int:
        while self._joined[source] != source:
            source = self._joined[source]
        return source

    def _new(self, filters: int, layer: str, reason: str = "") -> int:
        self._sources.append(_Source(filters, [Part(layer)], reason=reason))
        self._joined.append(len(self._joined))
        return len(self._sources) - 1

    def _join(self, first: int, second: int) -> None:
        a, b = sorted((self._root(first), self._root(second)))
        if a != b:
            self._sources[a].join(self._sources[b])
            self._joined[b] = a

    def _refuse(self, layout: _Layout, reason: str) -> None:
        for source in layout.sources:
            root = self._sources[self._root(source)]
            root.reason = root.reason or reason

    def _read(self, layout: _Layout, module: str, *, keeps: bool, axis: int | None = None) -> None:
        """A module has an entry for each channel: and ``keeps`` them, or consumes them."""
        for source, part in layout.parts(module, axis):
            root = self._sources[self._root(source)]
            (root.norms if keeps else root.consumers).append(part)

    # Operations

    def _visit(self, node: fx.Node) -> None:
        given = [self._layouts[n] for n in node.all_input_nodes if n in self._layouts]
        try:
            try:
                after = self._after(node)
            except (TypeError, ValueError, KeyError, IndexError) as error:
                # Arguments that come out of other operations, or in a form that no rule expects.
                raise _CannotPruneError(
                    f"its output meets {_name(node)!r}, in a form that cannot be followed"
                ) from error
            if after is not None:
                shape = _shape(node)
                if len(shape) <= after.axis or shape[after.axis] != after.channels:
                    raise _CannotPruneError(
                        f"its output becomes {shape}, where no axis is its filters'"
                    )
                self._layouts[node] = after
        except _CannotPruneError as reason:
            for layout in given:
                self._refuse(layout, str(reason))

    def _after(self, node: fx.Node) -> _Layout | None:
        """Whose filters the channels of an operation's answer are; None: nobody's."""
        if node.op == "get_attr":
            if _is_parameter(self.network, str(node.target)):
                self._loose[node] = str(node.target)
            return None
        if node.op == "output":
            for source in (n for n in node.all_input_nodes if n in self._layouts):
                self._refuse(self._layouts[source], "its output is the network's output")
            return None
        if node.op == "call_module":
            return self._after_module(node)
        if node.op not in ("call_function", "call_method"):
            return None
        if node.target in _ELEMENTWISE:
            return self._met(node, _operands(node), _name(node))
        if node.target in (torch.cat, torch.concat):
            return self._concatenated(node)
        if node.target == "expand" and node.args[0] in self._loose:
            self._loose[node] = self._loose[cast(fx.Node, node.args[0])]
        data = [n for n in node.all_input_nodes if n in self._layouts]
        if not data:
            return None
        if len(data) > 1 or data[0] is not _first(node):
            raise _CannotPruneError(f"its output meets {_name(node)!r}")
        return self._after_call(node, data[0])

    def _after_call(self, node: fx.Node, before: fx.Node) -> _Layout | None:
        layout = self._layouts[before]
        if node.target in _CHANNELWISE_CALLS or _name(node) in _CHANNELWISE_NAMES:
            return layout
        for rule in (_reshaped, _reduced, _moved, _taken, _padded):
            after = rule(node, before, layout)
            if after is not None:
                return after
        if _reads_no_channels(node, layout.axis, len(_shape(before))):
            return None
        raise _CannotPruneError(f"its output meets {_name(node)!r}")

    def _after_module(self, node: fx.Node) -> _Layout | None:
        name = str(node.target)
        module = self.modules[name]
        data = [n for n in node.all_input_nodes if n in self._layouts]
        layout = self._layouts[data[0]] if len(data) == 1 else None
        if isinstance(module, _WEIGHTED):
            return self._after_weighted(node, name, module, layout)
        if isinstance(module, Attention):
            return self._after_attention(node, name, module, layout)
        if layout is None:
            if data:
                raise _CannotPruneError(f"its output meets {type(module).__name__} ({name})")
            return None
        if module._forward_hooks or module._forward_pre_hooks:
            raise _CannotPruneError(f"its output meets {name}, which has hooks")
        if isinstance(module, nn.Flatten):
            return _flattened(node, data[0], layout, module.start_dim, module.end_dim)
        if self._is_norm(module, layout, len(_shape(node))):
            self._check_alone(name, f"its reader {name}")
            self._read(layout, name, keeps=True)
            return layout
        if isinstance(module, _CHANNELWISE_MODULES) or _is_one_prelu(module):
            return layout
        raise _CannotPruneError(f"its output meets {type(module).__name__} ({name})")

    def _is_norm(self, module: nn.Module, layout: _Layout, axes: int) -> bool:
        """Whether a module has one entry of its own for each channel, and mixes none of them.

        (A layer norm does mix them: masking it means to norm over those that are kept.)
        """
        if isinstance(module, nn.LayerNorm):
            return layout.axis == axes - 1 and len(module.normalized_shape) == 1
        if isinstance(module, nn.PReLU):
            return layout.axis == 1 and module.num_parameters == layout.channels > 1
        return isinstance(module, _NORMS) and layout.axis == 1

    def _after_weighted(
        self, node: fx.Node, name: str, module: nn.Conv2d | nn.Linear, layout: _Layout | None
    ) -> _Layout | None:
        shape = _shape(node)
        is_conv = isinstance(module, nn.Conv2d)
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return self._after_grouped(name, module, layout)
        axis = 1 if is_conv else len(shape) - 1
        if layout is not None:
            try:
                self._check_alone(name, f"its reader {name}")
                if layout.axis != axis or (is_conv and len(shape) != 4):
                    given = _shape(node.all_input_nodes[0])
                    what = "which takes images" if is_conv else "without being flattened"
                    raise _CannotPruneError(f"its output {given} meets {name} {what}")
                self._read(layout, name, keeps=False)
            except _CannotPruneError as reason:
                self._refuse(layout, str(reason))
        filters = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        return _Layout(axis, (_Block(self._new(filters, name, self._own(name)), filters),))

    def _after_grouped(
        self, name: str, module: nn.Conv2d, layout: _Layout | None
    ) -> _Layout | None:
        """A depthwise convolution keeps channels apart, as a norm does; others mix some of them."""
        is_depthwise = module.groups == module.in_channels == module.out_channels
        if layout is not None and is_depthwise and layout.axis == 1:
            self._check_alone(name, f"its reader {name}")
            self._read(layout, name, keeps=True)
            return layout
        reason = "it is a grouped convolution"
        if layout is not None:
            self._refuse(layout, f"its output meets a grouped convolution ({name})")
        filters = module.out_channels
        return _Layout(1, (_Block(self._new(filters, name, reason), filters),))

    def _after_attention(
        self, node: fx.Node, name: str, module: Attention, layout: _Layout | None
    ) -> _Layout | None:
        width = module.out_proj.out_features
        if layout is not None:
            try:
                self._check_alone(name, f"its reader {name}")
                if layout.axis != 2:
                    raise _CannotPruneError(f"its output meets {name}, which takes tokens")
                self._read(layout, name, keeps=False)
            except _CannotPruneError as reason:
                self._refuse(layout, str(reason))
        heads = self._new(module.heads, name, self._own(name))
        inner = f"{name}.out_proj"
        self._sources[heads].consumers.append(Part(inner, module.head_dim))
        return _Layout(2, (_Block(self._new(width, inner, self._own(name)), width),))

    def _own(self, name: str) -> str:
        """Why a layer's own filters cannot be removed whoever reads them; empty: they can."""
        try:
            self._check_alone(name, "it")
        except _CannotPruneError as reason:
            return str(reason)
        return ""

    def _check_alone(self, name: str, it: str) -> None:
        """Refuse a module whose weights anything but its own single call depends on."""
        module = self.modules[name]
        if self._calls[name] > 1:
            raise _CannotPruneError(f"{it} is used more than once")
        if name in self._owners_read:
            raise _CannotPruneError(f"{it} has weights that are read outside of it")
        if name in self._tied or f"{name}.out_proj" in self._tied:
            raise _CannotPruneError(f"{it} shares weights with another layer")
        if isinstance(module, _WEIGHTED) and "weight" not in dict(module.named_parameters()):
            raise _CannotPruneError(f"{it} computes its weights from others")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _CannotPruneError(f"{it} has hooks")

    def _met(self, node: fx.Node, operands: Sequence[Any], name: str) -> _Layout | None:
        """Tensors that meet entry by entry: their filters become one group.

        Channels are matched from the last axis, as broadcasting does.
        """
        with_filters = [n for n in operands if n in self._layouts]
        if not with_filters:
            return None
        axes = {self._layouts[n].axis - len(_shape(n)) for n in with_filters}
        if len(axes) > 1:
            raise _CannotPruneError(f"its output meets {name!r} of others along another axis")
        (axis,) = axes
        with_filters = self._without_gates(with_filters, name)
        first = self._layouts[with_filters[0]]
        for other in (self._layouts[n] for n in with_filters[1:]):
            if [(b.filters, b.spread) for b in other.blocks] != [
                (b.filters, b.spread) for b in first.blocks
            ]:
                raise _CannotPruneError(f"its output meets {name!r} of other channels")
            for mine, theirs in zip(first.blocks, other.blocks, strict=True):
                if mine.source is None or theirs.source is None:
                    if mine != theirs:
                        raise _CannotPruneError(f"its output meets {name!r} of nobody's channels")
                else:
                    self._join(mine.source, theirs.source)
        for operand in operands:
            if isinstance(operand, fx.Node) and operand not in self._layouts:
                self._adopt(operand, axis, first, name)
        return _Layout(len(_shape(node)) + axis, first.blocks)

    def _without_gates(self, tensors: list[Any], name: str) -> list[Any]:
        """Leave out, and refuse, single channels that are spread over many: gates of positions."""
        channels = [self._layouts[n].channels for n in tensors]
        if max(channels) == 1:
            return tensors
        for gate in (n for n, count in zip(tensors, channels, strict=True) if count == 1):
            self._refuse(self._layouts[gate], f"its output meets {name!r} of many channels")
        return [n for n, count in zip(tensors, channels, strict=True) if count > 1]

    def _adopt(self, other: fx.Node, axis: int, layout: _Layout, name: str) -> None:
        """What meets a tensor's channels and is no layer's: a parameter of theirs, or a scale."""
        shape = other.meta.get("shape")
        if shape is None or len(shape) < -axis or shape[axis] == 1:
            return  # a number, or the same for all channels
        if other not in self._loose:
            raise _CannotPruneError(f"its output meets {name!r} of something that keeps its size")
        path = self._loose[other]
        if self._read_directly[path] > 1:
            raise _CannotPruneError(f"its output meets {path}, which is used more than once")
        parameter = self.network.get_parameter(path)
        self._read(layout, path, keeps=True, axis=parameter.ndim + axis)

    def _concatenated(self, node: fx.Node) -> _Layout | None:
        tensors = list(
            cast(Iterable[fx.Node], node.args[0] if node.args else node.kwargs["tensors"])
        )
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        axis = cast(int, given) % len(_shape(node))
        layouts = [self._layouts.get(n) for n in tensors]
        if not any(layouts):
            return None
        if all(layout is None or layout.axis != axis for layout in layouts):
            return self._met(node, tensors, "cat")
        blocks: list[_Block] = []
        for tensor, layout in zip(tensors, layouts, strict=True):
            if layout is None:
                blocks.append(_Block(None, _shape(tensor)[axis]))
            elif layout.axis != axis:
                raise _CannotPruneError("its output meets 'cat' of others along another axis")
            else:
                blocks += layout.blocks
        return _Layout(axis, tuple(blocks))


# Rules: what becomes of the channels' axis in an operation on one tensor; None: another rule's.


def _reshaped(node: fx.Node, before: fx.Node, layout: _Layout) -> _Layout | None:
    if node.target not in _RESHAPES:
        return None
    if node.target in (torch.flatten, "flatten"):
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        return _flattened(node, before, layout, cast(int, start), cast(int, end))
    old, new = _shape(before), _shape(node)
    if len(new) != 2 or new[0] != old[0] or layout.axis != 1:
        raise _CannotPruneError(f"its output is reshaped from {old} to {new}")
    sizes = node.args[1:] or (node.kwargs.get("shape"),)
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    if sizes[-1] != -1:
        raise _CannotPruneError(
            f"its output is reshaped to a fixed {sizes[-1]} features: write flatten(1)"
        )
    return _flattened(node, before, layout, 1, -1)


def _flattened(node: fx.Node, before: fx.Node, layout: _Layout, start: int, end: int) -> _Layout:
    """Axes ``start`` to ``end`` become one; the channels may be the first of them."""
    old, new = _shape(before), _shape(node)
    start, end = start % len(old), end % len(old)
    if layout.axis < start:
        return layout
    if layout.axis > end:
        return _Layout(layout.axis - (end - start), layout.blocks)
    if layout.axis != start or start == 0:
        raise _CannotPruneError(f"its output is reshaped from {old} to {new}")
    count = math.prod(old[start + 1 : end + 1])
    blocks = tuple(_Block(b.source, b.filters, b.spread * count) for b in layout.blocks)
    return _Layout(start, blocks)


def _reduced(node: fx.Node, before: fx.Node, layout: _Layout) -> _Layout | None:
    """Means over other axes (global average pooling, by another name), and dropped ones."""
    axes = len(_shape(before))
    if node.target in _REDUCTIONS:
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        listed = given if isinstance(given, tuple | list) else (given,)
        gone = {d % axes for d in listed if isinstance(d, int)}
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if not gone or layout.axis in gone:
            return None
        if keeps:
            return layout
    elif node.target in ("squeeze", torch.squeeze):
        given = node.args[1:] or ((node.kwargs["dim"],) if "dim" in node.kwargs else ())
        shape = _shape(before)
        listed = given[0] if given and isinstance(given[0], tuple | list) else given
        named = {cast(int, d) % axes for d in listed} if given else set(range(1, axes))
        gone = {d for d in named if shape[d] == 1}
        if layout.axis in gone or (not given and shape[0] == 1):
            return None
    else:
        return None
    return _Layout(layout.axis - sum(d < layout.axis for d in gone), layout.blocks)


def _moved(node: fx.Node, before: fx.Node, layout: _Layout) -> _Layout | None:
    """Axes in another order."""
    axes = len(_shape(before))
    order = list(range(axes))
    if node.target in ("permute", torch.permute):
        given = node.args[1:] or (node.kwargs.get("dims"),)
        listed = given[0] if len(given) == 1 else given
        order = [cast(int, d) % axes for d in cast(Iterable[Any], listed)]
    elif node.target in ("transpose", torch.transpose):
        if len(node.args) != 3:
            return None
        a, b = (cast(int, d) % axes for d in node.args[1:])
        order[a], order[b] = order[b], order[a]
    else:
        return None
    return _Layout(order.index(layout.axis), layout.blocks)


def _taken(node: fx.Node, before: fx.Node, layout: _Layout) -> _Layout | None:
    """Some entries of other axes: every second pixel, one token."""
    if node.target is not operator.getitem:
        return None
    given = node.args[1]
    index = given if isinstance(given, tuple) else (given,)
    if not all(
        isinstance(one, int) or (isinstance(one, slice) and _is_plain(one)) for one in index
    ):
        return None
    if layout.axis < len(index) and index[layout.axis] != slice(None):
        return None
    gone = sum(isinstance(one, int) for one in index[: layout.axis])
    return _Layout(layout.axis - gone, layout.blocks)


def _is_plain(one: slice) -> bool:
    return all(part is None or isinstance(part, int) for part in (one.start, one.stop, one.step))


def _padded(node: fx.Node, before: fx.Node, layout: _Layout) -> _Layout | None:
    """A border around images; a border of channels belongs to nobody."""
    if node.target is not functional.pad:
        return None
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if not isinstance(given, tuple | list) or not all(isinstance(one, int) for one in given):
        return None
    at = 2 * (len(_shape(before)) - 1 - layout.axis)
    low, high = [*given, *[0] * (at + 2)][at : at + 2]
    border = [_Block(None, n) for n in (low, high)]
    if any(block.filters < 0 for block in border):
        return None
    blocks = (border[0], *layout.blocks, border[1])
    return _Layout(layout.axis, tuple(block for block in blocks if block.filters))


def _operands(node: fx.Node) -> list[Any]:
    return [*node.args[:2], *(node.kwargs[n] for n in ("input", "other") if n in node.kwargs)]


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _name(node: fx.Node) -> str:
    target = cast(Any, node.target)
    return str(_NAMES.get(target, getattr(target, "__name__", target)))


def _is_parameter(network: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name in network.get_submodule(owner)._parameters


def _has_filters(module: nn.Module) -> bool:
    """Whether a module has weights of its own of more than one axis: not norms and scales."""
    return any(p is not None and p.ndim > 1 for p in module._parameters.values()) and (
        len(list(module.parameters())) == len(list(module.parameters(recurse=False)))
        or isinstance(module, nn.MultiheadAttention)
    )


def _is_one_prelu(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def _reads_no_channels(node: fx.Node, axis: int, axes: int) -> bool:
    """Whether a node asks a tensor for other things than the number of its channels.

    Such as ``x.view(x.size(0), -1)``, ``x.shape[-2:]``, ``x.device``.
    """
    asked = node.args[1] if node.target is getattr else node.target
    if asked in _ASKS:
        return True
    if asked == "size" and (node.args[1:] or node.kwargs):
        given = node.args[1] if node.args[1:] else node.kwargs.get("dim")
        return isinstance(given, int) and given % axes != axis
    # Sizes that are unpacked and not used are no use.
    return asked in ("size", "shape") and all(
        user.target is operator.getitem and not _covers(user.args[1], axis, axes)
        for user in node.users
        if user.target is not operator.getitem or user.users
    )


def _covers(index: Any, axis: int, axes: int) -> bool:
    """Whether an index into sizes takes that of an axis."""
    if isinstance(index, slice) and not _is_plain(index):
        return True
    taken = range(axes)[index]
    return axis in taken if isinstance(taken, range) else taken == axis


def _shape(node: fx.Node) -> list[int]:
    shape = node.meta.get("shape")
    if shape is None:
        raise _CannotPruneError(f"its output becomes something that is no tensor ({node.name})")
    return list(shape)
