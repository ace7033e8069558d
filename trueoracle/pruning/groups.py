"""Which filters hang together: for every prunable layer, what reads its output.

A group is found by walking the traced network (``torch.fx``) from a layer with weights through
operations that treat channels alike, to the layers that consume them. What the walk does not know
makes the layer unprunable, with the reason in words; ``check_parity`` then tries the surgery.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from trueoracle.errors import InputError, first_line
from trueoracle.networks.tracing import trace

__all__ = ["Group", "GroupMap", "Reader", "find_groups"]


@dataclass(frozen=True)
class Reader:
    """A module that reads a group's channels: a norm, or a consumer with weights.

    ``spread`` is how many of its inputs belong to one filter: 1, or H·W after flattening.
    """

    module: str
    spread: int = 1


@dataclass(frozen=True)
class Group:
    """The filters of one layer and all that must go with them.

    ``name`` is the layer's module name; ``filters`` how many it has. ``norms`` keep one entry a
    channel, ``consumers`` one slice of input weights a channel.
    """

    name: str
    filters: int
    norms: tuple[Reader, ...] = ()
    consumers: tuple[Reader, ...] = ()


@dataclass(frozen=True)
class GroupMap:
    """The prunable groups of a network, in forward order, and why other layers are none."""

    groups: dict[str, Group] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


# Operations that act on each channel by itself, or drop entries: removal passes through them.
_CHANNELWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Identity),
    *(nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_CHANNELWISE_CALLS = {
    *(torch.relu, torch.sigmoid, torch.tanh, torch.max_pool2d),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu),
    *(functional.relu_, functional.silu, functional.mish, functional.sigmoid, functional.tanh),
    *(functional.hardswish, functional.hardtanh, functional.softplus),
    *(functional.dropout, functional.dropout2d),
    *(functional.max_pool2d, functional.avg_pool2d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
}
_CHANNELWISE_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous"}
_RESHAPES = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WEIGHTED = (nn.Conv2d, nn.Linear)


def find_groups(network: nn.Module, example: Tensor) -> GroupMap:
    """Find the prunable groups of ``network``; ``example`` is a batch ``[N, C, H, W]`` for it.

    Raises :class:`InputError` where the network cannot be traced or run on the example, or is
    another one in training than in evaluation mode.
    """
    graph = _trace(network, example)
    walk = _Walk(network, graph)
    result = GroupMap()
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(walk.modules[node.target], _WEIGHTED):
            continue
        try:
            result.groups[node.target] = walk.group(node)
        except _CannotPruneError as reason:
            result.refused[node.target] = str(reason)
    return result


def _trace(network: nn.Module, example: Tensor) -> fx.Graph:
    """The operations of a network, with the shapes that the example has on its way."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():  # first, since the interpreter prints a traceback of its own
            network.eval()(example)
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"{type(network).__name__} does not run on images of shape "
            f"{list(example.shape[1:])}: {first_line(error)}"
        ) from error
    try:
        traced = [trace(network.train(mode)) for mode in (True, False)]
    except Exception as error:  # likewise
        raise InputError(
            f"cannot trace {type(network).__name__}: {first_line(error)} "
            "(its forward must not branch on tensor values)"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    steps = [[(node.op, node.target) for node in one.graph.nodes] for one in traced]
    if steps[0] != steps[1]:
        raise InputError(
            f"{type(network).__name__} does other things in training than in evaluation mode: "
            "it cannot be pruned as one network"
        )
    with torch.no_grad():
        _Shapes(traced[1]).run(example)
    return traced[1].graph


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor on its way; torch's own pass imports a computer algebra."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


class _CannotPruneError(Exception):
    """Why a layer's filters cannot be removed."""


class _Walk:
    """Follows a layer's channels through the traced operations of one network."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(network.named_modules())
        self._calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        direct = (str(node.target) for node in graph.nodes if node.op == "get_attr")
        self._read_directly = {name.rpartition(".")[0] for name in direct}
        owners: dict[int, set[str]] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
        self._tied = set().union(*(names for names in owners.values() if len(names) > 1))

    def group(self, node: fx.Node) -> Group:
        """The group of the layer that ``node`` calls."""
        name = str(node.target)
        layer = self.modules[name]
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise _CannotPruneError("it is a grouped convolution")
        self._check_alone(name, "it")
        if isinstance(layer, nn.Linear) and len(_shape(node)) != 2:
            raise _CannotPruneError(f"it puts out {_shape(node)}, more than one row an image")
        filters = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        filters = cast(int, filters)
        readers = list(self._readers(node, filters, 1))
        for reader in readers:
            self._check_alone(reader.module, f"its reader {reader.module}")
        if len({reader.module for reader in readers}) < len(readers):
            raise _CannotPruneError("one layer reads its output more than once")
        norms = [r for r in readers if isinstance(self.modules[r.module], _NORMS)]
        consumers = [r for r in readers if r not in norms]
        if not consumers:
            raise _CannotPruneError("no layer with weights reads its output")
        return Group(name, filters, tuple(norms), tuple(consumers))

    def _check_alone(self, name: str, it: str) -> None:
        """Refuse a module whose weights anything but its own single call depends on."""
        module = self.modules[name]
        if self._calls[name] > 1:
            raise _CannotPruneError(f"{it} is used more than once")
        if name in self._read_directly:
            raise _CannotPruneError(f"{it} has weights that are read outside of it")
        if name in self._tied:
            raise _CannotPruneError(f"{it} shares weights with another layer")
        if isinstance(module, _WEIGHTED) and "weight" not in dict(module.named_parameters()):
            raise _CannotPruneError(f"{it} computes its weights from others")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _CannotPruneError(f"{it} has hooks")

    def _readers(self, node: fx.Node, filters: int, spread: int) -> Iterator[Reader]:
        """Yield what reads the channels that ``node`` puts out, norms and consumers alike."""
        shape = _shape(node)
        if len(shape) < 2 or shape[1] != filters * spread:
            raise _CannotPruneError(f"its output becomes {shape}, where no axis is its filters'")
        for user in node.users:
            if user.op == "output":
                raise _CannotPruneError("its output is the network's output")
            if user.op == "call_module":
                module, name = self.modules[str(user.target)], str(user.target)
                if isinstance(module, _WEIGHTED):
                    yield _consumer(name, module, shape, spread)
                    continue
                if isinstance(module, _NORMS):
                    yield Reader(name, spread)
                elif isinstance(module, nn.Flatten):
                    yield from self._readers(user, filters, _flattened(node, user, spread))
                    continue
                elif not isinstance(module, _CHANNELWISE_MODULES):
                    raise _CannotPruneError(f"its output meets {type(module).__name__} ({name})")
                if module._forward_hooks or module._forward_pre_hooks:
                    raise _CannotPruneError(f"its output meets {name}, which has hooks")
                yield from self._readers(user, filters, spread)
            elif (
                user.target in _CHANNELWISE_CALLS
                or (user.op == "call_method" and user.target in _CHANNELWISE_METHODS)
                or _pools_all(user)
                or _squeezes(node, user)
            ):
                yield from self._readers(user, filters, spread)
            elif user.target in _RESHAPES:
                yield from self._readers(user, filters, _flattened(node, user, spread))
            elif not _reads_batch_size(user):
                name = getattr(user.target, "__name__", str(user.target))
                raise _CannotPruneError(f"its output meets {name!r}")


def _consumer(name: str, module: nn.Conv2d | nn.Linear, shape: list[int], spread: int) -> Reader:
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise _CannotPruneError(f"its output meets a grouped convolution ({name})")
    if isinstance(module, nn.Conv2d) and len(shape) != 4:
        raise _CannotPruneError(f"its output {shape} meets {name}, which takes images")
    if isinstance(module, nn.Linear) and len(shape) != 2:
        raise _CannotPruneError(f"its output {shape} meets {name} without being flattened")
    return Reader(name, spread)


def _flattened(before: fx.Node, after: fx.Node, spread: int) -> int:
    """The spread after a reshape; it must flatten ``[N, C, H, W]`` and name no fixed size."""
    old, new = _shape(before), _shape(after)
    if len(new) != 2 or new[0] != old[0]:
        raise _CannotPruneError(f"its output is reshaped from {old} to {new}")
    if after.target in {"view", "reshape", torch.reshape}:
        sizes = after.args[1:] or (after.kwargs.get("shape"),)
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        if sizes[-1] != -1:
            raise _CannotPruneError(
                f"its output is reshaped to a fixed {sizes[-1]} features: write flatten(1)"
            )
    count = spread
    for size in old[2:]:
        count *= size
    return count


def _pools_all(node: fx.Node) -> bool:
    """Whether a node is ``x.mean((2, 3))`` of images: global average pooling, by another name."""
    if node.target not in {"mean", torch.mean}:
        return False
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = given if isinstance(given, tuple | list) else (given,)
    return {d % 4 for d in dims if isinstance(d, int)} == {2, 3}


def _squeezes(before: fx.Node, after: fx.Node) -> bool:
    """Whether a node drops axes of length 1 behind the channels."""
    if after.target not in {"squeeze", torch.squeeze}:
        return False
    return _shape(after)[:2] == _shape(before)[:2]


def _reads_batch_size(node: fx.Node) -> bool:
    """Whether a node asks for the number of images only, as in ``x.view(x.size(0), -1)``."""
    if node.op == "call_method" and node.target == "size":
        if node.args[1:] == (0,) or node.kwargs.get("dim") == 0:
            return True
        asks_for_all = node.args[1:] == () and not node.kwargs
    else:
        asks_for_all = node.target is getattr and node.args[1] == "shape"
    # A size that is unpacked and not used is no use.
    used = [user for user in node.users if user.target is not operator.getitem or user.users]
    return asks_for_all and all(
        user.target is operator.getitem and user.args[1] == 0 for user in used
    )


def _shape(node: fx.Node) -> list[int]:
    shape = node.meta.get("shape")
    if shape is None:
        raise _CannotPruneError(f"its output becomes something that is no tensor ({node.name})")
    return list(shape)
