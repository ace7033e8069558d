"""From numbers per weight to the importance that candidates sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.groups import Group, Part, by_filter, layer_weights

__all__ = ["channel_values", "kept_of", "pruned_weights", "sum_by_filter", "sum_layers"]


def pruned_weights(network: nn.Module, candidates: CandidateList) -> dict[str, Tensor]:
    """The weights that a candidate may lose, by name: of the pruned layers.

    Biases, norms and what reads the filters are no part of them, as for ``l1``.
    """
    if candidates.weights:
        names = [f"{name}.weight" for name in candidates.weights]
        return {name: network.get_parameter(name) for name in names}
    return {
        name: weight
        for group in candidates.groups
        for name, (_, weight) in layer_weights(network, group).items()
    }


def sum_by_filter(
    network: nn.Module, candidates: CandidateList, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The importance of what is pruned, where ``values`` is that of each weight, by its name.

    A filter's is the sum over its weights, in all layers of its group: ``[filters]`` by group. A
    single weight's is its own.
    """
    if candidates.weights:
        return {name: values[f"{name}.weight"] for name in candidates.weights}
    return {
        group.name: sum_layers(
            by_filter(layer, values[name].detach().double()).sum(1)
            for name, (layer, _) in layer_weights(network, group).items()
        )
        for group in candidates.groups
    }


def sum_layers(parts: Iterable[Tensor]) -> Tensor:
    """The parts ``[filters]`` of a group's layers (or norms), added up."""
    return torch.stack(list(parts)).sum(0)


def channel_values(values: Tensor, group: Group, part: Part) -> Tensor:
    """Each filter's share ``[filters, spread]`` of numbers per channel, as a group's part says."""
    return part.of_filters(values, group.filters)


def kept_of(candidates: Candidates, position: int) -> np.ndarray:
    """What each candidate keeps of the group at a position: 1 = kept, float64 ``[P, filters]``."""
    kept = np.zeros((len(candidates), candidates.groups[position].filters))
    np.put_along_axis(kept, candidates.kept_filters(position), 1, axis=1)
    return kept
