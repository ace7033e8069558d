"""Train one network, plainly: the reference that every faster path is tested against."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn, optim

from trueoracle.data.augmentation import augment, mix
from trueoracle.data.splits import Splits
from trueoracle.tasks.base import INPUT, TARGET, Batch, Task
from trueoracle.tasks.classification import Classification, Smoothed
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.evaluate import evaluate
from trueoracle.training.recipe import Recipe

__all__ = ["EpochRecord", "Stream", "train"]

Stream = tuple[int, str]
"""Where random numbers come from: a seed, and a name that tells streams of one seed apart."""


@dataclass(frozen=True)
class EpochRecord:
    """One network after one epoch (counted from 0).

    ``values`` has every metric of the task on every split (``test_accuracy``): NaN where there is
    no validation split, and in the losses of a network that diverged.
    """

    epoch: int
    learning_rate: float
    values: Mapping[str, float]

    @property
    def train_loss(self) -> float:
        """The loss on the training examples."""
        return self.values["train_loss"]

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.train_loss)

    def as_row(self) -> dict[str, Any]:
        """Its fields side by side, as they are recorded."""
        return {"epoch": self.epoch, "learning_rate": self.learning_rate, **self.values}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EpochRecord:
        """The record of such fields; a metric without a number is NaN."""
        values = {n: math.nan if v is None else float(v) for n, v in row.items() if n not in _PLAIN}
        return cls(int(row["epoch"]), float(row["learning_rate"]), values)


_PLAIN = ("epoch", "learning_rate")


def epoch_record(
    epoch: int, learning_rate: float, measured: Mapping[str, Mapping[str, float]], task: Task
) -> EpochRecord:
    """What was ``measured`` by split and metric as a record; NaN where there is no validation."""
    values = {f"validation_{metric.name}": math.nan for metric in task.metrics}
    columns = {
        f"{split}_{metric.name}": of_split[metric.name]
        for split, of_split in measured.items()
        for metric in task.metrics
    }
    train = {name: value for name, value in columns.items() if name.startswith("train_")}
    return EpochRecord(epoch, learning_rate, train | values | columns)


def train(
    network: nn.Module,
    data: Splits,
    recipe: Recipe,
    *,
    seed: int,
    stream: str = "",
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[EpochRecord]:
    """Train ``network`` in place and return one record per epoch.

    All random numbers (batch order, augmentation, dropout) come from ``seed``, the epoch and
    ``stream``: two networks with the same three see the same batches. A network whose training
    loss is no longer finite is stopped; its last record says so (``diverged``). With a
    ``checkpoint``, training goes on from what it keeps; ``on_epoch`` is told of those epochs too.
    """
    optimizer = make_optimizer(network.parameters(), recipe)
    records: list[EpochRecord] = []
    if checkpoint is not None:
        records = [EpochRecord.from_row(row) for row in checkpoint.load(network, optimizer)]
    for record in records:
        if on_epoch is not None:
            on_epoch(record)
    for epoch in range(len(records), recipe.epochs):
        train_epoch(network, optimizer, data, recipe, epoch, (seed, stream))
        record = measure(network, data, epoch, recipe.learning_rate_at(epoch))
        records.append(record)
        if on_epoch is not None:
            on_epoch(record)
        if record.diverged:
            break
        if checkpoint is not None:
            checkpoint.save(network, optimizer, [record.as_row() for record in records])
    return records


def train_epoch(
    network: nn.Module,
    optimizer: optim.Optimizer,
    data: Splits,
    recipe: Recipe,
    epoch: int,
    stream: Stream,
) -> None:
    """One pass over the training examples, in training mode, at the epoch's learning rate."""
    task = training_task(data.task, recipe)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    network.train()
    with torch.random.fork_rng(devices=_cuda_devices(data)):
        torch.manual_seed(stream_seed(stream[0], epoch, "network", stream[1]))
        for batch in batches(data, recipe, stream[0], epoch, stream[1]):
            optimizer.zero_grad()
            with torch.autocast(data.train.device.type, torch.bfloat16, enabled=recipe.autocast):
                loss = task.loss(task.forward(network, batch), batch)
            loss.backward()
            if recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
            optimizer.step()


def batches(
    data: Splits, recipe: Recipe, seed: int, epoch: int, stream: str = ""
) -> Iterator[Batch]:
    """The batches of one epoch, shuffled and augmented; the last one may be smaller.

    Targets are class probabilities ``[N, classes]`` with mixup or cutmix. Random numbers are drawn
    on the CPU, so that every device sees the same batches.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch, "batches", stream))
    order = torch.randperm(len(data.train), generator=generator)
    drawn = data.train.training_batches(
        order.split(recipe.batch_size),
        recipe.resized_crop,
        seed=stream_seed(seed, epoch, "crops", stream),
    )
    for batch in drawn:
        if not (recipe.shift or recipe.flip or recipe.mixup or recipe.cutmix):
            yield batch
            continue
        images = augment(
            batch[INPUT], shift=recipe.shift, flip=recipe.flip, fill=data.fill, generator=generator
        )
        changed = {**batch, INPUT: images}
        if recipe.mixup or recipe.cutmix:
            changed[INPUT], changed[TARGET] = mix(
                images,
                batch[TARGET],
                classes=cast(Classification, getattr(data.task, "task", data.task)).classes,
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                generator=generator,
            )
        yield changed


def training_task(task: Task, recipe: Recipe) -> Task:
    """The task with what the recipe does to its loss."""
    if recipe.label_smoothing and isinstance(task, Classification):
        return Smoothed(task.classes, recipe.label_smoothing)
    return task


def make_optimizer(parameters: Iterable[Tensor], recipe: Recipe) -> optim.Optimizer:
    """The recipe's optimiser over those parameters that train."""
    parameters = [p for p in parameters if p.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return optim.Adam(parameters, lr=rate, weight_decay=decay)
    if recipe.optimizer == "adamw":
        return optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)


def measure(network: nn.Module, data: Splits, epoch: int, learning_rate: float) -> EpochRecord:
    """Evaluate a network on every split there is."""
    measured = {name: evaluate(network, split, data.task) for name, split in data.named()}
    return epoch_record(epoch, learning_rate, measured, data.task)


def stream_seed(seed: int, epoch: int, *names: str) -> int:
    """A 63-bit seed for one purpose: streams of different names or epochs are unrelated."""
    text = "/".join((str(seed), str(epoch), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _cuda_devices(data: Splits) -> list[int]:
    device = data.train.device
    return [device.index or 0] if device.type == "cuda" else []
