"""What a candidate chooses: contributions to add up, or channels to mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.groups import Group
from trueoracle.pruning.surgery import l1_survivors, prune

__all__ = ["CannotShareError", "check_plain", "choices_of", "moved_filters", "widened"]


class CannotShareError(Exception):
    """Why a network's candidates are evaluated one at a time."""


def check_plain(dense: nn.Module, candidates: Candidates) -> None:
    """Raise :class:`CannotShareError` unless readers read one group each and mix no channels."""
    for group in candidates.groups:
        for part in group.consumers:
            consumer = dense.get_submodule(part.module)
            if not isinstance(consumer, nn.Conv2d | nn.Linear):
                raise CannotShareError(f"{part.module} is a {type(consumer).__name__}")
            if isinstance(consumer, nn.Conv2d) and consumer.groups > 1:
                raise CannotShareError(f"{part.module} is a grouped convolution")
            if part.outer > 1 or consumer.weight.shape[1] != group.filters * part.spread:
                raise CannotShareError(f"{part.module} reads other channels besides")
        modules = [dense.get_submodule(p.module) for p in group.norms if p.axis is None]
        if any(isinstance(module, nn.LayerNorm) for module in modules):
            raise CannotShareError(f"a layer norm mixes the channels of {group.name}")


@dataclass(frozen=True)
class _Sum:
    """A group that enters its consumers as a sum of contributions.

    ``chosen`` is bool ``[P, C]``: which of the C contributions each candidate adds up; ``count`` is
    how many contributions a candidate adds up, the same number for all.
    """

    group: Group
    chosen: Tensor
    count: int


@dataclass(frozen=True)
class _Mask:
    """A group that is masked where it is read.

    ``read`` is bool ``[P, filters]``: the consumer's channels that are not zeroed. ``source``, for
    the released wiring only, is int64 ``[P, filters]``: the filter that feeds each channel.
    """

    group: Group
    read: Tensor
    source: Tensor | None


def choices_of(
    dense: nn.Module, candidates: Candidates, summed: Sequence[Group]
) -> tuple[list[_Sum], list[_Mask]]:
    """How each group of the candidates enters its consumers: as a sum or by a mask."""
    device = next(dense.parameters()).device
    sums, masks = [], []
    for position, group in enumerate(candidates.groups):
        kept = candidates.kept_filters(position)
        is_released = candidates.surgery == "as-released"
        if group in summed:
            chosen = _placed(kept, group.filters) if is_released else _flags(kept, group.filters)
            sums.append(_Sum(group, torch.from_numpy(chosen).to(device), kept.shape[1]))
        elif is_released:
            masks.append(_released_mask(dense, group, kept, device))
        else:
            read = torch.from_numpy(_flags(kept, group.filters)).to(device)
            masks.append(_Mask(group, read, None))
    return sums, masks


def _flags(kept: np.ndarray, filters: int) -> np.ndarray:
    """Which filters are among the kept ones ``[P, K]``, bool ``[P, filters]``."""
    flags = np.zeros((len(kept), filters), dtype=bool)
    np.put_along_axis(flags, kept, True, axis=1)
    return flags


def _placed(kept: np.ndarray, filters: int) -> np.ndarray:
    """Which (filter, place) each candidate has, bool ``[P, K·room]``, in :func:`_places`' order."""
    count = kept.shape[1]
    room = filters - count + 1
    places = np.arange(count)
    return _flags(places * room + kept - places, count * room)


def _places(filters: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (filter, place) that can occur: the j-th of K ascending filters is in j … j+C-K."""
    place = np.repeat(np.arange(count), filters - count + 1)
    offset = np.tile(np.arange(filters - count + 1), count)
    return place + offset, place


def widened(dense: nn.Module, candidates: Candidates, groups: Sequence[Group]) -> nn.Module:
    """The network with one channel for each (filter, place) of the groups."""
    kept = candidates.kept(0)
    survivors = l1_survivors(dense, groups, kept)
    own, read = {}, {}
    for group in groups:
        own[group.name], place = _places(group.filters, len(kept[group.name]))
        read[group.name] = survivors[group.name][place]
    return prune(dense, groups, own, read)


def _released_mask(dense: nn.Module, group: Group, kept: np.ndarray, device: torch.device) -> _Mask:
    survivors = l1_survivors(dense, [group], {group.name: kept[0]})[group.name]
    source = np.zeros((len(kept), group.filters), dtype=np.int64)
    source[:, survivors] = kept
    read = _flags(np.broadcast_to(survivors, kept.shape), group.filters)
    return _Mask(group, torch.from_numpy(read).to(device), torch.from_numpy(source).to(device))


def moved_filters(value: Tensor, source: Tensor) -> Tensor:
    """A layer's output ``[N·P, filters, …]`` with each candidate's filters in their places."""
    each = value.unflatten(0, (-1, len(source)))
    index = source.view(1, *source.shape, *(1 for _ in each.shape[3:])).expand_as(each)
    return torch.gather(each, 2, index).flatten(0, 1)
