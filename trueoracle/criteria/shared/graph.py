"""Which operations of a traced network candidates share, and which run for each candidate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from trueoracle.criteria.shared.choices import CannotShareError
from trueoracle.networks.operations import closure_of
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.groups import Group, Part

__all__ = [
    "CONTRIBUTIONS_BYTES",
    "bytes_of",
    "consumers_of",
    "only_input",
    "power_of_two",
    "summable_groups",
]

CONTRIBUTIONS_BYTES = 64 * 2**20
"""Most bytes that one image's contributions may take; a group that needs more is masked."""


def summable_groups(graph: fx.GraphModule, candidates: Candidates, image: Tensor) -> list[Group]:
    """The groups that fit in memory as sums, and whose consumers' inputs no candidate changes."""
    by_target = {str(n.target): n for n in graph.graph.nodes if n.op == "call_module"}
    late = closure_of(set(consumers_of(by_target, candidates.groups)))
    consumers = {r.module: graph.get_submodule(r.module) for r in _readers(candidates.groups)}
    sizes = _output_bytes(graph, consumers, image)
    summable = []
    for position, group in enumerate(candidates.groups):
        count = group.filters
        if candidates.surgery == "as-released":
            kept = candidates.kept_filters(position).shape[1]
            count = kept * (group.filters - kept + 1)
        names = [reader.module for reader in group.consumers]
        fits = count * sum(sizes[name] for name in names) <= CONTRIBUTIONS_BYTES
        if fits and not any(only_input(by_target[name]) in late for name in names):
            summable.append(group)
    return summable


def _output_bytes(
    network: nn.Module, modules: dict[str, nn.Module], images: Tensor
) -> dict[str, int]:
    """The bytes of each module's output when the network runs on these images."""
    sizes = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: sizes.update({name: bytes_of(out)})
        )
        for name, module in modules.items()
    ]
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _readers(groups: Iterable[Group]) -> list[Part]:
    return [reader for group in groups for reader in group.consumers]


def consumers_of(by_target: dict[str, fx.Node], groups: Iterable[Group]) -> dict[fx.Node, Part]:
    """The operations that read the groups' filters, each with the part that it reads."""
    return {by_target[r.module]: r for group in groups for r in group.consumers}


def only_input(node: fx.Node) -> fx.Node:
    """The one value that an operation reads; raises :class:`CannotShareError` for more."""
    if len(node.all_input_nodes) != 1:
        raise CannotShareError(f"{node.name} reads {len(node.all_input_nodes)} values")
    return node.all_input_nodes[0]


def bytes_of(value: Any) -> int:
    """The bytes of a tensor; 0 for anything else."""
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def power_of_two(limit: int) -> int:
    """The largest power of two that is not above ``limit``, at least 1."""
    return 1 << max(limit.bit_length() - 1, 0)
