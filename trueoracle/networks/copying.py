"""Copies of networks, whatever they hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trueoracle.errors import InputError, first_line

__all__ = ["copied"]

Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network, sharing: Iterable[Tensor] = ()) -> Network:
    """A copy of ``network`` that shares nothing with it, but for the tensors ``sharing``.

    Tensors that were computed with gradients are copied by value: the weights that masks or norms
    of ``torch.nn.utils`` left at the last call, an activation that a hook keeps. Raises
    :class:`InputError` where a module holds something that cannot be copied.
    """
    try:
        with _ByValue():
            return copy.deepcopy(network, {id(one): one for one in sharing})
    except Exception as error:  # a module may hold anything
        raise InputError(
            f"the network ({type(network).__name__}) cannot be copied: {first_line(error)}"
        ) from error


class _ByValue(TorchFunctionMode):
    """Lets ``copy.deepcopy`` take tensors that have a history, which torch refuses to copy."""

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
