"""The operations of a traced network: what they call, what they read, and what depends on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, cast

from torch import fx, nn

from trueoracle.networks.tracing import trace

__all__ = [
    "Slot",
    "Step",
    "ancestors_of",
    "called",
    "closure_of",
    "constant",
    "filled_in",
    "in_both_modes",
    "last_uses",
    "program",
]


def in_both_modes(
    network: nn.Module, inputs: Collection[str] = ()
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A network traced in training and in evaluation mode; its own modes are left unchanged.

    ``inputs`` are those of :func:`trueoracle.networks.tracing.trace`. Raises whatever the network's
    forward raises.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        return trace(network.train(), inputs), trace(network.eval(), inputs)
    finally:
        for module, training in modes:
            module.training = training


def called(node: fx.Node) -> Callable[..., Any]:
    """The function or tensor method that an operation calls; the operation calls no module."""
    if node.op == "call_method":
        return functools.partial(_call_method, str(node.target))
    return cast(Callable[..., Any], node.target)


def _call_method(name: str, owner: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(owner, name)(*args, **kwargs)


def constant(traced: fx.GraphModule, node: fx.Node) -> Any:
    """The attribute of the network that a ``get_attr`` operation reads."""
    return attrgetter(str(node.target))(traced)


def closure_of(nodes: set[fx.Node]) -> set[fx.Node]:
    """The nodes and all nodes that depend on them."""
    found, ahead = set(nodes), list(nodes)
    while ahead:
        fresh = [user for user in ahead.pop().users if user not in found]
        found.update(fresh)
        ahead += fresh
    return found


def ancestors_of(node: fx.Node, stop: set[fx.Node]) -> set[fx.Node]:
    """The node and all nodes that it depends on, without going beyond ``stop``."""
    found, ahead = {node}, [node]
    while ahead:
        last = ahead.pop()
        fresh = [n for n in last.all_input_nodes if n not in found and last not in stop]
        found.update(fresh)
        ahead += fresh
    return found


def last_uses(nodes: Sequence[fx.Node], keep: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each operation, the values that no later operation reads."""
    drops: dict[fx.Node, list[fx.Node]] = {}
    seen = set(keep)
    for node in reversed(nodes):
        read = [n for n in (node, *node.all_input_nodes) if n not in seen]
        drops[node] = list(dict.fromkeys(read))
        seen.update(read)
    return drops


class Slot(NamedTuple):
    """The value of an earlier step."""

    number: int


@dataclass(frozen=True)
class Step:
    """One operation as plain values, which ``torch.compile`` can follow.

    - ``kind``: the kind of operation in :mod:`torch.fx`; ``name``: the name of its target;
    - ``slot``: the number of its value; ``dead``: the slots that no later step reads;
    - ``function``: what it calls, None for a module; ``constant``: what ``get_attr`` reads;
    - ``args``, ``kwargs``: its arguments, with a :class:`Slot` in place of each earlier value.
    """

    kind: str
    slot: int
    name: str
    function: Callable[..., Any] | None
    constant: Any
    args: Any
    kwargs: Any
    dead: tuple[int, ...]


def program(traced: fx.GraphModule) -> list[Step]:
    """The operations of a traced network in order, the first input's placeholder first."""
    nodes = list(traced.graph.nodes)
    slots = {node: i for i, node in enumerate(nodes)}
    drops = last_uses(nodes, keep=[nodes[-1]])
    steps = []
    for node in nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: Slot(slots[n]))
        steps.append(
            Step(
                kind=node.op,
                slot=slots[node],
                name=str(node.target),
                function=called(node) if node.op in ("call_function", "call_method") else None,
                constant=constant(traced, node) if node.op == "get_attr" else None,
                args=args,
                kwargs=kwargs,
                dead=tuple(slots[used] for used in drops[node]),
            )
        )
    return steps


def filled_in(argument: Any, values: Mapping[int, Any]) -> Any:
    """An operation's arguments, with each :class:`Slot` replaced by its value."""
    if isinstance(argument, Slot):
        return values[argument.number]
    if isinstance(argument, tuple | list):
        parts = [filled_in(part, values) for part in argument]
        return tuple(parts) if isinstance(argument, tuple) else parts
    if isinstance(argument, dict):
        return {key: filled_in(part, values) for key, part in argument.items()}
    if isinstance(argument, slice):
        bounds = (argument.start, argument.stop, argument.step)
        return slice(*(filled_in(bound, values) for bound in bounds))
    return argument
