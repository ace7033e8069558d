"""Two ways to save memory in training: weights in bfloat16, and recomputed forward passes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from trueoracle.errors import InputError
from trueoracle.training.recipe import Recipe

__all__ = ["Rounded", "blocks_of", "checkpointed"]


class Rounded:
    """A network whose floating-point weights are in bfloat16 until :meth:`finish`.

    The inputs are rounded too. The outputs are converted to float32, so that losses are summed in
    float32. Buffers, and the weights of batch norms, keep their precision: statistics would suffer.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = (m for m in network.modules() if isinstance(m, _BatchNorm))
        kept = {id(p) for norm in norms for p in norm.parameters()}
        self._before: list[tuple[nn.Parameter, torch.dtype]] = []
        for parameter in network.parameters():
            if parameter.is_floating_point() and id(parameter) not in kept:
                self._before.append((parameter, parameter.dtype))
                parameter.data = parameter.data.to(torch.bfloat16)
        self._hooks = [
            network.register_forward_pre_hook(_round_inputs, with_kwargs=True),
            network.register_forward_hook(_widen_outputs),
        ]

    def finish(self) -> None:
        """Give the weights their former precision, with the values that they have now."""
        for hook in self._hooks:
            hook.remove()
        for parameter, dtype in self._before:
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)


def _round_inputs(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return _cast((args, kwargs), torch.bfloat16)


def _widen_outputs(_: nn.Module, __: Any, output: Any) -> Any:
    return _cast(output, torch.float32)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, values
    )


@contextmanager
def checkpointed(network: nn.Module, recipe: Recipe) -> Iterator[None]:
    """In this context, with ``gradient_checkpointing``, only the inputs of blocks are kept.

    A block's inner values are computed again for the gradients (Chen et al. 2016,
    arXiv 1604.06174). The blocks are those that a transformers network names, else the modules with
    submodules that stand in a row (``nn.Sequential``, ``nn.ModuleList``). Raises
    :class:`InputError` for a network without blocks, or with batch norms in them.
    """
    if not recipe.gradient_checkpointing:
        yield
    elif (switch := _switch_of_transformers(network)) is not None:
        switch("enable", {"use_reentrant": False})
        try:
            yield
        finally:
            switch("disable")
    else:
        blocks = _blocks_to_run_again(network)
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward


def _switch_of_transformers(network: nn.Module) -> Callable[..., None] | None:
    """The function that turns a network's own checkpointing on and off; None where it has none."""
    if not hasattr(network, "supports_gradient_checkpointing"):
        return None
    if not network.supports_gradient_checkpointing:
        raise InputError(
            f"gradient_checkpointing: {type(network).__name__} does not support it: leave it out"
        )
    names = ("activation_checkpointing", "gradient_checkpointing")  # from version 6 on, and before
    name = next(name for name in names if hasattr(network, f"{name}_enable"))
    return lambda what, *given: getattr(network, f"{name}_{what}")(*given)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost modules with submodules that stand in a row; there may be none."""
    found: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            composite = [child for child in module if any(True for _ in child.children())]
            inner = {id(m) for block in found for m in block.modules()}
            if len(composite) > 1:
                found += [block for block in composite if id(block) not in inner]
    return found


def _blocks_to_run_again(network: nn.Module) -> list[nn.Module]:
    found = blocks_of(network)
    if not found:
        raise InputError(
            f"gradient_checkpointing needs blocks that stand in a row, and {type(network).__name__}"
            " has none: leave it out"
        )
    for block in found:
        if any(isinstance(m, _NormBase) and m.track_running_stats for m in block.modules()):
            raise InputError(
                "gradient_checkpointing runs a block twice, and its norms would count their "
                "statistics twice: leave it out"
            )
    return found
