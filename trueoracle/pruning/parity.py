"""Tries the surgery on a network before anything relies on it.

Removing filters must give the same function as zeroing them, in evaluation and in training mode.
Following a network's operations does not show everything that it does with its channels (a channel
may be written by its index, or a number may say how many there are). So every group is tried, and
every filter of a group is pruned at least once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import Example, answer
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.groups import Group
from trueoracle.pruning.trial import Trial, answers_of, equal

__all__ = ["check_network", "check_parity", "check_training", "failures"]


def check_network(network: nn.Module, example: Example) -> None:
    """Check that a network gives finite outputs, and the same ones each time, before pruning.

    ``example`` is a batch for the network. Raises :class:`InputError` that says what is wrong with
    the network itself, so that pruning is not blamed for it.
    """
    name = type(network).__name__
    twin, kept = copied(network).eval(), _tensors(example)
    example = pytree.tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, example)
    try:
        with torch.no_grad():
            given = answer(twin, example)
            first = answers_of(given, example)
            second = answers_of(answer(twin, example), example)
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"{name} does not run on {_described(example)}: {first_line(error)}"
        ) from error
    if not first:
        what = f"a {type(given).__name__}"
        if isinstance(given, Tensor):
            what = f"{str(given.dtype).removeprefix('torch.')} numbers"
        raise InputError(f"{name} gives {what}, expected tensors in floating point")
    if not all(one.isfinite().all() for one in first):
        raise InputError(f"{name} gives outputs that are not finite: {_why_not_finite(network)}")
    if not all(map(torch.equal, kept, _tensors(example))):
        raise InputError(
            f"{name} changes its input in place, so that nothing could be measured twice: begin "
            "with a copy of it (x = x.clone()), or without inplace=True"
        )
    if not equal(first, second):
        raise InputError(
            f"{name} gives different answers to the same images in evaluation mode "
            "(a dropout without training=self.training?)"
        )


def _tensors(example: Example) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(example) if isinstance(one, Tensor)]


def _described(example: Example) -> str:
    """An example in words, by its shapes without the leading axis."""
    if isinstance(example, Tensor):
        kind = "images" if example.ndim == 4 else "a batch of items"
        return f"{kind} of shape {list(example.shape[1:])}"
    named = example.items() if isinstance(example, Mapping) else enumerate(example)
    shapes = [f"{n} {list(v.shape[1:])}" for n, v in named if isinstance(v, Tensor)]
    return f"a batch of items of shapes {', '.join(shapes)}"


def check_training(network: nn.Module, example: Example) -> None:
    """Check that a network trains on a batch of at least two items.

    Raises :class:`InputError` where its forward or backward fails in training mode.
    """
    try:
        _train(copied(network), example)
    except Exception as error:  # the user's forward runs: anything can come out
        what = _described(example).replace("images", "a batch of images")
        raise InputError(
            f"{type(network).__name__} does not train on {what}: {first_line(error)}"
        ) from error


def failures(network: nn.Module, groups: Sequence[Group], example: Example) -> dict[str, str]:
    """Try groups of ``network`` on ``example``; return why some cannot be pruned, by name.

    Half of each group's filters are pruned, and then the other half. All groups are tried together;
    where that fails, each half of the groups is tried, down to single groups. A group of one filter
    is not tried.
    """
    triable = [group for group in groups if group.filters > 1]
    return Trial(network, example).failures(triable) if triable else {}


def check_parity(dense: nn.Module, candidates: Candidates, example: Example) -> None:
    """Check that exact surgery equals masking, and that the pruned networks train.

    ``example`` is a batch of at least two items. Every filter of the pruned groups is tried, then
    the first, middle and last candidate. Raises :class:`InputError` naming the layers. So a network
    whose operations do not show all that it does with its channels fails here, and not after hours.
    """
    check_network(dense, example)
    check_training(dense, example)
    trial = Trial(dense, example)
    for name, reason in trial.failures(candidates.groups).items():
        raise InputError(f"{name} cannot be pruned: {reason}")
    layers = ", ".join(group.name for group in candidates.groups)
    for index in sorted({0, len(candidates) // 2, len(candidates) - 1}):
        if reason := trial.failure(candidates.groups, candidates.kept(index)):
            raise InputError(f"{layers} cannot be pruned together: {reason}")
        try:
            _train(candidates.prune(dense, index), example)
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"the network does not train once {layers} are pruned: {first_line(error)}"
            ) from error


def _train(network: nn.Module, example: Example) -> None:
    """One step forward and back, in training mode."""
    answers = [
        one for one in answers_of(answer(network.train(), example), example) if one.requires_grad
    ]
    torch.stack([one.sum() for one in answers]).sum().backward()


def _why_not_finite(network: nn.Module) -> str:
    named = [*network.named_parameters(), *network.named_buffers()]
    for name, value in named:
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} holds NaN or infinity"
    for name, value in named:
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} holds a negative variance"
    return "its numbers are finite, so they grow beyond all bounds on the way"
