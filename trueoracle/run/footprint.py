"""The memory that a study needs, computed before anything is built or loaded for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from trueoracle.data import datasets
from trueoracle.data.splits import Split, Splits, input_shape
from trueoracle.data.streaming import (
    BATCHES_AHEAD,
    Look,
    StreamedSplit,
    decoding_threads,
    look,
    printable,
    seconds_to_read,
)
from trueoracle.engines.memory import (
    available_memory,
    evaluated_at_once,
    readable_bytes,
    training_bytes,
    weight_bytes,
)
from trueoracle.errors import InputError
from trueoracle.networks.registry import build, is_shipped
from trueoracle.run.progress import about
from trueoracle.spec.spec import DataSpec, StudySpec
from trueoracle.tasks.base import Batch, Task

__all__ = [
    "check_images",
    "check_reading",
    "check_training",
    "check_weights",
    "held_bytes",
    "part_sizes",
]

_CPU = torch.device("cpu")
_FLOAT32 = 4


class PartSizes(NamedTuple):
    """The number of images in each part of a data set."""

    train: int
    validation: int
    test: int


def part_sizes(data: DataSpec) -> PartSizes | None:
    """The sizes of a data set's parts within the caps; None where only reading it shows them."""
    counts = datasets.DATASETS[data.name].images if data.name in datasets.DATASETS else None
    if counts is None:
        return None
    train = min(counts[0], data.train_images or counts[0])
    test = min(counts[1], data.test_images or counts[1])
    validation = min(data.validation_images, train - 1)
    return PartSizes(train - validation, validation, test)


def check_images(data: DataSpec, shape: tuple[int, ...]) -> None:
    """Refuse a data set that memory does not hold, by :class:`InputError`.

    ``shape`` is that of one image. Streamed images are not held.
    """
    counts = part_sizes(data)
    if counts is None or datasets.DATASETS[data.name].is_streamed:
        return
    # Training images are held twice while the validation images are split off.
    images = 2 * (counts.train + counts.validation) + counts.test
    needed, free = images * math.prod(shape) * _FLOAT32, available_memory(_CPU)
    if needed > free:
        raise InputError(
            f"data set {data.name!r}: {sum(counts):,} images of {_by(shape)} numbers need "
            f"{readable_bytes(needed)} of memory while they are loaded, and "
            f"{readable_bytes(free)} are free: lower data.image_size, data.train_images or "
            "data.test_images"
        )


def check_weights(spec: StudySpec, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a network that comes with the package where memory does not hold its weights.

    Other factories are not called for this check, since what else they do is not known.
    """
    if not is_shipped(spec.network.name):
        return
    with torch.device("meta"):  # which has shapes only
        network = build(
            spec.network.name, spec.network.arguments, input_shape=shape, classes=classes
        )
    needed, free = weight_bytes(network), available_memory(_CPU)
    if needed > free:
        images, size = "", ""
        if shape:
            images, size = f" for images of {_by(shape)} numbers", " or data.image_size"
        raise InputError(
            f"network {spec.network.name!r}{images} has weights of {readable_bytes(needed)}, and "
            f"{readable_bytes(free)} of memory are free: lower network.arguments{size}"
        )


def check_training(
    spec: StudySpec,
    network: nn.Module,
    task: Task,
    example: Batch,
    count: int,
    device: torch.device,
) -> None:
    """Refuse a dense network that memory does not hold while it is trained here.

    ``count`` is the number of examples to train on. How pruned networks are retrained, and whether
    that fits memory, is found when the engine is chosen.
    """
    if spec.network.arrives_trained:
        return
    batch = min(spec.dense.batch_size, count)
    needed = training_bytes(network, example, batch, spec.dense, task)
    free = available_memory(device)
    if needed > free:
        numbers = " and ".join(_by(value.shape[1:]) for value in example.values() if value.ndim > 1)
        raise InputError(
            f"training the dense network on {batch:,} examples of {numbers} numbers at a time "
            f"needs {readable_bytes(needed)} of memory, and {readable_bytes(free)} are free: lower "
            "dense.batch_size or data.image_size, or set dense.accumulate or "
            "dense.gradient_checkpointing"
        )


class Reading(NamedTuple):
    """Reading images from files: seconds per image, with all threads at work, and notes on it."""

    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def check_reading(data: Splits, batch: int) -> Reading:
    """The time that reading images from files takes, and notes on it; none for images in memory.

    Refuses images that memory does not hold while they are decoded, by :class:`InputError`.
    """
    streamed = [
        split
        for split in (data.train, data.validation, data.test)
        if isinstance(split, StreamedSplit)
    ]
    if not streamed:
        return Reading()
    seen = [look(split) for split in streamed]
    split, most = max(zip(streamed, seen, strict=True), key=lambda both: both[1].at_once_bytes)
    path, (width, height) = split.folder / most.largest, most.largest_shape
    largest = f"the largest, {printable(path)} of {width:,} x {height:,} pixels"
    ahead = BATCHES_AHEAD * min(batch, len(data.train)) * math.prod(input_shape(split))
    needed, free = most.at_once_bytes + ahead, available_memory(_CPU)
    if needed > free:
        raise InputError(
            f"reading images, {decoding_threads(split)} at a time and {BATCHES_AHEAD} batches "
            f"ahead, needs {readable_bytes(needed)} of memory ({largest}, "
            f"{readable_bytes(most.largest_bytes)}), and {readable_bytes(free)} are free: shrink "
            "the files, or lower data.image_size or the batch sizes"
        )
    alone = seconds_to_read(split, most.largest)
    each = [
        _seconds_an_image(one, found, most, alone) / decoding_threads(one)
        for one, found in zip(streamed, seen, strict=True)
    ]
    count = sum(map(len, streamed))
    seconds = max(sum(len(s) * one for s, one in zip(streamed, each, strict=True)), alone)
    takes = (
        f"images: reading all {count:,} once takes {about(seconds)}; {largest}, takes "
        f"{alone:.2g} s and {readable_bytes(most.largest_bytes)}"
    )
    losses = dict.fromkeys(loss for found in seen for loss in found.losses)
    return Reading(seconds / count, (takes, *losses))


def _seconds_an_image(split: StreamedSplit, seen: Look, most: Look, alone: float) -> float:
    """Mean seconds of one thread, linear in pixels through a usual and the largest image."""
    usual = seconds_to_read(split, seen.typical)
    further = math.prod(most.largest_shape) - seen.typical_pixels
    slope = max(0.0, (alone - usual) / further) if further > 0 else 0.0
    return max(0.0, usual + slope * (seen.pixels - seen.typical_pixels))


def held_bytes(spec: StudySpec, network: nn.Module, data: Splits) -> int:
    """Bytes that a study holds while one network is trained: the data, and that network."""
    recipe = spec.retraining if spec.network.arrives_trained else spec.dense
    splits = [data.train, *(split for _, split in data.named() if split is not data.train)]
    held = sum(
        value.nbytes
        for split in splits
        if isinstance(split, Split)
        for value in split.fields.values()
    )
    batch = min(recipe.batch_size, len(data.train))
    evaluated = evaluated_at_once(data)
    return held + training_bytes(network, data.example(1), batch, recipe, data.task, evaluated)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
