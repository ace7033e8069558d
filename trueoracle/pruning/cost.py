"""What a network costs: its parameters, and the multiply-accumulates for one item of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied, without_numbers
from trueoracle.networks.graph import Example, answer, plain_attention
from trueoracle.networks.watching import Watch

__all__ = ["Cost", "cost", "macs_by_parameter"]


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs (multiply-accumulates; FLOPs are twice as many) for one item.

    MACs are those of convolutions, linear layers and attention's products; norms, activations and
    pooling have none.
    """

    parameters: int
    macs: int


def cost(network: nn.Module, given: Sequence[int] | Example) -> Cost:
    """The cost of ``network`` for one item, in evaluation mode.

    ``given`` is the shape of an image ``[C, H, W]``, or an example batch (a tensor, positional
    arguments, or keyword arguments by name), whose first item is taken. Zeros count like any other
    weight. The cost is computed without numbers (on torch's meta device) where the network allows
    that, else on the item itself. ``network`` is left unchanged. Raises :class:`InputError` where
    the network does not run on one item.
    """
    return Cost(sum(p.numel() for p in network.parameters()), _macs(network, given)[0])


def macs_by_parameter(network: nn.Module, given: Sequence[int] | Example) -> dict[str, int]:
    """The MACs for one item that each parameter takes part in, by name; no entry means none.

    ``given`` is as in :func:`cost`.
    """
    return _macs(network, given)[1]


def _macs(network: nn.Module, given: Sequence[int] | Example) -> tuple[int, dict[str, int]]:
    item = _first_item(given)
    try:
        # This fails for a network that makes tensors of its own or branches on values, since the
        # meta device has no values.
        return _count(without_numbers(network), item, torch.device("meta"))
    except Exception:  # the user's forward runs: anything can come out
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        return _count(copied(network), item, device)
    except Exception as error:  # likewise
        with suppress(Exception):  # rows may not belong to single items (such as image patches)
            return _share_of_item(network, given, device)
        what = f"image of shape {list(given)}" if _is_shape(given) else "item of the example"
        raise InputError(
            f"cannot count the multiply-accumulates of {type(network).__name__} on one {what}: "
            f"{first_line(error)}"
        ) from error


def _share_of_item(
    network: nn.Module, given: Any, device: torch.device
) -> tuple[int, dict[str, int]]:
    """The MACs of a whole batch divided by its number of items."""
    items = _items(given)
    total, by_parameter = _count(copied(network), given, device)
    return total // items, {name: macs // items for name, macs in by_parameter.items()}


def _items(given: Any) -> int:
    """How many items a batch has: the length of its first tensor."""
    tensors = [one for one in pytree.tree_leaves(given) if isinstance(one, Tensor) and one.ndim]
    return len(tensors[0]) if tensors else 1


def _is_shape(given: Sequence[int] | Example) -> bool:
    return not isinstance(given, Tensor | Mapping) and all(isinstance(n, int) for n in given)


def _first_item(given: Sequence[int] | Example) -> Any:
    """A batch of one item: the first item of an example."""
    if _is_shape(given):
        return torch.zeros(1, *cast(Sequence[int], given))
    count = _items(given)

    def first(one: Any) -> Any:
        is_batch = isinstance(one, Tensor) and one.ndim and len(one) == count
        return one[:1] if is_batch else one

    return pytree.tree_map(first, given)


def _count(network: nn.Module, item: Any, device: torch.device) -> tuple[int, dict[str, int]]:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_of_experts())
    by_storage = _ByStorage(counter)
    names = {_storage(value): name for name, value in network.named_parameters()}
    placed = pytree.tree_map(lambda one: one.to(device) if isinstance(one, Tensor) else one, item)
    # No autograd, but not inference mode either: there layers are not split into operations.
    with plain_attention(), torch.no_grad(), counter, by_storage:
        answer(network.eval(), placed)
    found = {names[key]: macs for key, macs in by_storage.macs.items() if key in names}
    return counter.get_total_flops() // 2, found


def _of_experts() -> dict[Any, Any]:
    """How to count the FLOPs of products of rows with experts' matrices, which torch does not.

    Each row ``[K]`` is multiplied by one expert's matrix ``[K, N]``, however many experts there
    are.
    """

    def flops(rows: Sequence[int], matrices: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * rows[0] * rows[1] * matrices[-1]

    names = (("aten", "_grouped_mm"), ("transformers", "grouped_mm_fallback"))
    found = (getattr(getattr(torch.ops, space), name, None) for space, name in names)
    return dict.fromkeys(filter(None, found), flops)


class _ByStorage(Watch):
    """Adds the MACs of every operation to each storage that the operation reads."""

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self.macs: dict[int, int] = {}
        self._counter = counter

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        before = self._counter.get_total_flops()
        result = func(*args, **kwargs)
        if macs := (self._counter.get_total_flops() - before) // 2:
            given = pytree.tree_leaves((args, kwargs))
            for key in {_storage(value) for value in given if isinstance(value, Tensor)}:
                self.macs[key] = self.macs.get(key, 0) + macs
        return result


def _storage(value: Tensor) -> int:
    """A number that identifies a tensor's memory, the same for all views of it."""
    return int(value.untyped_storage()._cdata)
