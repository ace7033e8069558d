"""Studies that several processes run together: ``accelerate launch … RUNS ENGINE``.

What they record is compared with what one process records.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from tests.training.tiny import Block, answers, reader
from trueoracle import Study

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"accumulate": 2, "gradient_clip": 0.1, "gradient_checkpointing": True},
    "adapters": {"lora": {"rank": 2, "alpha": 4}},
    "rounded": {"precision": "bfloat16"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "structured": {"layers": {"blocks.0.up": 0.5}, "candidates": 2},
    "sparse": {"kind": "unstructured", "layers": {"blocks.*.up": 0.5}, "candidates": 2},
}
STUDIES = {
    "plain": ("plain", "structured"),
    "parts": ("parts", "structured"),
    "adapters": ("adapters", "structured"),
    "rounded": ("rounded", "structured"),
    "masks": ("plain", "sparse"),
    "masked": ("adapters", "sparse"),
}
"""Recipe and pruning of each."""


def study(name: str, runs: str) -> Study:
    """Seven texts a step, of 20, so that processes share nothing evenly; without dropout."""
    recipe, shape = STUDIES[name]
    network = reader()
    for block in network.blocks:
        assert isinstance(block, Block)
        block.dropout.p = 0.0
    return Study(
        name=name,
        network=network,
        data=answers(20),
        pruning=SHAPES[shape],
        criteria=["oracle"],
        retraining={
            "epochs": 2,
            "batch_size": 7,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "seeds": [0],
            **RECIPES[recipe],
        },
        runs=runs,
    )


def main() -> None:
    runs, engine, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for name in names or STUDIES:
        study(name, runs).run(progress=False, device="auto", engine=engine)


if __name__ == "__main__":
    main()
