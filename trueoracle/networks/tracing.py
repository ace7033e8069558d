"""What a network does, as a graph of operations."""

from __future__ import annotations

import inspect

from torch import fx, nn

__all__ = ["trace"]


def trace(network: nn.Module) -> fx.GraphModule:
    """Trace ``network(images)`` in its present mode; optional arguments keep their defaults.

    Raises whatever the network's forward raises when its input is a stand-in for a tensor.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters[1:]
        if parameter.default is not parameter.empty
    }
    return fx.symbolic_trace(network, concrete_args=defaults or None)
