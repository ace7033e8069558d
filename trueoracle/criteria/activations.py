"""What the pruned filters put out, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError, first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.tracing import trace
from trueoracle.pruning.groups import Group, Part
from trueoracle.pruning.walk import filter_places
from trueoracle.tasks.base import INPUT, Task
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
    *(torch.flatten, torch.reshape, "flatten", "view", "reshape"),
    *("contiguous", "mean", torch.mean),
}
"""What lies between an activation and its reader without being part of the activation."""


def filter_activations(
    dense: nn.Module, groups: Sequence[Group], split: AnySplit, task: Task
) -> Iterator[tuple[int, Activations]]:
    """What each filter puts out, behind norm and activation function, batch by batch of images.

    With the number of images one ``[N, filters, H, W]`` (``[N, filters, numbers]`` where there are
    no maps) for each tensor that consumers read; pooling and flattening before them are undone. N
    is the length of the tensor's first axis, which is not that of the images where a network folds
    others into it. Raises :class:`NotApplicableError` for a network that cannot be followed.
    """
    network = copied(dense).eval()
    example = split.take(torch.arange(min(3, len(split)))).inputs
    try:
        graph = trace(network)
        places = filter_places(network, graph, example)
    except Exception as error:  # a user's forward runs: anything can come out
        raise NotApplicableError(f"the network cannot be traced: {first_line(error)}") from error
    sources = {group.name: _sources(graph, group) for group in groups}
    for group in groups:
        for node, reader in sources[group.name].items():
            if group.name not in places.get(node, {}):
                raise NotApplicableError(f"what {reader} reads cannot be followed")
    wanted = {node for found in sources.values() for node in found}
    for batch in split.batches(evaluation_batch(split)):
        with torch.no_grad():
            values = _Recorder(graph, wanted).record(batch[INPUT])
        yield (
            len(batch[INPUT]),
            {
                group.name: [
                    _of_filters(values[node], places[node][group.name], group.filters)
                    for node in sources[group.name]
                ]
                for group in groups
            },
        )


def consumer_inputs(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> Iterator[dict[str, Tensor]]:
    """What the named modules read, by name, batch by batch of images; in evaluation mode."""
    network = copied(dense).eval()
    found: dict[str, Tensor] = {}
    for name in names:

        def keep(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str = name
        ) -> None:
            # A copy, since what follows may change it in place.
            found[name] = (args[0] if args else kwargs["input"]).clone()

        network.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    for batch in split.batches(evaluation_batch(split)):
        with torch.no_grad():
            task.forward(network, batch)
        yield found


def _of_filters(value: Tensor, part: Part, filters: int) -> Tensor:
    """``[N, filters, …]`` of what an operation puts out."""
    end = part.offset + filters * part.spread
    entries = value.movedim(cast(int, part.axis), 1)[:, part.offset : end]
    each: Tensor = entries.unflatten(1, (filters, part.spread))
    return each.flatten(2) if part.spread > 1 or value.ndim == 2 else each[:, :, 0]


def _sources(graph: fx.GraphModule, group: Group) -> dict[fx.Node, str]:
    """The operations that put out a group's filters to be read, each with one of its readers."""
    by_target = {str(n.target): n for n in graph.graph.nodes if n.op == "call_module"}
    found: dict[fx.Node, str] = {}
    for part in group.consumers:
        reader = by_target.get(part.module)
        if reader is None or len(reader.all_input_nodes) != 1:
            raise NotApplicableError(f"what {part.module} reads cannot be followed")
        node = reader.all_input_nodes[0]
        while (before := _passed(node, graph)) is not None:
            node = before
        found.setdefault(node, part.module)
    return found


def _passed(node: fx.Node, graph: fx.GraphModule) -> fx.Node | None:
    """What lies before an operation that is part of neither an activation nor its reader."""
    if node.op == "call_module":
        passes = isinstance(graph.get_submodule(str(node.target)), _BEHIND_MODULES)
    else:
        passes = node.op in ("call_function", "call_method") and node.target in _BEHIND_CALLS
    # Sizes to reshape to may be inputs as well, behind the tensor.
    return node.all_input_nodes[0] if passes and node.all_input_nodes else None


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
