"""Networks by name, built by factories from the data's shape and arguments of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from trueoracle.errors import InputError, first_line, unknown
from trueoracle.networks.pretrained import build_pretrained
from trueoracle.registry import Registry
from trueoracle.spec.hub import is_of_library

__all__ = ["NETWORKS", "build", "defaults", "is_shipped", "network"]

Factory = Callable[..., nn.Module]
NETWORKS: Registry[Factory] = Registry("network")

# Arguments that come from the data set, not the user, for factories that have such parameters.
_FROM_DATA = ("input_shape", "classes")
# What torchvision and others call ``classes``; the user may override its value.
_CLASSES = "num_classes"


def network(name: str) -> Callable[[Factory], Factory]:
    """Decorator: register a factory ``(input_shape, classes, **arguments) -> nn.Module``."""

    def register(factory: Factory) -> Factory:
        NETWORKS.add(name, factory, factory)
        return factory

    return register


def is_shipped(name: str) -> bool:
    """Whether a network comes with this package, so that its name determines its architecture."""
    return name in NETWORKS and NETWORKS[name].__module__.startswith("trueoracle.")


def build(
    name: str,
    arguments: Mapping[str, object] | None = None,
    *,
    input_shape: tuple[int, ...],
    classes: int,
) -> nn.Module:
    """Build a network by registered name, ``module:factory`` or another library's name.

    ``input_shape`` is the shape of one image, ``(C, H, W)``, or of another field of an example;
    ``classes`` is the number of outputs, such as the size of a language model's vocabulary. A
    factory gets those of ``input_shape``, ``classes`` and ``num_classes`` that are among its
    parameters; factories of ``torchvision.models`` also accept ``num_classes`` without naming it.
    The initial weights come from torch's global generator. Raises :class:`InputError`, with the
    nearest names, for an unknown name or argument.
    """
    if is_of_library(name):
        return build_pretrained(name, arguments or {}, input_shape=input_shape, classes=classes)
    factory = NETWORKS.find(name)
    given = dict(arguments or {})
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"network {name!r} cannot be called: {error}") from error
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = [p for p in parameters if p not in _FROM_DATA]
    for argument in given:
        if argument not in own and not takes_any:
            raise unknown(f"argument of network {name!r}", argument, own)
    from_data = {"input_shape": input_shape, "classes": classes}
    if "input_shape" in parameters and not input_shape:
        raise InputError(f"network {name!r} is of images, and the examples have none")
    given |= {key: value for key, value in from_data.items() if key in parameters}
    if _CLASSES in parameters or (takes_any and _is_torchvisions(factory)):
        given.setdefault(_CLASSES, classes)
    try:
        built = factory(**given)
    except (Exception, SystemExit) as error:  # a user's factory runs: anything can come out
        raise InputError(f"network {name!r} cannot be built: {first_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise InputError(f"network {name!r} gave a {type(built).__name__}, not an nn.Module")
    return built


def defaults(name: str) -> tuple[tuple[int, ...], int]:
    """The image shape ``(C, H, W)`` and the number of classes that a network has by default.

    These are the defaults of its factory's signature, or ImageNet's where there are none.
    """
    found: dict[str, Any] = {"input_shape": (3, 224, 224), "classes": 1000}
    with suppress(TypeError, ValueError):  # build refuses a factory that cannot be called
        parameters = inspect.signature(NETWORKS.find(name)).parameters
        for key in found:
            if key in parameters and parameters[key].default is not inspect.Parameter.empty:
                found[key] = parameters[key].default
    return found["input_shape"], found["classes"]


def _is_torchvisions(factory: Factory) -> bool:
    return f"{getattr(factory, '__module__', '')}.".startswith("torchvision.models.")
