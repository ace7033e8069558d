"""Oracle scores: one pruned network at a time, sharing in PyTorch, and the native kernels.

    python benchmarks/scoring.py            252 candidates, and a part of the 184,756 of width 20
    python benchmarks/scoring.py --all      all 184,756: some minutes

LeNet5-Mini, conv1 at 0.5, on 4,000 digits. One at a time is measured on a few candidates and scaled
up; the ways take turns, and the fastest of the rounds counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import machine, peak_bytes, show, timed
from torch import nn

from trueoracle.criteria.shared import SharedLosses, evaluate_all, evaluate_each
from trueoracle.data import datasets
from trueoracle.data.splits import Splits
from trueoracle.native.library import kernels
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import Candidates, list_candidates
from trueoracle.pruning.walk import find_groups

FEW = 6
"""Candidates evaluated one at a time."""


def setting(width: int) -> tuple[nn.Module, Candidates, Splits]:
    """The dense network, all candidates, and the digits."""
    torch.manual_seed(0)
    dense = build("lenet5-mini", {"width": width}, input_shape=(1, 32, 32), classes=10).eval()
    data = datasets.load("mnist-5k", validation_images=0, split_seed=0)
    available = find_groups(dense, data.train.inputs[:2])
    return dense, list_candidates(available, {"conv1": 0.5}), data


def score_all(width: int, count: int) -> Callable[[], object]:
    """For a fresh process: prepare, and return the scoring of some candidates."""
    dense, candidates, data = setting(width)
    some = candidates.take(range(count))
    return lambda: evaluate_all(dense, some, data.train, data.task)


def _keep(way: Callable[[], np.ndarray], found: list[np.ndarray]) -> None:
    found.append(way())


def measure(width: int, count: int, rounds: int) -> list[dict[str, Any]]:
    """One row a way of scoring ``count`` candidates of a network of this width."""
    dense, candidates, data = setting(width)
    some = candidates.take(range(min(count, len(candidates))))
    few = some.take(range(FEW))

    def each() -> np.ndarray:
        return evaluate_each(dense, few, data.train, data.task)

    def shared() -> np.ndarray:
        images, labels = data.train.inputs, data.train.targets
        return SharedLosses(dense, some, images[:16]).losses(images, labels)

    def best() -> np.ndarray:
        return evaluate_all(dense, some, data.train, data.task)

    ways = {"one by one": each, "shared": shared, "native": best}
    if not kernels():
        del ways["native"]
    if count > 1000:
        del ways["shared"]
    seconds = dict.fromkeys(ways, float("inf"))
    losses = {}
    for _ in range(rounds):
        for name, way in ways.items():
            keep: list[np.ndarray] = []
            seconds[name] = min(seconds[name], timed(partial(_keep, way, keep)))
            losses[name] = keep[0]
    each_second = seconds["one by one"] / FEW
    return [
        {
            "width": width,
            "way": name,
            "candidates": len(some) if name != "one by one" else FEW,
            "seconds": seconds[name] if name != "one by one" else each_second * len(some),
            "seconds_for_all": (
                each_second * len(candidates)
                if name == "one by one"
                else seconds[name] / len(some) * len(candidates)
            ),
            "ratio_to_one_by_one": (
                1.0 if name == "one by one" else each_second * len(some) / seconds[name]
            ),
            "largest_difference": float(np.abs(losses[name][:FEW] - losses["one by one"]).max()),
            "peak_mb": None
            if name != "native"
            else peak_bytes(score_all, width, min(len(some), 8192)) / 1e6,
        }
        for name in ways
    ]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="all 184,756 candidates of width 20")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest round counts [5]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(10, 252, options.rounds)
    rows += measure(20, 184_756 if options.all else 4096, 1 if options.all else 2)
    show({"machine": machine(), "rows": rows}, options.json, rows)


if __name__ == "__main__":
    main()
