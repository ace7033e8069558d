"""Traces a network to a graph of operations (torch.fx)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection

from torch import fx, nn

from trueoracle.errors import first_line
from trueoracle.networks.attention import Attention
from trueoracle.networks.copying import copied

__all__ = ["trace", "why_not_traced"]


def trace(network: nn.Module, inputs: Collection[str] = ()) -> fx.GraphModule:
    """Trace ``network(images)`` in its present mode; optional arguments keep their defaults.

    ``inputs`` names the optional arguments that are given too, where a network takes several. The
    graph calls the modules of ``network`` itself, which is left unchanged. Raises whatever the
    network's forward raises when its input is a stand-in for a tensor.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters[1:]
        if parameter.default is not parameter.empty and parameter.name not in inputs
    }
    # A copy is traced, since tracing stores the constants that a forward makes, and a forward or a
    # hook may store stand-ins for its tensors. Parameters are stand-ins throughout.
    twin = copied(network, sharing=network.parameters())
    graph = _Tracer().trace(twin, concrete_args=defaults or None)
    with_constants = copy.copy(network)
    for name in vars(twin).keys() - vars(network).keys():
        vars(with_constants)[name] = vars(twin)[name]
    return fx.GraphModule(with_constants, graph, type(network).__name__)


def why_not_traced(error: Exception) -> str:
    """The end of a message about a network that ``torch.fx`` could not trace.

    An error other than a tracing error comes from code that was given a stand-in for a tensor, and
    the text of such an error does not help a reader.
    """
    is_known = isinstance(error, fx.proxy.TraceError)
    return f": {first_line(error)}" if is_known else " by torch.fx"


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own layers and attention."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, Attention)
            or super().is_leaf_module(m, module_qualified_name)
            or _computes_as_torchs(m)
        )


_HARMLESS = {
    *("__init__", "__repr__", "_get_name", "extra_repr", "reset_parameters"),
    *("__getstate__", "__setstate__", "__deepcopy__", "get_extra_state", "set_extra_state"),
}
"""Methods that a layer may define itself while still computing the same as torch's layer."""


def _computes_as_torchs(module: nn.Module) -> bool:
    """Whether a module's class inherits from a layer of torch and computes the same."""
    ours = type(module).__mro__
    torchs = next((kind for kind in ours if kind.__module__.startswith("torch.nn")), nn.Module)
    if torchs in (nn.Module, nn.Sequential):
        return False
    mine = {name for kind in ours[: ours.index(torchs)] for name in vars(kind)}
    return not any(callable(getattr(torchs, name, None)) for name in mine - _HARMLESS)
