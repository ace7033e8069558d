"""Evaluate networks on one split by a task's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from trueoracle.data.splits import AnySplit
from trueoracle.tasks.base import Batch, Task

__all__ = [
    "Tally",
    "add_sums",
    "evaluate",
    "evaluate_together",
    "evaluation_batch",
    "tally_together",
]

_MOST_EXAMPLES = 500
"""Most examples in a batch: 500 small images fit a CPU's cache, and larger batches were slower."""

_MOST_NUMBERS = 128 * 3 * 224 * 224
"""Most numbers in a batch: large images, and logits of a vocabulary, take memory."""

_MOST_TOKENS = 8192
"""Most tokens in a batch of texts whose vocabulary is not known."""


def evaluation_batch(split: AnySplit) -> int:
    """How many examples are evaluated at a time: 500 small ones, fewer large ones.

    The size of a text is that of its logits: one number for each token and each vocabulary entry.
    """
    tokens = math.prod(split.shapes.get("input_ids", ()))
    numbers = sum(math.prod(shape) for shape in split.shapes.values())
    numbers += tokens * getattr(split, "vocabulary", 0)
    most = min(_MOST_NUMBERS // max(1, numbers), _MOST_TOKENS // tokens)
    return max(1, min(_MOST_EXAMPLES, most))


def evaluate(
    network: nn.Module, split: AnySplit, task: Task, batch_size: int | None = None
) -> dict[str, float]:
    """The metrics by name, in evaluation mode, without augmentation; the mode is restored.

    Batches are added up in float64. ``batch_size`` (by default :func:`evaluation_batch`) bounds
    memory and changes nothing else.
    """
    return evaluate_together([network], split, task, batch_size)[0]


def evaluate_together(
    networks: Sequence[nn.Module], split: AnySplit, task: Task, batch_size: int | None = None
) -> list[dict[str, float]]:
    """Evaluate each of some networks, as :func:`evaluate`, going through the examples once."""
    found = tally_together(networks, split, task, batch_size)
    return [{name: float(value) for name, value in one.metrics().items()} for one in found]


def tally_together(
    networks: Sequence[nn.Module],
    split: AnySplit,
    task: Task,
    batch_size: int | None = None,
    blocks: Tensor | None = None,
) -> list[Tally]:
    """Each network's sums over a split, and over the ``blocks`` ``[N]`` of its examples."""
    modes = [network.training for network in networks]
    tallies = [Tally(task, blocks) for _ in networks]
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode():
            for batch in split.batches(batch_size or evaluation_batch(split)):
                for network, tally in zip(networks, tallies, strict=True):
                    tally.add(task.forward(network, batch), batch)
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    return tallies


class Tally:
    """A task's sums for its metrics, added up over the batches of a split in float64.

    ``blocks`` ``[N]`` is the block of each example; each block is also added up by itself. With
    ``stacked``, outputs are ``[P, N, ...]``, of P networks.
    """

    def __init__(self, task: Task, blocks: Tensor | None = None, *, stacked: bool = False) -> None:
        self._sums = vmap(task.sums, (0, None)) if stacked else task.sums
        self._axis = int(stacked)
        self._finish = task.finish
        self._totals: dict[str, Tensor] = {}
        self._blocks, self._seen = blocks, 0
        self._sizes = torch.zeros(0) if blocks is None else blocks.bincount().double()
        self._parts: list[dict[str, Tensor]] = [{} for _ in self._sizes]

    def add(self, outputs: Any, batch: Batch) -> None:
        """Add the networks' outputs for the next examples of the split."""
        add_sums(self._totals, self._sums(outputs, dict(batch)))
        if self._blocks is None:
            return
        first = next(iter(batch.values()))
        own = self._blocks[self._seen : self._seen + len(first)]
        self._seen += len(first)
        for block in own.unique().tolist():
            some = (own == block).nonzero()[:, 0].to(first.device)
            part = {name: value[some] for name, value in batch.items()}
            given = pytree.tree_map(lambda v, i=some: v.index_select(self._axis, i), outputs)
            add_sums(self._parts[block], self._sums(given, part))

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of all examples by name, ``[P]`` where networks are stacked."""
        return self._finish(self._totals)

    def by_block(self) -> dict[str, Tensor]:
        """The sums of each metric over the examples of each block, ``[B]`` or ``[P, B]``.

        A metric that is a mean over examples has such sums. For any other metric they are the
        weighted jackknife's pseudo-values (Busing et al. 1999, Statistics and Computing 9, section
        2): the number of examples times the metric, less the same product without the block.
        """
        totals: dict[str, Tensor] = {}
        for part in self._parts:
            add_sums(totals, part)
        whole = self._finish(totals)
        count = float(self._sizes.sum())
        found: dict[str, list[Tensor]] = {name: [] for name in whole}
        for part, size in zip(self._parts, self._sizes.tolist(), strict=True):
            own = self._finish(part)
            rest = self._finish({name: total - part[name] for name, total in totals.items()})
            for name, value in whole.items():
                pseudo, total = count * value - (count - size) * rest[name], size * own[name]
                # For a mean, pseudo-values equal the sums, but for the rounding of a difference.
                same = torch.isclose(pseudo, total, rtol=1e-9, atol=1e-9)
                found[name].append(torch.where(same, total, pseudo))
        return {name: torch.stack(values, dim=-1) for name, values in found.items()}


def add_sums(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add a batch's sums to those of the batches before, in float64."""
    for name, value in sums.items():
        exact = value.double()
        totals[name] = totals[name] + exact if name in totals else exact
