"""Groups of networks that cannot be traced, from Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) runs the network once and follows autograd's
record of it, so that a forward which branches on values is no obstacle. Only what hangs together is
taken from it: surgery is our own, and ``check_parity`` tries it before a study rests on it.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied
from trueoracle.pruning.groups import Group, GroupMap, Part

__all__ = ["groups_by_dependency"]

TIMEOUT_SECONDS = 60.0
"""For the whole network."""

LAYER_TIMEOUT_SECONDS = 10.0
"""For what goes with one layer, which takes milliseconds but where the search goes in circles: on
channels that are taken by their number, say, or grouped-query attention."""

_LAYERS = {"ConvPruner", "LinearPruner"}
_NORMS = {
    *("BatchnormPruner", "InstanceNormPruner", "LayernormPruner"),
    *("DepthwiseConvPruner", "PReLUPruner"),
}
_NOTHING_TO_CUT = {
    *("ElementWisePruner", "ReshapePruner", "ConcatPruner", "SplitPruner", "DummyPruner"),
    *("ExpandPruner", "SlicePruner", "UnbindPruner"),
}


def groups_by_dependency(network: nn.Module, example: Tensor) -> GroupMap:
    """The groups of ``network`` as Torch-Pruning sees them; ``example`` is a batch for it.

    Raises :class:`InputError` where it cannot follow the network either, or takes over a minute.
    """
    try:
        return _search(copied(network), example)
    except (_OutOfTimeError, Exception) as error:  # the user's forward runs in a library's search
        raise InputError(
            f"Torch-Pruning cannot follow {type(network).__name__}: {_why(error)}"
        ) from error


class _OutOfTimeError(BaseException):
    """Not an ``Exception``, which the search itself may catch."""


def _why(error: BaseException) -> str:
    return "its search does not end" if isinstance(error, _OutOfTimeError) else first_line(error)


@contextmanager
def _deadline(end: float) -> Iterator[None]:
    """End Torch-Pruning's search within the block once its time is over.

    By :class:`_OutOfTimeError`, at the next call of a function of its own, where nothing else holds
    a lock or is half done.
    """
    before = sys.getprofile()

    def check(frame: FrameType, event: str, argument: object) -> None:
        is_own = event == "call" and frame.f_globals["__name__"].startswith("torch_pruning.")
        if is_own and time.monotonic() > end:
            raise _OutOfTimeError

    sys.setprofile(check)
    try:
        yield
    finally:
        sys.setprofile(before)


def _search(network: nn.Module, example: Tensor) -> GroupMap:
    """What :func:`groups_by_dependency` answers; ``network`` is left in another state."""
    import torch_pruning

    network.eval()
    for parameter in network.parameters():  # autograd's record would pass frozen ones by
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parameters that are no layer's: they are found
        end = time.monotonic() + TIMEOUT_SECONDS
        graph = torch_pruning.DependencyGraph()
        with _deadline(end):
            graph.build_dependency(network, example_inputs=example, verbose=False)
        return _Conversion(network, graph).groups(end)


class _Conversion:
    """From Torch-Pruning's groups to ours."""

    def __init__(self, network: nn.Module, graph: Any) -> None:
        self._graph = graph
        self._names = {module: name for name, module in network.named_modules()}
        self._parameters = {id(p): name for name, p in network.named_parameters()}
        self._axes = {id(one.parameters): one.pruning_dim for one in graph.unwrapped_parameters}

    def groups(self, end: float) -> GroupMap:
        """Every layer with filters is in a group, or refused with a reason; until ``end``."""
        result = GroupMap()
        kept_apart = {}
        seen: set[str] = set()
        for module, name in self._names.items():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                kept_apart[name] = "it is a grouped convolution"
            elif name not in seen:
                try:
                    with _deadline(min(end, time.monotonic() + LAYER_TIMEOUT_SECONDS)):
                        group, reason = self._group(name, module)
                except (_OutOfTimeError, Exception) as error:  # in the library: one layer's matter
                    group, reason = None, f"Torch-Pruning cannot follow it: {_why(error)}"
                layers = group.layers if group else (Part(name),)
                seen.update(part.module for part in layers)
                if reason or group is None:
                    result.refuse(layers, reason)
                else:
                    result.groups[name] = group
        members = {member for group in result.groups.values() for member in group.members}
        result.refused.update({n: why for n, why in kept_apart.items() if n not in members})
        return result

    def _group(self, name: str, module: nn.Conv2d | nn.Linear) -> tuple[Group, str]:
        """All that goes with a layer's filters; and why they cannot be pruned, if so."""
        filters = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        pruner = self._graph.get_pruner_of_module(module)
        cut = pruner.prune_out_channels
        sides: dict[str, list[Part]] = {"layers": [Part(name)], "norms": [], "consumers": []}
        reason = ""
        for item in self._graph.get_pruning_group(module, cut, list(range(filters))):
            target = item.dep.target.module
            side = _side(item.dep.handler)
            if side == "nothing":
                continue
            if side not in sides:
                reason = reason or f"its output meets {type(target).__name__}"
                continue
            is_parameter = isinstance(target, nn.Parameter)
            path = self._parameters[id(target)] if is_parameter else self._names[target]
            part = _part(path, self._axes.get(id(target)), item.root_idxs, item.idxs, filters)
            if part is None:
                reason = reason or f"its channels come to {path} in another order"
            elif part not in sides[side]:
                sides[side].append(part)
            if side != "norms" and isinstance(target, nn.Conv2d) and target.groups > 1:
                reason = reason or f"its output meets a grouped convolution ({path})"
        if not reason and not sides["consumers"]:
            reason = "no layer with weights reads its output"
        return Group(name, filters, *map(tuple, sides.values())), reason


def _side(handler: Any) -> str:
    """What pruning by Torch-Pruning's ``handler`` would cut, in our words."""
    kind = type(handler.__self__).__name__
    if kind in _LAYERS:
        return "layers" if handler.__name__ == "prune_out_channels" else "consumers"
    if kind in _NORMS or kind == "ParameterPruner":
        return "norms"
    return "nothing" if kind in _NOTHING_TO_CUT else kind


def _part(
    module: str, axis: int | None, filters: Iterable[int], entries: Iterable[int], count: int
) -> Part | None:
    """Where filters lie, where that is in neighbouring entries; else None."""
    found = sorted(zip(filters, entries, strict=True))
    spread, rest = divmod(len(found), count)
    part = Part(module, spread, min(entry for _, entry in found), axis)
    if rest:
        return None
    expected = part.entries(torch.arange(count)).tolist()
    return part if [entry for _, entry in found] == expected else None
