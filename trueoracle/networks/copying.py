"""Copies networks, whatever they hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trueoracle.errors import InputError, first_line

__all__ = ["copied", "without_numbers"]

Network = TypeVar("Network", bound=nn.Module)


def without_numbers(network: Network) -> Network:
    """A copy whose parameters and buffers have sizes but no numbers (on torch's meta device).

    Tensors that the network shares stay shared. Raises the same errors as :func:`copied`.
    """
    replaced: dict[int, Any] = {}
    for value in (*network.parameters(), *network.buffers()):
        made = value.detach().to("meta")
        is_parameter = isinstance(value, nn.Parameter)
        replaced[id(value)] = nn.Parameter(made, value.requires_grad) if is_parameter else made
    return _copied(network, replaced)


def copied(network: Network, sharing: Iterable[Tensor] = ()) -> Network:
    """A copy of ``network`` that shares only the tensors in ``sharing`` with it.

    Tensors that were computed with gradients are copied by value, such as the weights that masks or
    norms of ``torch.nn.utils`` left at the last call, or an activation that a hook keeps. Raises
    :class:`InputError` where a module holds something that cannot be copied.
    """
    return _copied(network, {id(one): one for one in sharing})


def _copied(network: Network, replaced: dict[int, Any]) -> Network:
    try:
        with _ByValue():
            return copy.deepcopy(network, replaced)
    except Exception as error:  # a module may hold anything
        raise InputError(
            f"the network ({type(network).__name__}) cannot be copied: {first_line(error)}"
        ) from error


class _ByValue(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors with an autograd history, which torch refuses."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **kwargs or {})
