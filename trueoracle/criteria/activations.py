"""What the pruned filters put out, image by image."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError, first_line
from trueoracle.networks.tracing import trace
from trueoracle.pruning.groups import Group, Part
from trueoracle.training.evaluate import evaluation_batch

__all__ = ["Activations", "consumer_inputs", "filter_activations"]

Activations = dict[str, list[Tensor]]
"""By group, one ``[N, filters, …]`` for each place where its filters are read."""

_BEHIND_MODULES = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity),
)
_BEHIND_CALLS = {
    *(functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
    *(functional.adaptive_max_pool2d, functional.dropout, functional.dropout2d, torch.max_pool2d),
    *(torch.flatten, "flatten", "contiguous", "mean", torch.mean),
}
"""What lies between an activation and its reader without being part of the activation."""


def filter_activations(
    dense: nn.Module, groups: Sequence[Group], split: AnySplit
) -> Iterator[Activations]:
    """What each filter puts out, behind norm and activation function, batch by batch of images.

    One ``[N, filters, H, W]`` (``[N, filters, numbers]`` where there are no maps) for each
    tensor that consumers read; pooling and flattening before them are undone. Raises
    :class:`NotApplicableError` for a network that cannot be followed.
    """
    network = copy.deepcopy(dense).eval()
    try:
        graph = trace(network)
    except Exception as error:  # a user's forward runs: anything can come out
        raise NotApplicableError(f"the network cannot be traced: {first_line(error)}") from error
    sources = {group.name: _sources(graph, group) for group in groups}
    wanted = {source.node for found in sources.values() for source in found}
    for images, _ in split.batches(evaluation_batch(split.image_shape)):
        with torch.no_grad():
            values = _Recorder(graph, wanted).record(images)
        yield {
            group.name: [s.of_filters(values[s.node], group.filters) for s in sources[group.name]]
            for group in groups
        }


def consumer_inputs(
    dense: nn.Module, names: Sequence[str], split: AnySplit
) -> Iterator[dict[str, Tensor]]:
    """What the named modules read, by name, batch by batch of images; in evaluation mode."""
    network = copy.deepcopy(dense).eval()
    found: dict[str, Tensor] = {}
    for name in names:

        def keep(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str = name
        ) -> None:
            found[name] = args[0] if args else kwargs["input"]

        network.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    for images, _ in split.batches(evaluation_batch(split.image_shape)):
        with torch.no_grad():
            network(images)
        yield found


@dataclass(frozen=True)
class _Source:
    """The operation that puts out what a consumer reads, and where the filters lie in it."""

    node: fx.Node
    part: Part
    is_first: bool
    """Whether channels are axis 1 of what is read, and not the last one."""
    is_behind: bool
    """Whether something was passed over on the way to it."""

    def of_filters(self, value: Tensor, filters: int) -> Tensor:
        """``[N, filters, …]`` of a value of the operation."""
        spread, offset = self.part.spread, self.part.offset
        if self.is_behind and value.ndim == 4:  # it was flattened, or pooled to one number
            maps = value[:, offset // spread : offset // spread + filters]
        elif self.is_first:
            maps = value[:, offset : offset + filters]
        else:
            entries = value.movedim(-1, 1)[:, offset : offset + filters * spread]
            maps = entries.unflatten(1, (filters, spread)).flatten(2)
        if maps.shape[1] != filters:
            raise NotApplicableError(f"what {self.part.module} reads cannot be followed")
        return maps


def _sources(graph: fx.GraphModule, group: Group) -> list[_Source]:
    """Where a group's filters are read: each tensor once, however many read it."""
    by_target = {str(n.target): n for n in graph.graph.nodes if n.op == "call_module"}
    found: dict[fx.Node, _Source] = {}
    for part in group.consumers:
        reader = by_target.get(part.module)
        if reader is None or len(reader.all_input_nodes) != 1:
            raise NotApplicableError(f"what {part.module} reads cannot be followed")
        node = given = reader.all_input_nodes[0]
        while _passes(node, graph):
            node = node.all_input_nodes[0]
        is_first = isinstance(graph.get_submodule(part.module), nn.Conv2d)
        found.setdefault(node, _Source(node, part, is_first, node is not given))
    return list(found.values())


def _passes(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether an operation lies between an activation and its reader, and is part of neither."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _BEHIND_MODULES)
    return node.op in ("call_function", "call_method") and node.target in _BEHIND_CALLS


class _Recorder(fx.Interpreter):
    """Runs a network and keeps what some of its operations put out."""

    def __init__(self, graph: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(graph)
        self._wanted = wanted
        self._values: dict[fx.Node, Tensor] = {}

    def record(self, images: Tensor) -> dict[fx.Node, Tensor]:
        """The values of the wanted operations."""
        self.run(images)
        return self._values

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        value = super().run_node(n)
        if n in self._wanted:
            self._values[n] = value
        return value
