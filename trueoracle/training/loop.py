"""Train one network, plainly: the reference that every faster path is tested against."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from trueoracle.data.augmentation import augment, mix
from trueoracle.data.splits import Splits
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.evaluate import evaluate
from trueoracle.training.recipe import Recipe

__all__ = ["EpochRecord", "Stream", "train"]

Stream = tuple[int, str]
"""Where random numbers come from: a seed, and a name that tells streams of one seed apart."""


@dataclass(frozen=True)
class EpochRecord:
    """One network after one epoch (counted from 0): losses in nats, accuracies as fractions.

    NaN where there is no validation split, and in the losses of a network that diverged.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.train_loss)


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
    """Train ``network`` in place and return one record an epoch.

    All random numbers (batch order, augmentation, dropout) come from ``seed``, the epoch and
    ``stream``: two networks with the same three see the same batches. A network whose training
    loss is no longer finite is stopped; its last record says so (``diverged``). With a
    ``checkpoint``, training goes on from what it keeps; ``on_epoch`` is told of those epochs too.
    """
    optimizer = make_optimizer(network.parameters(), recipe)
    records: list[EpochRecord] = []
    if checkpoint is not None:
        records = [EpochRecord(**fields) for fields in checkpoint.load(network, optimizer)]
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
            checkpoint.save(network, optimizer, records)
    return records


def train_epoch(
    network: nn.Module,
    optimizer: optim.Optimizer,
    data: Splits,
    recipe: Recipe,
    epoch: int,
    stream: Stream,
) -> None:
    """One pass over the training images, in training mode, at the epoch's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    network.train()
    with torch.random.fork_rng(devices=_cuda_devices(data)):
        torch.manual_seed(stream_seed(stream[0], epoch, "network", stream[1]))
        for images, labels in batches(data, recipe, stream[0], epoch, stream[1]):
            optimizer.zero_grad()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.autocast):
                loss = functional.cross_entropy(
                    network(images), labels, label_smoothing=recipe.label_smoothing
                )
            loss.backward()
            if recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
            optimizer.step()


def batches(
    data: Splits, recipe: Recipe, seed: int, epoch: int, stream: str = ""
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, shuffled and augmented; the last one may be smaller.

    Labels are classes ``[N]``, or class probabilities ``[N, classes]`` with mixup or cutmix. Random
    numbers are drawn on the CPU, so that every device sees the same batches.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch, "batches", stream))
    order = torch.randperm(len(data.train), generator=generator)
    drawn = data.train.training_batches(
        order.split(recipe.batch_size),
        recipe.resized_crop,
        seed=stream_seed(seed, epoch, "crops", stream),
    )
    for images, labels in drawn:
        moved = augment(
            images, shift=recipe.shift, flip=recipe.flip, fill=data.fill, generator=generator
        )
        yield mix(
            moved,
            labels,
            classes=data.classes,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            generator=generator,
        )


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
    values = {"validation_loss": math.nan, "validation_accuracy": math.nan}
    for name, split in data.named():
        metrics = evaluate(network, split)
        values |= {f"{name}_loss": metrics.loss, f"{name}_accuracy": metrics.accuracy}
    return EpochRecord(epoch=epoch, learning_rate=learning_rate, **values)


def stream_seed(seed: int, epoch: int, *names: str) -> int:
    """A 63-bit seed for one purpose: streams of different names or epochs are unrelated."""
    text = "/".join((str(seed), str(epoch), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _cuda_devices(data: Splits) -> list[int]:
    device = data.train.device
    return [device.index or 0] if device.type == "cuda" else []
