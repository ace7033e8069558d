"""Groups of networks that cannot be traced, from Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) runs the network once and follows autograd's
record of it, so that a forward which branches on values is no obstacle. Only what hangs together is
taken from it: surgery is our own, and ``check_parity`` tries it before a study rests on it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.errors import InputError, first_line
from trueoracle.pruning.groups import Group, GroupMap, Part

__all__ = ["groups_by_dependency"]

TIMEOUT_SECONDS = 60.0
"""On some networks (grouped-query attention, for one) its search does not end."""

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
    answer: list[GroupMap] = []
    failure: list[Exception] = []

    def search() -> None:
        try:
            answer.append(_search(network, example))
        except Exception as error:  # the user's forward runs, within a library's search
            failure.append(error)

    worker = threading.Thread(target=search, daemon=True)
    worker.start()
    worker.join(TIMEOUT_SECONDS)
    if failure:
        raise InputError(
            f"Torch-Pruning cannot follow {type(network).__name__}: {first_line(failure[0])}"
        ) from failure[0]
    if not answer:
        raise InputError(
            f"Torch-Pruning has not followed {type(network).__name__} within "
            f"{TIMEOUT_SECONDS:.0f} seconds"
        )
    return answer[0]


def _search(network: nn.Module, example: Tensor) -> GroupMap:
    import torch_pruning

    modes = [(module, module.training) for module in network.modules()]
    frozen = [p for p in network.parameters() if not p.requires_grad]
    try:
        network.eval()
        for parameter in frozen:  # autograd's record would pass them by
            parameter.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on parameters that are no layer's: they are found
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(network, example_inputs=example, verbose=False)
            return _converted(network, graph)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training


def _converted(network: nn.Module, graph: Any) -> GroupMap:
    names: dict[Any, str] = {module: name for name, module in network.named_modules()}
    parameters = {id(p): name for name, p in network.named_parameters()}
    axes = {id(one.parameters): one.pruning_dim for one in graph.unwrapped_parameters}
    result = GroupMap()
    seen: set[str] = set()
    for module, name in names.items():
        if name in seen or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            if module.groups != module.out_channels:
                result.refused[name] = "it is a grouped convolution"
            continue
        filters = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        pruner = graph.get_pruner_of_module(module)
        items = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(filters)))
        sides: dict[str, list[Part]] = {"layers": [], "norms": [], "consumers": []}
        reason = ""
        for item in items:
            target = item.dep.target.module
            side = _side(item.dep.handler)
            if side == "nothing":
                continue
            if side not in sides:
                reason = reason or f"its output meets {type(target).__name__}"
                continue
            path = parameters[id(target)] if isinstance(target, nn.Parameter) else names[target]
            part = _part(path, axes.get(id(target)), item.root_idxs, item.idxs, filters)
            if part is None:
                reason = reason or f"its channels come to {path} in another order"
            elif part not in sides[side]:
                sides[side].append(part)
        layers = [part.module for part in sides["layers"]]
        seen.update(layers)
        if not reason and not sides["consumers"]:
            reason = "no layer with weights reads its output"
        if reason:
            result.refused.update(dict.fromkeys(layers, reason))
        else:
            result.groups[name] = Group(name, filters, *map(tuple, sides.values()))
    return result


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
