"""Which filters hang together: for every prunable layer, what reads its output.

A group is found by walking the traced network (``torch.fx``) from a layer with weights through
operations that treat channels alike, to the layers that consume them. What the walk does not know
makes the layer unprunable, with the reason in words; nothing is guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from trueoracle.errors import InputError

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
    *(functional.silu, functional.mish, functional.sigmoid, functional.tanh),
    *(functional.hardswish, functional.hardtanh, functional.softplus, functional.dropout),
    *(functional.max_pool2d, functional.avg_pool2d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
}
_CHANNELWISE_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous"}
_RESHAPES = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def find_groups(network: nn.Module, example: Tensor) -> GroupMap:
    """Find the prunable groups of ``network``; ``example`` is a batch ``[N, C, H, W]`` for it.

    Raises :class:`InputError` where the network cannot be traced or run on the example.
    """
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # tracing runs the user's forward: anything can come out
        raise InputError(
            f"cannot trace {type(network).__name__}: {_first_line(error)} "
            "(its forward must not branch on tensor values)"
        ) from error
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            ShapeProp(traced).propagate(example)
    except Exception as error:  # likewise
        raise InputError(
            f"{type(network).__name__} does not run on images of shape "
            f"{list(example.shape[1:])}: {_first_line(error.__cause__ or error)}"
        ) from error
    finally:
        network.train(was_training)
    modules = dict(network.named_modules())
    result = GroupMap()
    weighted = [n for n in traced.graph.nodes if _weighted(n, modules)]
    for node in weighted:
        name = str(node.target)
        if sum(other.target == node.target for other in weighted) > 1:
            result.refused[name] = "it is used more than once"
            continue
        layer = modules[name]
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            result.refused[name] = "it is a grouped convolution"
            continue
        filters = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        try:
            readers = list(_readers(node, int(filters), 1, modules))
        except _CannotPruneError as reason:
            result.refused[name] = str(reason)
            continue
        result.groups[name] = Group(
            name,
            int(filters),
            norms=tuple(r for r in readers if isinstance(modules[r.module], _NORMS)),
            consumers=tuple(r for r in readers if not isinstance(modules[r.module], _NORMS)),
        )
    return result


class _CannotPruneError(Exception):
    """Why a layer's filters cannot be removed."""


def _weighted(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear)


def _readers(
    node: fx.Node, filters: int, spread: int, modules: dict[str, nn.Module]
) -> Iterator[Reader]:
    """Yield what reads the channels that ``node`` puts out, norms and consumers alike."""
    if not node.users:
        raise _CannotPruneError("nothing reads its output")
    if (shape := _shape(node))[1] != filters * spread or len(shape) not in (2, 4):
        raise _CannotPruneError(f"its output becomes {shape}, where no axis is its filters'")
    for user in node.users:
        if user.op == "output":
            raise _CannotPruneError("its output is the network's output")
        if user.op == "call_module":
            module, name = modules[str(user.target)], str(user.target)
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield _consumer(name, module, shape, spread)
            elif isinstance(module, _NORMS):
                yield Reader(name, spread)
                yield from _readers(user, filters, spread, modules)
            elif isinstance(module, _CHANNELWISE_MODULES):
                yield from _readers(user, filters, spread, modules)
            elif isinstance(module, nn.Flatten):
                yield from _readers(user, filters, _flattened(node, user, spread), modules)
            else:
                raise _CannotPruneError(f"its output meets {type(module).__name__} ({name})")
        elif user.target in _CHANNELWISE_CALLS or (
            user.op == "call_method" and user.target in _CHANNELWISE_METHODS
        ):
            yield from _readers(user, filters, spread, modules)
        elif user.target in _RESHAPES:
            yield from _readers(user, filters, _flattened(node, user, spread), modules)
        elif not _reads_batch_size(user):
            name = getattr(user.target, "__name__", str(user.target))
            raise _CannotPruneError(f"its output meets {name!r}")


def _consumer(name: str, module: nn.Conv2d | nn.Linear, shape: list[int], spread: int) -> Reader:
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise _CannotPruneError(f"its output meets a grouped convolution ({name})")
    if isinstance(module, nn.Linear) and len(shape) != 2:
        raise _CannotPruneError(f"its output {shape} meets {name} without being flattened")
    return Reader(name, spread)


def _flattened(before: fx.Node, after: fx.Node, spread: int) -> int:
    """The spread after a reshape; it must flatten ``[N, C, H, W]`` and name no fixed size."""
    old, new = _shape(before), _shape(after)
    if len(new) != 2 or new[0] != old[0]:
        raise _CannotPruneError(f"its output is reshaped from {old} to {new}")
    if after.target in {"view", "reshape", torch.reshape}:
        sizes = after.args[1:]
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


def _reads_batch_size(node: fx.Node) -> bool:
    """Whether a node asks for the number of images only, as in ``x.view(x.size(0), -1)``."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
    return False


def _shape(node: fx.Node) -> list[int]:
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape"):
        raise _CannotPruneError(f"its output becomes something that is no tensor ({node.name})")
    return list(meta.shape)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
