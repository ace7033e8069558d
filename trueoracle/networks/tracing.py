"""What a network does, as a graph of operations."""

from __future__ import annotations

import inspect

from torch import fx, nn

from trueoracle.networks.attention import Attention

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
    graph = _Tracer().trace(network, concrete_args=defaults or None)
    return fx.GraphModule(network, graph, type(network).__name__)


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own layers and attention."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Attention) or super().is_leaf_module(m, module_qualified_name)
