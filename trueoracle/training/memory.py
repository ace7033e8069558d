"""How much memory there is, in bytes, and in words."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import torch

from trueoracle.errors import InputError, shown

__all__ = ["available_memory", "parse_bytes", "readable_bytes"]

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
