"""The groups of a network from Torch-Pruning's dependency graph (Fang et al. 2023, 2301.12900).

It follows autograd's record of one run: another way to the same groups, to check ours against.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.pruning.groups import Part

Plain = set[tuple[int, frozenset[Part], frozenset[Part]]]

_LAYERS = {"ConvPruner", "LinearPruner"}
_KEPT = {"BatchnormPruner", "InstanceNormPruner", "LayernormPruner", "DepthwiseConvPruner"}
_NOTHING_TO_CUT = {
    *("ElementWisePruner", "ReshapePruner", "ConcatPruner", "SplitPruner", "DummyPruner"),
    *("ExpandPruner", "SlicePruner", "UnbindPruner", "OutputPruner"),
}


def plain_groups(network: nn.Module, example: Tensor) -> Plain:
    """Each group as its number of filters, its layers and norms, and its consumers."""
    import torch_pruning

    network = copy.deepcopy(network).eval()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(network, example_inputs=example, verbose=False)
        names = {module: name for name, module in network.named_modules()}
        found = [_group(graph, names, module) for module in names if _is_weighted(module)]
    return {one for one in found if one is not None}


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _group(
    graph: Any, names: dict[nn.Module, str], module: nn.Module
) -> tuple[int, frozenset[Part], frozenset[Part]] | None:
    """What goes with a layer's filters; None where nothing reads them."""
    filters = int(module.weight.shape[0])  # type: ignore[index]
    cut = graph.get_pruner_of_module(module).prune_out_channels
    own = {Part(names[module])}
    consumers: set[Part] = set()
    for item in graph.get_pruning_group(module, cut, list(range(filters))):
        kind, side = type(item.dep.handler.__self__).__name__, item.dep.handler.__name__
        if kind in _NOTHING_TO_CUT:
            continue
        assert kind in _LAYERS | _KEPT
        part = _part(names[item.dep.target.module], item.root_idxs, item.idxs, filters)
        is_own = kind in _KEPT or side == "prune_out_channels"
        (own if is_own else consumers).add(part)
    return (filters, frozenset(own), frozenset(consumers)) if consumers else None


def _part(module: str, filters: Iterable[int], entries: Iterable[int], count: int) -> Part:
    found = sorted(zip(filters, entries, strict=True))
    part = Part(module, len(found) // count, min(entry for _, entry in found))
    assert part.entries(torch.arange(count), count).tolist() == [entry for _, entry in found]
    return part
