"""From numbers per weight to the importance that candidates sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.base import Criterion
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.groups import Group, Part, by_filter, layer_weights
from trueoracle.pruning.ways import Importance, as_numbers

__all__ = [
    "channel_values",
    "importance_of",
    "kept_of",
    "pruned_weights",
    "sum_by_filter",
    "sum_layers",
]


def pruned_weights(network: nn.Module, candidates: CandidateList) -> dict[str, Tensor]:
    """The weights that a candidate may lose, by name: of the pruned layers.

    Biases, norms and what reads the filters are no part of them, as for ``l1``.
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
    """The importance of what is pruned, where ``values`` is that of each weight, by its name.

    A filter's is the sum over its weights, in all layers of its group: ``[filters]`` by group; a
    whole layer's that over all of its weights: ``[layers]`` by stack. A single weight's is its own.
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


def channel_values(values: Tensor, group: Group, part: Part) -> Tensor:
    """Each filter's share ``[filters, spread]`` of numbers per channel, as a group's part says."""
    return part.of_filters(values, group.filters)


def importance_of(
    criterion: Criterion, dense: nn.Module, candidates: CandidateList, data: Splits
) -> dict[str, np.ndarray]:
    """What a criterion makes of each filter, weight or layer by itself, by group, layer or stack.

    That is what it gives ``candidates.sum_pruned``. Raises :class:`NotApplicableError` for one that
    does not score candidates by such a sum, and what the criterion raises.
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
    """Candidates that note which importance they are asked to sum."""

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
        """As the candidates do."""
        sums = self._candidates.sum_pruned(importance)
        self.summed = sums if self.summed is None else self.summed + sums
        for name, given in importance.items():
            if (numbers := as_numbers(given)) is not None:
                self.importance[name] = self.importance.get(name, 0) + numbers
        return sums


def kept_of(candidates: Candidates, position: int) -> np.ndarray:
    """What each candidate keeps of the group at a position: 1 = kept, float64 ``[P, filters]``."""
    kept = np.zeros((len(candidates), candidates.groups[position].filters))
    np.put_along_axis(kept, candidates.kept_filters(position), 1, axis=1)
    return kept
