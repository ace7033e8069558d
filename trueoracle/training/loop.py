"""Train one network, plainly: the reference that every faster path is tested against."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn, optim

from trueoracle.data.augmentation import augment, mix
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, first_line
from trueoracle.tasks.base import INPUT, TARGET, Batch, Task
from trueoracle.tasks.classification import Classification, Smoothed
from trueoracle.training.adapters import Adapters
from trueoracle.training.checkpoint import Checkpoint, Keepable
from trueoracle.training.continuing import Begun, MemberState, restore, state_of
from trueoracle.training.evaluate import tally_together
from trueoracle.training.recipe import Recipe, Retraining
from trueoracle.training.savings import Rounded, checkpointed
from trueoracle.training.team import Team

__all__ = ["EpochRecord", "Stream", "Training", "train"]

Stream = tuple[int, str]
"""Where random numbers come from: a seed, and a name that tells streams of one seed apart."""


@dataclass(frozen=True)
class EpochRecord:
    """One network after one epoch (counted from 0).

    ``values`` has every metric of the task on every split (such as ``test_accuracy``): NaN where
    there is no validation split, and for the losses of a network that diverged. ``blocks`` has, by
    the same names, the sums over each block of examples; only the last epoch is measured by blocks.
    """

    epoch: int
    learning_rate: float
    values: Mapping[str, float]
    blocks: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def train_loss(self) -> float:
        """The loss on the training examples."""
        return self.values["train_loss"]

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.train_loss)

    def as_row(self) -> dict[str, Any]:
        """Epoch, learning rate and values side by side, as they are recorded."""
        return {"epoch": self.epoch, "learning_rate": self.learning_rate, **self.values}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EpochRecord:
        """The record from such a row; a metric without a number is NaN."""
        values = {n: math.nan if v is None else float(v) for n, v in row.items() if n not in _PLAIN}
        return cls(int(row["epoch"]), float(row["learning_rate"]), values)


_PLAIN = ("epoch", "learning_rate")


def epoch_record(
    epoch: int,
    learning_rate: float,
    measured: Mapping[str, Mapping[str, float]],
    task: Task,
    blocks: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> EpochRecord:
    """A record of the values ``measured`` by split and metric; NaN without a validation split."""
    values = {f"validation_{metric.name}": math.nan for metric in task.metrics}
    columns = {
        f"{split}_{metric.name}": of_split[metric.name]
        for split, of_split in measured.items()
        for metric in task.metrics
    }
    train = {name: value for name, value in columns.items() if name.startswith("train_")}
    by_column = {
        f"{split}_{metric}": tuple(sums)
        for split, of_split in (blocks or {}).items()
        for metric, sums in of_split.items()
    }
    return EpochRecord(epoch, learning_rate, train | values | columns, by_column)


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
    ``checkpoint``, training continues from what the checkpoint holds; ``on_epoch`` is also called
    for the epochs that it holds.
    """
    records: list[EpochRecord] = []
    kept = None if checkpoint is None else checkpoint.load([network])
    if kept is not None:
        records = [EpochRecord.from_row(row) for row in kept.records[0]]
    state = None if kept is None else kept.states[0]
    training = Training(network, data, recipe, (seed, stream), state)
    for record in records:
        if on_epoch is not None:
            on_epoch(record)

    def keep() -> None:
        if checkpoint is not None and checkpoint.is_due:
            rows = [record.as_row() for record in records]
            checkpoint.save([training.kept()], [rows])

    for epoch in range(len(records), recipe.epochs):
        training.train_epoch(epoch, keep)
        record = training.measure(epoch)
        records.append(record)
        if on_epoch is not None:
            on_epoch(record)
        if record.diverged:
            break
        keep()
    training.finish()
    return records


class Training:
    """One network in training, with its optimiser and, until the end, its adapters and rounding.

    ``state`` is that of an earlier training, which this one continues. With a ``team``, all its
    processes train the network together; a network that is sharded among them stays sharded. Raises
    :class:`InputError` for a recipe that does not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Splits,
        recipe: Recipe,
        stream: Stream,
        state: MemberState | None = None,
        team: Team | None = None,
    ) -> None:
        self.network = network
        self._team = team
        self._data, self._recipe, self._stream = data, recipe, stream
        self._rounded = Rounded(network) if recipe.precision == "bfloat16" else None
        self._adapters = None
        if isinstance(recipe, Retraining) and recipe.lora is not None:
            seed = stream_seed(stream[0], 0, "adapters", stream[1])
            self._adapters = Adapters(network, recipe.lora, seed)
        if team is not None and team.is_sharded:
            team.shard(network)
        self._optimizer = make_optimizer(network.parameters(), recipe)
        self._begun: Begun | None = None
        if state:
            if self._adapters is not None:
                self._adapters.restore(state)
            restore(self._optimizer, dict(network.named_parameters()), [state], stacked=False)
            self._begun = Begun.read(state)

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        """One pass over the training examples, or the rest of a pass that was begun.

        ``between_steps`` is called after steps where training could continue from :meth:`kept`.
        """
        begun, self._begun = self._begun, None

        def pause(so_far: Begun) -> None:
            self._begun = so_far
            if between_steps is not None:
                between_steps()
            self._begun = None

        train_epoch(
            self.network,
            self._optimizer,
            self._data,
            self._recipe,
            epoch,
            self._stream,
            begun=begun,
            between_steps=pause,
            team=self._team,
        )

    def wait(self) -> None:
        """Stay at the end of an epoch, which others of a population still have to finish."""
        steps = self._recipe.steps_in_epoch(len(self._data.train))
        self._begun = Begun.now(steps, self._data.train.device)

    def go_on(self) -> None:
        """Leave the end of an epoch, which all others have finished."""
        self._begun = None

    def check(self, batch: Batch) -> None:
        """Raise :class:`InputError` for a recipe by which the network computes no gradients."""
        task = training_task(self._data.task, self._recipe)
        self.network.train()
        try:
            with torch.random.fork_rng(devices=[]), checkpointed(self.network, self._recipe):
                add_gradients(self.network, task, batch, self._recipe)
        except InputError:
            raise
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"{type(self.network).__name__} cannot be trained by this recipe: "
                f"{first_line(error)}"
            ) from error
        if self._adapters is not None and (past := self._adapters.without_gradient()):
            raise InputError(
                f"lora: the network reads the weights of {past[0]} past its adapter: name other "
                "layers in lora.targets"
            )

    @contextmanager
    def measured(self) -> Iterator[nn.Module]:
        """The network as it would be if training ended now: with its adapters merged."""
        with nullcontext() if self._adapters is None else self._adapters.merged():
            yield self.network
            if self._team is not None:
                self._team.shard_again(self.network)

    def measure(self, epoch: int) -> EpochRecord:
        """All metrics on every split, after an epoch."""
        steps = self._recipe.steps_in_epoch(len(self._data.train))
        with self.measured() as network:
            rate = self._recipe.learning_rate_at(epoch, 0, steps)
            return measure(network, self._data, epoch, rate)

    def state(self, *, base: bool = True) -> MemberState:
        """What is needed to continue later, besides the network as :meth:`finish` leaves it.

        Without ``base``, the state is smaller, and continues from the network as it was given.
        """
        found = dict(state_of(self._optimizer, dict(self.network.named_parameters())))
        if self._adapters is not None:
            found |= self._adapters.state(base=base)
        if self._begun is not None:
            found |= self._begun.as_state()
        return found

    def kept(self) -> Keepable:
        """What a checkpoint keeps; of the network's own tensors, with adapters, only buffers."""
        tensors = dict(self.network.state_dict())
        if self._adapters is not None:
            buffers = {name for name, _ in self.network.named_buffers()}
            tensors = {name: value for name, value in tensors.items() if name in buffers}
        return tensors, self.state(base=False)

    def finish(self) -> None:
        """Leave the network in its given form, but trained; a sharded one stays sharded."""
        if self._team is not None and self._team.is_sharded:
            return
        if self._adapters is not None:
            self._adapters.finish()
        if self._rounded is not None:
            self._rounded.finish()


def train_epoch(
    network: nn.Module,
    optimizer: optim.Optimizer,
    data: Splits,
    recipe: Recipe,
    epoch: int,
    stream: Stream,
    *,
    begun: Begun | None = None,
    between_steps: Callable[[Begun], None] | None = None,
    team: Team | None = None,
) -> None:
    """One pass over the training examples, in training mode, at the recipe's learning rates.

    With ``begun``, the epoch continues from there. ``between_steps`` is called after each step but
    the last, with the progress so far. With a ``team``, its processes share the work of every step.
    """
    task, device = training_task(data.task, recipe), data.train.device
    steps = recipe.steps_in_epoch(len(data.train))
    first = 0 if begun is None else begun.step
    network.train()
    with torch.random.fork_rng(devices=_cuda_devices(data)), checkpointed(network, recipe):
        torch.manual_seed(stream_seed(stream[0], epoch, "network", stream[1]))
        if begun is not None:
            begun.go_on(device)
        drawn = batches(data, recipe, stream[0], epoch, stream[1], first=first)
        for step, batch in enumerate(drawn, first):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(epoch, step, steps)
            optimizer.zero_grad()
            if team is not None and not team.is_main:  # what it drops is its own, also after a kill
                own = ("network", stream[1], str(step), str(team.rank))
                torch.manual_seed(stream_seed(stream[0], epoch, *own))
            add_gradients(network, task, batch, recipe, team)
            if recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
            optimizer.step()
            if between_steps is not None and step + 1 < steps:
                between_steps(Begun.now(step + 1, device))


def add_gradients(
    network: nn.Module, task: Task, batch: Batch, recipe: Recipe, team: Team | None = None
) -> None:
    """Add the gradients of a batch's mean loss to those of the network.

    With ``accumulate``, the batch is computed in parts. Each part's mean is weighted by how much in
    it counts (tokens, pixels, examples), so that the sum is the gradient of the whole batch's mean.
    The processes of a ``team`` compute different parts of the same batch, and end with the same
    sum.
    """
    size = recipe.examples_at_once if team is None else -(-recipe.examples_at_once // team.size)
    parts = [batch] if team is None and recipe.accumulate == 1 else _parted(batch, size)
    weights = [1.0] if len(parts) == 1 else [task.weight(part) for part in parts]
    whole = sum(weights) or 1.0
    if team is None:
        for part, weight in zip(parts, weights, strict=True):
            loss = loss_of(network, task, part, recipe)
            (loss if len(parts) == 1 else loss * (weight / whole)).backward()
        return
    for place, part, counts in team.own(parts):
        share = team.size * weights[place] / whole if counts else 0.0  # averaged over processes
        (loss_of(network, task, part, recipe) * share).backward()
    team.add_up(network.parameters())


def loss_of(network: nn.Module, task: Task, batch: Batch, recipe: Recipe) -> Tensor:
    """The mean loss of a batch, in the recipe's precision."""
    device = next(iter(batch.values())).device.type
    with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "autocast"):
        return task.loss(task.forward(network, batch), batch)


def _parted(batch: Batch, size: int) -> list[Batch]:
    pieces = (value.split(size) for value in batch.values())
    return [dict(zip(batch, piece, strict=True)) for piece in zip(*pieces, strict=True)]


def batches(
    data: Splits, recipe: Recipe, seed: int, epoch: int, stream: str = "", *, first: int = 0
) -> Iterator[Batch]:
    """The batches of one epoch from number ``first`` on, shuffled and augmented.

    The last batch may be smaller. With mixup or cutmix, targets are class probabilities
    ``[N, classes]``. Random numbers are drawn on the CPU, so that every device sees the same
    batches.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch, "batches", stream))
    order = torch.randperm(len(data.train), generator=generator)
    indices = order.split(recipe.batch_size)[: recipe.steps_per_epoch]
    augmented = recipe.shift or recipe.flip or recipe.mixup or recipe.cutmix
    # Random numbers that are drawn batch by batch have to be drawn for skipped batches, too.
    skipped = 0 if augmented or recipe.resized_crop else first
    drawn = data.train.training_batches(
        indices[skipped:], recipe.resized_crop, seed=stream_seed(seed, epoch, "crops", stream)
    )
    for number, batch in enumerate(drawn, skipped):
        changed = _augmented(batch, data, recipe, generator) if augmented else batch
        if number >= first:
            yield changed


def _augmented(batch: Batch, data: Splits, recipe: Recipe, generator: torch.Generator) -> Batch:
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
    return changed


def training_task(task: Task, recipe: Recipe) -> Task:
    """The task with the recipe's changes to its loss."""
    if recipe.label_smoothing and isinstance(task, Classification):
        return Smoothed(task.classes, recipe.label_smoothing)
    return task


def make_optimizer(parameters: Iterable[Tensor], recipe: Recipe) -> optim.Optimizer:
    """The recipe's optimiser over the trainable parameters."""
    parameters = [p for p in parameters if p.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return optim.Adam(parameters, lr=rate, weight_decay=decay)
    if recipe.optimizer == "adamw":
        return optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)


def measure(
    network: nn.Module,
    data: Splits,
    epoch: int,
    learning_rate: float,
    *,
    by_block: bool = False,
) -> EpochRecord:
    """Evaluate a network on every split there is, and ``by_block`` on the data's blocks too."""
    measured, blocks = {}, {}
    for name, split in data.named():
        own = data.blocks.get(name) if by_block else None
        (tally,) = tally_together([network], split, data.task, blocks=own)
        measured[name] = {metric: float(value) for metric, value in tally.metrics().items()}
        if own is not None:
            blocks[name] = {metric: sums.tolist() for metric, sums in tally.by_block().items()}
    return epoch_record(epoch, learning_rate, measured, data.task, blocks)


def stream_seed(seed: int, epoch: int, *names: str) -> int:
    """A 63-bit seed for one purpose: streams of different names or epochs are unrelated."""
    text = "/".join((str(seed), str(epoch), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _cuda_devices(data: Splits) -> list[int]:
    device = data.train.device
    return [device.index or 0] if device.type == "cuda" else []
