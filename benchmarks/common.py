"""What the benchmarks share: the machine in words, its matrix product, peak memory."""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import trueoracle
from trueoracle.native.library import kernels, missing


def machine() -> dict[str, Any]:
    """Versions and hardware, for the head of every result."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    return {
        "trueoracle": trueoracle.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "native": kernels()[0].name if kernels() else missing(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def sgemm_gflops(size: int = 2048, rounds: int = 3) -> float:
    """What this machine's matrix product reaches now, in GFLOP/s."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    seconds = min(timed(lambda: a @ b) for _ in range(rounds))
    return 2 * size**3 / seconds / 1e9


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes(work: Callable[..., object], *args: object) -> int:
    """The most memory that ``work(*args)`` takes in a fresh process, beyond what it began with.

    ``work`` prepares, and returns a function to be measured.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_peak, (work, args)))


def _peak(work: Callable[..., Callable[[], object]], args: tuple[object, ...]) -> int:
    measured = work(*args)
    before = _resident()
    measured()
    return max(0, _most_resident() - before)


def _resident() -> int:
    return _status("VmRSS")


def _most_resident() -> int:
    return _status("VmHWM")  # since the program began, where getrusage inherits the parent's


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def show(result: dict[str, Any], as_json: bool, rows: list[dict[str, Any]]) -> None:
    """Print everything as JSON, or the rows as a table under the machine's description."""
    if as_json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items() if value))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [columns, *([_text(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    if value is None:
        return "–"
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,}"
        if (isinstance(value, int | float))
        else str(value)
    )
