"""How much memory there is, and how much a training takes: in bytes, and in words."""

from __future__ import annotations

import copy
import os
import re
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from trueoracle.data.splits import Split, Splits
from trueoracle.errors import InputError, shown
from trueoracle.networks.watching import Watch
from trueoracle.tasks.base import Batch, Task, inputs_of
from trueoracle.training.evaluate import evaluation_batch
from trueoracle.training.loop import Training, loss_of, make_optimizer, training_task
from trueoracle.training.recipe import Lora, Recipe, Retraining
from trueoracle.training.savings import checkpointed

__all__ = [
    "LiveBytes",
    "available_memory",
    "evaluated_at_once",
    "parse_bytes",
    "peak_bytes",
    "readable_bytes",
    "training_bytes",
    "ways_to_fit",
    "weight_bytes",
]

_SMALL = 200 * 10**6
"""Bytes below which a training's memory is only counted quickly: it needs no exact figure."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}
_MOST = 2.0**63
_ELSEWHERE = 4 * 10**9
"""Bytes assumed free where the system does not say."""


def available_memory(device: torch.device) -> int:
    """Bytes that are free on ``device`` now, within a container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    with suppress(OSError, ValueError, AttributeError):  # not on Linux
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024)
    if not found:
        with suppress(OSError, ValueError, AttributeError):  # not on POSIX
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cached = re.findall(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        found.append(limit - used + sum(map(int, cached)))  # cached files are dropped when needed
    return max(0, min(found, default=_ELSEWHERE))


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(v.nbytes for v in chain(network.parameters(), network.buffers()))


def evaluated_at_once(data: Splits) -> int:
    """The most examples of a split that are evaluated at a time."""
    return max(min(len(split), evaluation_batch(split)) for _, split in data.named())


def training_bytes(
    network: nn.Module,
    example: Batch,
    count: int,
    recipe: Recipe,
    task: Task,
    evaluated: int = 0,
) -> int:
    """Bytes that one network takes while it is trained on ``count`` examples a step.

    ``evaluated`` is how many examples are evaluated at a time after an epoch. The memory
    of a small network is counted quickly: weights, their gradients, the optimiser's state, and what
    a forward pass keeps for the gradients. That of any other is measured by :func:`peak_bytes`,
    which takes seconds.
    """
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    remembered = 2 if recipe.optimizer != "sgd" else int(recipe.momentum > 0)
    kept = _kept_for_gradients(network, example, count)
    if kept is not None and recipe.precision == "autocast":  # most of what is kept has 16 bits
        kept //= 2
    quick = weight_bytes(network) + (1 + remembered) * trained + (kept or 0)
    # An evaluation keeps nothing for gradients: it takes less than training on as many examples.
    if kept is not None and quick < _SMALL and kept * evaluated // max(count, 1) < _SMALL:
        return quick
    return peak_bytes(network, example, count, recipe, task, evaluated) or quick


def peak_bytes(
    network: nn.Module,
    example: Batch,
    count: int,
    recipe: Recipe,
    task: Task,
    evaluated: int = 0,
) -> int | None:
    """The most bytes that tensors take in training by ``recipe``, ``count`` examples a step.

    Two steps are run on shapes alone (torch's fake tensors), with the recipe's adapters, gradient
    checkpoints, parts and precision; the optimiser's state exists from the second step on. Then
    ``evaluated`` examples are evaluated at once, while gradients and that state still exist. Memory
    that a kernel takes and frees within itself is not counted. Returns None where the network or
    its loss cannot be run on shapes alone, for example because it branches on values. ``network``
    may be on the ``meta`` device.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # half a second, by way of sympy

    parts = -(-count // min(count, recipe.examples_at_once))
    live = LiveBytes()
    with suppress(Exception), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself will give them
        laid = _with_tensors(network, lambda value: torch.empty_like(value, device="meta"))
        split = Split({name: value.cpu() for name, value in example.items()})
        Training(laid, Splits(split, None, split, task), recipe, (0, ""))
        # A ShapeEnv allows values that are only checked, such as LLaVA's count of image tokens.
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), live:
            fake = _with_tensors(laid, lambda value: torch.empty(value.shape, dtype=value.dtype))
            batch = _shapes(example, -(-count // parts))
            with checkpointed(fake.train(), recipe):
                kept = _two_steps(fake, training_task(task, recipe), batch, recipe, min(parts, 2))
            if evaluated:
                del batch
                with suppress(Exception):  # a task may need values; the peak of training stands
                    _evaluated(fake, task, _shapes(example, evaluated))
            del kept
            return live.peak
    return None


def _shapes(example: Batch, count: int) -> Batch:
    """``count`` examples without values."""
    return {
        name: torch.empty(count, *value.shape[1:], dtype=value.dtype)
        for name, value in example.items()
    }


def _evaluated(network: nn.Module, task: Task, batch: Batch) -> None:
    # An evaluation merges the adapters and keeps a copy of the weights beneath them.
    adapted: list[Any] = [m for m in network.modules() if hasattr(m, "base_layer")]
    aside = [layer.base_layer.weight.clone() for layer in adapted]
    for layer in adapted:
        layer.merge()
    with torch.no_grad():
        task.sums(task.forward(network.eval(), batch), batch)
    del aside


def _two_steps(
    network: nn.Module, task: Task, batch: Batch, recipe: Recipe, parts: int
) -> optim.Optimizer:
    """Take two steps, and return the optimiser with its state."""
    optimizer = make_optimizer(network.parameters(), recipe)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(parts):  # the gradients of the first part exist during the second
            loss_of(network, task, batch, recipe).backward()
        optimizer.step()
    return optimizer


def _with_tensors(network: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose parameters and buffers are made by ``make``; shared ones stay shared."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(make(p.detach()), p.requires_grad) for p in network.parameters()
    }
    memo |= {id(b): make(b) for b in network.buffers()}
    return copy.deepcopy(network, memo)


_WAYS: dict[str, dict[str, Any]] = {
    "retraining.accumulate = {batch}": {"accumulate": 0},
    "retraining.gradient_checkpointing = true": {"gradient_checkpointing": True},
    "retraining.lora = {{rank = 8}}": {"lora": Lora()},
    "all three": {"accumulate": 0, "gradient_checkpointing": True, "lora": Lora()},
    "all three and retraining.precision = 'bfloat16'": {
        "accumulate": 0,
        "gradient_checkpointing": True,
        "lora": Lora(),
        "precision": "bfloat16",
    },
}
"""Settings that save memory; those that change results least come first."""


def ways_to_fit(
    network: nn.Module,
    example: Batch,
    count: int,
    recipe: Recipe,
    task: Task,
    free: int,
    evaluated: int = 0,
) -> str:
    """Advice on what makes training fit into ``free`` bytes, or that nothing does."""
    least: int | None = None
    found: list[str] = []
    for name, fields in _WAYS.items():
        if "lora" in fields and (not isinstance(recipe, Retraining) or find_spec("peft") is None):
            continue
        changed = recipe.model_copy(
            update={n: count if n == "accumulate" else value for n, value in fields.items()}
        )
        needs = peak_bytes(network, example, count, changed, task, evaluated)
        if needs is not None:
            least = min(needs, least or needs)
            if needs <= free and len(found) < 2:
                found.append(f"{name.format(batch=count)} ({readable_bytes(needs)})")
    if found:
        return f"it fits with {' or '.join(found)}, or with a lower retraining.batch_size"
    if least is None:
        return "lower retraining.batch_size"
    return f"nothing makes it fit: {readable_bytes(least)} is the least"


def _kept_for_gradients(network: nn.Module, example: Batch, count: int) -> int | None:
    """Bytes that autograd keeps for one batch, without the weights; None where a pass fails."""
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def keep(value: Tensor) -> Tensor:
        kept[_storage(value)] = value
        return value

    with suppress(Exception), torch.random.fork_rng(devices=[]), torch.enable_grad():
        shapes_alone = _with_tensors(
            network, lambda value: torch.empty_like(value, device="meta")
        ).train()
        own = {_storage(v) for v in chain(shapes_alone.parameters(), shapes_alone.buffers())}
        with torch.device("meta"), saved_tensors_hooks(keep, lambda value: value):
            batch = {
                name: torch.empty(count, *value.shape[1:], dtype=value.dtype)
                for name, value in example.items()
            }
            args, kwargs = inputs_of(shapes_alone, batch)
            shapes_alone(*args, **kwargs)
        return sum(v.untyped_storage().nbytes() for key, v in kept.items() if key not in own)
    return None


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


class LiveBytes(Watch):
    """Follows the storages that operations make: the bytes in use now, and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            self._meet(value, new=False)
        result = func(*args, **kwargs)
        for value in pytree.tree_leaves(result):
            self._meet(value, new=True)
        return result

    def _meet(self, value: object, *, new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if new else 0

        def forget(_: object) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


def parse_bytes(text: str) -> int:
    """``"800MB"``, ``"4GiB"`` or ``"2.5 g"`` to bytes; raises :class:`InputError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    amount = float(match[1]) * _UNITS.get(match[2], 0) if match else 0.0
    if not 0 < amount < _MOST:
        raise InputError(f"expected an amount of memory such as 800MB or 4GB, got {shown(text)}")
    return int(amount)


def readable_bytes(count: int) -> str:
    """A number of bytes for readers, such as ``"1.4 GB"``."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"
