"""How long the dense network and a pruned one take: measured on the machine that runs the study."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.tasks.base import Batch, run_network

__all__ = ["latencies"]

_WARM_UP = 2
_LEAST, _MOST = 3, 31
"""How often a network is measured at least, where it is slow, and at most."""
_SECONDS = 0.5
"""Measuring the two networks on one batch ends after so long, but not before :data:`_LEAST`."""
_TOO_LONG = 5.0
"""Seconds: a batch that would take longer, by what one example takes, is not measured."""


def latencies(
    dense: nn.Module, pruned: nn.Module, data: Splits, batch_size: int, device: torch.device
) -> dict[str, list[Any]]:
    """Median seconds of one forward in evaluation mode, for one example and for a batch.

    All entries have one value per batch size: ``batch`` (examples), ``repeats``, and ``dense`` and
    ``pruned`` (seconds). The two networks are measured in turn, so that what else the machine does
    slows both. A batch that would take seconds is left out. Raises :class:`InputError` where a
    network does not run on them.
    """
    found: dict[str, list[Any]] = {"batch": [], "repeats": [], "dense": [], "pruned": []}
    devices = [device] if device.type == "cuda" else []
    for size in dict.fromkeys((1, min(batch_size, len(data.train)))):
        if found["dense"] and found["dense"][0] * size > _TOO_LONG:
            break
        batch = _on(data.example(size), device)

        def forward(network: nn.Module, batch: Batch = batch) -> None:
            run_network(network, batch, data.task)
            if devices:
                torch.cuda.synchronize(device)

        with torch.random.fork_rng(devices=devices):  # a forward of somebody's own may draw
            each = _in_turn(forward, (dense, pruned))
        found["batch"].append(size)
        found["repeats"].append(len(each[0]))
        for name, seconds in zip(("dense", "pruned"), each, strict=True):
            found[name].append(median(seconds))
    return found


def _on(batch: Batch, device: torch.device) -> Batch:
    return {n: one.to(device) if isinstance(one, Tensor) else one for n, one in batch.items()}


def _in_turn(
    forward: Callable[[nn.Module], None], networks: tuple[nn.Module, nn.Module]
) -> tuple[list[float], list[float]]:
    """The seconds that each forward takes, by network."""
    for network in networks * _WARM_UP:
        forward(network)
    each: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _SECONDS
    while len(each[0]) < _LEAST or (len(each[0]) < _MOST and time.perf_counter() < end):
        for network, seconds in zip(networks, each, strict=True):
            began = time.perf_counter()
            forward(network)
            seconds.append(time.perf_counter() - began)
    return each
