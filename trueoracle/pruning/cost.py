"""What a network costs: its parameters, and the multiply-accumulates for one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied

__all__ = ["Cost", "cost", "macs_by_parameter"]


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs (multiply-accumulates; FLOPs are twice as many) for one image.

    MACs are those of convolutions, linear layers and attention's products; norms, activations and
    pooling have none.
    """

    parameters: int
    macs: int


def cost(network: nn.Module, image_shape: Sequence[int]) -> Cost:
    """The cost of ``network`` for one image ``[C, H, W]``, in evaluation mode.

    Zeros count like any other weight. It is computed without numbers (on torch's meta device)
    where the network allows that, else on a real image. ``network`` stays as it is. Raises
    :class:`InputError` where it does not run on one image.
    """
    return Cost(sum(p.numel() for p in network.parameters()), _macs(network, image_shape)[0])


def macs_by_parameter(network: nn.Module, image_shape: Sequence[int]) -> dict[str, int]:
    """The MACs for one image that each named parameter takes part in; without entry: none."""
    return _macs(network, image_shape)[1]


def _macs(network: nn.Module, image_shape: Sequence[int]) -> tuple[int, dict[str, int]]:
    try:
        # A network may make tensors of its own as it goes, or branch on values: those are nowhere.
        return _count(copied(network).to("meta"), image_shape, torch.device("meta"))
    except Exception:  # the user's forward runs: anything can come out
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        return _count(copied(network), image_shape, device)
    except Exception as error:  # likewise
        raise InputError(
            f"cannot count the multiply-accumulates of {type(network).__name__} on one image of "
            f"shape {list(image_shape)}: {first_line(error)}"
        ) from error


def _count(
    network: nn.Module, image_shape: Sequence[int], device: torch.device
) -> tuple[int, dict[str, int]]:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    by_storage = _ByStorage(counter)
    names = {_storage(value): name for name, value in network.named_parameters()}
    image = torch.zeros(1, *image_shape, device=device)
    # Without autograd, and not in inference mode, in which layers arrive in one piece.
    with _plain_attention(), torch.no_grad(), counter, by_storage:
        network.eval()(image)
    found = {names[key]: macs for key, macs in by_storage.macs.items() if key in names}
    return counter.get_total_flops() // 2, found


class _ByStorage(TorchDispatchMode):
    """Notes the MACs of every operation with each storage that it reads."""

    def __init__(self, counter: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[int, int] = {}
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if macs := (self._counter.get_total_flops() - before) // 2:
            given = pytree.tree_leaves((args, kwargs))
            for key in {_storage(value) for value in given if isinstance(value, Tensor)}:
                self.macs[key] = self.macs.get(key, 0) + macs
        return result


def _storage(value: Tensor) -> int:
    """What tells a tensor's memory from others', for views of it alike."""
    return int(value.untyped_storage()._cdata)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as products, which are counted; its fused kernels are not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
