"""The outputs of the pruned filters, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError, first_line
from trueoracle.networks.attention import Attention
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import Graph, Recorder, record
from trueoracle.networks.heads import free_heads
from trueoracle.pruning.axes.atoms import resolved
from trueoracle.pruning.axes.following import Follower
from trueoracle.pruning.axes.offers import layout
from trueoracle.pruning.axes.rules import rule_of
from trueoracle.pruning.groups import Group, Part
from trueoracle.tasks.base import Task, as_input
from trueoracle.training.evaluate import evaluation_batch

__all__ = ["Activations", "channel_axis", "consumer_inputs", "filter_activations", "reader"]

Activations = dict[str, list[Tensor]]
"""For each group, one tensor ``[N, filters, …]`` per place where the group's filters are read."""

_BEHIND = {
    *("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d"),
    *("avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d", "mean", "native_dropout"),
    *("view", "_unsafe_view", "reshape", "clone", "squeeze", "unsqueeze", "detach", "alias"),
}
"""Operations between an activation and its reader that are not part of the activation."""


def filter_activations(
    dense: nn.Module, groups: Sequence[Group], split: AnySplit, task: Task
) -> Iterator[tuple[int, Activations]]:
    """Each filter's output, after norm and activation function, batch by batch of images.

    Yields the number of images, and one tensor ``[N, filters, H, W]`` (``[N, filters, numbers]``
    where there are no maps) for each tensor that consumers read, as it is before any pooling and
    flattening. N is the length of the tensor's first axis, which is not the number of images where
    a network folds other axes into it. Raises :class:`NotApplicableError` for a network that cannot
    be followed.
    """
    network = copied(dense).eval()
    free_heads(network)  # in which every layer is called as a module
    few = split.take(torch.arange(min(3, len(split))))
    example = as_input(network, few.fields)
    try:
        graph = record(network, example)
    except Exception as error:  # a user's forward runs: anything can come out
        raise NotApplicableError(f"the network cannot be followed: {first_line(error)}") from error
    sources = _Sources(network, graph)
    found = {group.name: sources.of(group) for group in groups}
    wanted = {at for places in found.values() for at, _ in places}
    for batch in split.batches(evaluation_batch(split)):
        values = _values(network, as_input(network, batch), wanted, graph)
        yield (
            len(next(iter(batch.values()))),
            {
                group.name: [
                    _of_filters(values[at], part, group.filters) for at, part in found[group.name]
                ]
                for group in groups
            },
        )


def reader(network: nn.Module, part: Part) -> nn.Module:
    """The layer that reads a group's filters; its single input has them along one axis.

    Raises :class:`NotApplicableError` where the filters are read by anything else.
    """
    module: nn.Module | None = dict(network.named_modules()).get(part.module)
    is_known = isinstance(module, nn.Linear | _ConvNd | Attention)
    if module is None or not (is_known or type(module).__name__ == "Conv1D"):
        raise NotApplicableError(f"what {part.module} reads cannot be followed")
    if isinstance(module, _ConvNd) and module.groups > 1:
        raise NotApplicableError(f"{part.module} is a grouped convolution, and reads the filters")
    return module


def check_readers(network: nn.Module, groups: Sequence[Group]) -> None:
    """Raise :class:`NotApplicableError` where weights that read filters do so past their layer.

    What a layer is given is then not all that its weights read: another layer shares them, or the
    forward takes them by themselves.
    """
    modules = dict(network.named_modules())
    held = Counter(
        id(module.weight) for module in modules.values() if isinstance(module, nn.Linear | _ConvNd)
    )
    for group in groups:
        for place in group.places:
            module = modules.get(place.owner)
            if place.role != "reads" or not isinstance(module, nn.Linear | _ConvNd):
                continue
            if not place.tensor.endswith("weight"):
                continue
            if held[id(module.weight)] > 1:
                raise NotApplicableError(f"{place.owner} shares its weights with another layer")
            if place.axis != (0 if isinstance(module, _ConvTransposeNd) else 1):
                raise NotApplicableError(f"the weights of {place.owner} are read past their layer")


def channel_axis(module: nn.Module) -> int:
    """The axis of a layer's input that holds its channels: 1 for convolutions, else the last."""
    return 1 if isinstance(module, _ConvNd) else -1


def consumer_inputs(
    dense: nn.Module, names: Sequence[str], split: AnySplit, task: Task
) -> Iterator[dict[str, Tensor]]:
    """The inputs of the named modules, by name, batch by batch of images, in evaluation mode."""
    network = copied(dense).eval()
    free_heads(network)  # in which every layer is called as a module
    found: dict[str, Tensor] = {}
    for name in names:
        reader(network, Part(name))

        def keep(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str = name
        ) -> None:
            if name in found:
                raise NotApplicableError(f"{name} is used more than once")
            # A copy, since what follows may change it in place.
            found[name] = (args[0] if args else kwargs["input"]).clone()

        network.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    for batch in split.batches(evaluation_batch(split)):
        with torch.no_grad():
            found.clear()
            task.forward(network, batch)
        yield found


def _of_filters(value: Tensor, part: Part, filters: int) -> Tensor:
    """The filters ``[N, filters, …]`` within an operation's output."""
    each = part.of_filters(value.movedim(part.axis or 0, 1), filters, 1)
    return each.flatten(2) if part.spread * part.outer > 1 or value.ndim == 2 else each[:, :, 0]


class _Sources:
    """Finds the operations whose outputs a group's consumers read."""

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        self._graph = graph
        self._known = Follower(network, graph)
        self._known.follow(rule_of)

    def of(self, group: Group) -> list[tuple[int, Part]]:
        """The numbers of the operations, and where the filters lie in their outputs."""
        first = next(place for place in group.places if place.role == "writes")
        number = self._graph.named[first.tensor]
        axis = resolved(self._known.axes_of(number)[first.axis or 0])
        where = (first.offset, first.outer, first.inner)
        atoms = [atom for atom, *there in layout(axis.segments) if tuple(there) == where]
        found: dict[tuple[int, Part], None] = {}
        for tensor in dict.fromkeys(p.tensor for p in group.places if p.role == "reads"):
            readings = [(at, ref) for name, at, ref in self._known.readings if name == tensor]
            if not readings:
                raise NotApplicableError(f"what {tensor} reads cannot be followed")
            for at, ref in readings:
                source, position = self._source(at, ref.number)
                parts = self._parts(ref.number if source is None else position, atoms)
                if source is None or not parts:
                    raise NotApplicableError(f"what {tensor} reads cannot be followed")
                found.update(dict.fromkeys((source, part) for part in parts))
        return list(found)

    def _parts(self, number: int, atoms: Sequence[object]) -> list[Part]:
        return [
            Part("", inner, offset, position, outer)
            for position, axis in enumerate(self._known.axes_of(number))
            for atom, offset, outer, inner in layout(resolved(axis).segments)
            if atom in atoms
        ]

    def _source(self, at: int, number: int) -> tuple[int | None, int]:
        """The operation that made a tensor, before pooling and flattening, and its output."""
        source = None
        for index in range(at - 1, -1, -1):
            step = self._graph.steps[index]
            ref = step.results[0] if step.results else None
            if ref is None or ref.number != number:
                continue
            source = index
            if step.name not in _BEHIND:
                break
            number = step.tensors[0].number
        is_behind = source is not None and self._graph.steps[source].name in _BEHIND
        return (None if is_behind else source), number


def _values(
    network: nn.Module, images: Tensor, wanted: set[int], graph: Graph
) -> Mapping[int, Tensor]:
    """The outputs of the ``wanted`` operations of a network."""
    found: dict[int, Tensor] = {}

    def watch(index: int, value: Any) -> None:
        if index in wanted:
            # A copy, since what follows may change it in place.
            found[index] = (value[0] if isinstance(value, tuple | list) else value).clone()

    recorder = Recorder(network, images, watch)
    recorder.run()
    if [step.name for step in recorder.graph.steps] != [step.name for step in graph.steps]:
        raise NotApplicableError("the network does other things with other images")
    return found
