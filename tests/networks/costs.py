"""What a network costs, counted without computing anything."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trueoracle.networks.registry import build


def count(name: str, shape: tuple[int, ...], classes: int, **arguments: Any) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one image."""
    with torch.device("meta"):
        network = build(name, arguments, input_shape=shape, classes=classes).eval()
        image = torch.empty(1, *shape)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2
