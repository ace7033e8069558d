"""Finds the groups of a network: what must be removed together with each layer's filters.

One real batch is run, and every axis of every parameter is followed through the operations
(``axes``). This gives offers, and each of them is tried (``settling``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import fx, nn

from trueoracle.errors import InputError, first_line
from trueoracle.networks.graph import Example, record
from trueoracle.networks.tracing import trace
from trueoracle.pruning.axes.offers import Offers, offers
from trueoracle.pruning.groups import GroupMap
from trueoracle.pruning.parity import check_network
from trueoracle.pruning.settling import settled

__all__ = ["find_groups", "follow_groups"]


def find_groups(
    network: nn.Module, example: Example, only: Collection[str] | None = None
) -> GroupMap:
    """Find the prunable groups of ``network``, or only those whose names are in ``only``.

    ``example`` is a batch for the network: a tensor ``[N, …]``, a tuple of its arguments, or a
    dictionary of its keyword arguments. Each group has been tried on the batch: removing its
    filters equals zeroing them, in evaluation and in training mode. A group that fails is refused,
    with the reason. Raises :class:`InputError` where the network cannot be run on the example,
    gives numbers that are not finite, or runs other operations in training than in evaluation mode.
    """
    offered = _offers(network, example)
    if only is not None:
        wanted = {name: ways for name, ways in offered.alternatives.items() if name in only}
        offered = replace(offered, alternatives=wanted)
    return settled(network, offered, example)


def follow_groups(network: nn.Module, example: Example) -> GroupMap:
    """The groups as the network's operations show them, none of them tried.

    They are good for names and numbers only; :func:`find_groups` tries them. Both functions raise
    the same errors.
    """
    return _offers(network, example).first()


def _offers(network: nn.Module, example: Example) -> Offers:
    check_network(network, example)
    _check_modes(network)
    try:
        graph = record(network, example)
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"cannot follow the operations of {type(network).__name__}: {first_line(error)}"
        ) from error
    return offers(network, graph)


def _check_modes(network: nn.Module) -> None:
    """Refuse a network whose trace differs between training and evaluation mode."""
    modes = [(module, module.training) for module in network.modules()]
    traced = []
    # A forward that branches on values cannot be traced; the trial compares both modes anyway.
    with suppress(Exception):
        traced = [_operations(trace(network.train(mode))) for mode in (True, False)]
    for module, mode in modes:
        module.training = mode
    if traced and traced[0] != traced[1]:
        raise InputError(
            f"{type(network).__name__} does other things in training than in evaluation mode: "
            "it cannot be pruned as one network"
        )


def _operations(graph: fx.GraphModule) -> Sequence[tuple[str, object]]:
    return [(node.op, node.target) for node in graph.graph.nodes]
