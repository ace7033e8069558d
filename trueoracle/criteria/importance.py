"""Turns numbers per weight into the importance that candidates sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueoracle.criteria.base import Criterion
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.groups import Group, Part, Place, by_filter, layer_weights
from trueoracle.pruning.ways import Importance, as_numbers

__all__ = [
    "channel_values",
    "importance_of",
    "kept_of",
    "member_weights",
    "pruned_units",
    "pruned_weights",
    "sum_by_filter",
    "sum_layers",
    "within_groups",
]


def pruned_weights(network: nn.Module, candidates: CandidateList) -> dict[str, Tensor]:
    """The weights of the pruned layers, which a candidate may lose, by name.

    Biases, norms and the layers that read the filters are left out, as for ``l1``.
    """
    if candidates.units == "weights":
        names = [f"{name}.weight" for name in candidates.weights]
        return {name: network.get_parameter(name) for name in names}
    if candidates.units == "layers":
        return {
            name: weight
            for layers in candidates.layers.values()
            for layer in layers
            for name, weight in _weights_of(network, layer).items()
        }
    return {
        name: weight
        for group in candidates.groups
        for name, (_, weight) in layer_weights(network, group).items()
    }


def sum_by_filter(
    network: nn.Module, candidates: CandidateList, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The importance of filters, layers or weights; ``values`` is that of each weight, by name.

    A filter's importance is the sum over its weights, in all layers of its group: ``[filters]`` by
    group. A whole layer's is the sum over all of its weights: ``[layers]`` by stack. A single
    weight's is its own value.
    """
    if candidates.units == "weights":
        return {name: values[f"{name}.weight"] for name in candidates.weights}
    if candidates.units == "layers":
        return {
            stack: torch.stack(
                [
                    sum_layers(values[n].detach().double().sum() for n in _weights_of(network, one))
                    for one in layers
                ]
            )
            for stack, layers in candidates.layers.items()
        }
    return {
        group.name: sum_layers(
            by_filter(layer, values[name].detach().double()).sum(1)
            for name, (layer, _) in layer_weights(network, group).items()
        )
        for group in candidates.groups
    }


def _weights_of(network: nn.Module, layer: str) -> dict[str, Tensor]:
    """The weights of a layer's parts by name, biases and norms left out."""
    found: dict[str, Tensor] = {
        f"{layer}.{name}": weight
        for name, weight in network.get_submodule(layer).named_parameters()
        if weight.ndim > 1
    }
    if not found:
        raise NotApplicableError(f"{layer} has no weights")
    return found


def sum_layers(parts: Iterable[Tensor]) -> Tensor:
    """The parts ``[filters]`` of a group's layers (or norms), added up."""
    return torch.stack(list(parts)).sum(0)


def within_groups(
    importance: Mapping[str, Tensor], candidates: CandidateList, *, raw: bool
) -> Mapping[str, Tensor]:
    """Scale importances ``[filters]`` that papers compare within a layer, to sum them over groups.

    Where filters of several groups are pruned, each group's importances are divided by their mean,
    as in DepGraph (Fang et al. 2023, arXiv 2301.12900; ``normalizer="mean"`` of Torch-Pruning).
    Otherwise the group with the largest numbers would decide alone. With ``raw``, nothing changes.
    """
    if raw or len(candidates.groups) < 2:
        return importance
    return {name: values / (values.mean() or 1.0) for name, values in importance.items()}


def channel_values(values: Tensor, group: Group, part: Part) -> Tensor:
    """Numbers per channel as each filter's ``[filters, spread]``, by the layout in ``part``."""
    return part.of_filters(values, group.filters)


def member_weights(
    network: nn.Module, group: Group
) -> list[tuple[str, tuple[int, tuple[Place, ...]], Tensor]]:
    """All weights that a filter has anywhere in its group, as Torch-Pruning counts them.

    These are the weights that produce the filter, the scales of its batch and layer norms, and the
    weights that read it: each as its name, the layout that :func:`by_filter` takes, and the tensor.
    Biases and depthwise convolutions are left out.
    """
    places: dict[tuple[str, str], list[Place]] = {}
    for place in group.places:
        places.setdefault((place.tensor, place.role), []).append(place)
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    found = []
    for (name, role), here in places.items():
        weight = parameters.get(name)
        owner, _, attribute = name.rpartition(".")
        norm = network.get_submodule(owner) if attribute == "weight" and role == "carries" else None
        is_scale = isinstance(norm, _BatchNorm | nn.LayerNorm)
        if weight is not None and ((weight.ndim > 1 and role != "carries") or is_scale):
            found.append((name, (group.filters, tuple(here)), weight))
    return found


def importance_of(
    criterion: Criterion, dense: nn.Module, candidates: CandidateList, data: Splits
) -> dict[str, np.ndarray]:
    """A criterion's importance of each filter, weight or layer, by group, layer or stack.

    It is what the criterion passes to ``candidates.sum_pruned``. Raises
    :class:`NotApplicableError` for a criterion that does not score candidates by such a sum, and
    whatever the criterion raises.
    """
    listening = _Listening(candidates.take([0]))
    scores = criterion(dense, cast(CandidateList, listening), data)
    if listening.summed is None or not np.allclose(scores, listening.summed, equal_nan=True):
        raise NotApplicableError(
            f"criterion {criterion.name!r} scores candidates as a whole, and has no score of each "
            f"of the {candidates.units}, such as 'l1' has"
        )
    return listening.importance


class _Listening:
    """Candidates that record which importance they are asked to sum."""

    def __init__(self, candidates: CandidateList) -> None:
        self._candidates = candidates
        self.importance: dict[str, np.ndarray] = {}
        self.summed: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._candidates, name)

    def __len__(self) -> int:
        return len(self._candidates)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._candidates)

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Sum as the candidates do, and record the importance and the sums."""
        sums = self._candidates.sum_pruned(importance)
        self.summed = sums if self.summed is None else self.summed + sums
        for name, given in importance.items():
            if (numbers := as_numbers(given)) is not None:
                self.importance[name] = self.importance.get(name, 0) + numbers
        return sums


def kept_of(candidates: Candidates, position: int) -> np.ndarray:
    """The filters that each candidate keeps in one group: 1 = kept, float64 ``[P, filters]``."""
    kept = np.zeros((len(candidates), candidates.groups[position].filters))
    np.put_along_axis(kept, candidates.kept_filters(position), 1, axis=1)
    return kept


def pruned_units(candidates: CandidateList) -> np.ndarray:
    """The filters or layers that each candidate prunes, of all: 1 = pruned, ``[P, F]``."""
    if candidates.units == "filters":
        ways = cast(Candidates, candidates)
        return np.hstack([1 - kept_of(ways, position) for position in range(len(ways.groups))])
    ends = np.cumsum([len(layers) for layers in candidates.layers.values()])
    each = [
        dict(zip(candidates.layers, np.split(one, ends[:-1]), strict=True))
        for one in np.eye(ends[-1])
    ]
    return np.stack([candidates.sum_pruned(one) for one in each], axis=1)
