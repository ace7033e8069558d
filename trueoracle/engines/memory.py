"""How much memory there is, in bytes, and in words."""

from __future__ import annotations

import copy
import os
import re
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trueoracle.errors import InputError, shown
from trueoracle.tasks.base import Batch, inputs_of
from trueoracle.training.recipe import Recipe

__all__ = [
    "available_memory",
    "parse_bytes",
    "readable_bytes",
    "training_bytes",
    "weight_bytes",
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}
_MOST = 2.0**63
_ELSEWHERE = 4 * 10**9
"""Taken where the system does not say."""


def available_memory(device: torch.device) -> int:
    """Bytes that are free on ``device`` now, a container's limit included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    with suppress(OSError, ValueError, AttributeError):  # no Linux
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024)
    if not found:
        with suppress(OSError, ValueError, AttributeError):  # no POSIX
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cached = re.findall(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        found.append(limit - used + sum(map(int, cached)))  # files read are given up when needed
    return max(0, min(found, default=_ELSEWHERE))


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(v.nbytes for v in chain(network.parameters(), network.buffers()))


def training_bytes(network: nn.Module, example: Batch, count: int, recipe: Recipe) -> int:
    """Bytes that one network takes at least while it is trained on ``count`` examples at a time.

    Weights, their gradients, what the optimiser remembers of them, and what a forward pass keeps
    for the gradients, found by a pass over shapes alone. The last is left out where the network
    cannot be run so: one that looks at the values it computes, say.
    """
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    remembered = 2 if recipe.optimizer != "sgd" else int(recipe.momentum > 0)
    kept = _kept_for_gradients(network, example, count)
    if recipe.precision == "autocast":  # most of it in 16 bits
        kept //= 2
    return weight_bytes(network) + (1 + remembered) * trained + kept


def _kept_for_gradients(network: nn.Module, example: Batch, count: int) -> int:
    """Bytes that autograd keeps of one batch in training, weights aside; 0 where that fails."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in network.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    own = {_storage(value) for value in memo.values()}
    kept: dict[int, Tensor] = {}  # alive, so that no two have one address

    def keep(value: Tensor) -> Tensor:
        kept[_storage(value)] = value
        return value

    with suppress(Exception), torch.random.fork_rng(devices=[]), torch.enable_grad():
        shapes_alone = copy.deepcopy(network, memo).train()
        with torch.device("meta"), saved_tensors_hooks(keep, lambda value: value):
            batch = {
                name: torch.empty(count, *value.shape[1:], dtype=value.dtype)
                for name, value in example.items()
            }
            args, kwargs = inputs_of(shapes_alone, batch)
            shapes_alone(*args, **kwargs)
        return sum(v.untyped_storage().nbytes() for key, v in kept.items() if key not in own)
    return 0


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def parse_bytes(text: str) -> int:
    """``"800MB"``, ``"4GiB"`` or ``"2.5 g"`` to bytes; raises :class:`InputError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    amount = float(match[1]) * _UNITS.get(match[2], 0) if match else 0.0
    if not 0 < amount < _MOST:
        raise InputError(f"expected an amount of memory such as 800MB or 4GB, got {shown(text)}")
    return int(amount)


def readable_bytes(count: int) -> str:
    """Such as ``"1.4 GB"``."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"
