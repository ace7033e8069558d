"""How a network is trained: optimiser, schedule, epochs, batches, augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trueoracle.errors import shown

__all__ = ["DenseTraining", "Distil", "Frozen", "Lora", "Recipe", "Retraining", "Seed"]

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Frozen(BaseModel):
    """A value object: immutable, and strict about unknown fields.

    Every number has a range, outside which it is of no use; tests find a number that has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        # Python, and so pydantic, takes true for 1.
        given = next(_booleans(value), None)
        if given is not None and info.field_name is not None:
            kinds = {*_kinds(cls.model_fields[info.field_name].annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{str(given).lower()} is no number")
        return value


def _booleans(value: object) -> Iterator[bool]:
    """Every true and false in a value and in its lists and tables."""
    if isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for part in value.values() for one in _booleans(part))
    elif isinstance(value, list | tuple):
        yield from (one for part in value for one in _booleans(part))


def _kinds(annotation: object) -> Iterator[object]:
    """A type and all types that it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        yield from (one for part in get_args(annotation) for one in _kinds(part))


class Recipe(Frozen):
    """One training: the same fields for the dense network and for retraining."""

    epochs: int = Field(30, ge=1, le=1_000_000, description="passes over the training split")
    steps_per_epoch: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="at most so many steps in an epoch, on examples drawn anew for each epoch; "
        "none: all examples",
    )
    batch_size: int = Field(
        256, ge=1, le=10_000_000, description="examples per step; the last batch may be smaller"
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="compute a step's gradient in so many parts, one after the other, to save "
        "memory; each part weighs as its examples (or tokens, or pixels) that count",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, ge=1e-12, le=1e30, description="at the first epoch")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only; Adam's first beta is 0.9")
    weight_decay: float = Field(
        1e-4, ge=0, le=100, description="L2 for SGD and Adam, decoupled for AdamW"
    )
    schedule: Literal["constant", "step", "cosine", "linear"] = "step"
    schedule_per: Literal["epoch", "step"] = Field(
        "epoch",
        description="whether the rate follows the schedule from epoch to epoch, or from "
        "step to step",
    )
    milestones: tuple[Annotated[int, Field(ge=1, le=1_000_000_000)], ...] = Field(
        (),
        description="step: epochs (with schedule_per = 'step': steps), counted from 0, from which "
        "the rate is multiplied by gamma",
    )
    gamma: float = Field(0.1, ge=1e-12, le=1, description="step: factor at each milestone")
    final_learning_rate: float = Field(
        0.0, ge=0, le=1e30, description="cosine and linear: the rate approached"
    )
    warmup: float = Field(
        0.0,
        ge=0,
        le=1_000_000_000,
        description="first steps, in which the rate rises linearly: below 1 a share of all steps, "
        "from 1 on their number",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the training loss only")
    gradient_clip: float | None = Field(
        None, ge=1e-12, le=1e12, description="largest gradient norm; none: off"
    )
    precision: Literal["float32", "autocast", "bfloat16"] = Field(
        "float32",
        description="autocast: compute in bfloat16 where torch deems it safe; bfloat16: also hold "
        "the weights in it (adapters stay in float32); not by the native engine",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep less of the forward pass and compute it again for the gradients: less "
        "memory, about a third more time",
    )
    shift: int = Field(
        0, ge=0, le=10_000, description="augmentation: largest random shift, in pixels"
    )
    flip: bool = Field(False, description="augmentation: mirror half of the images left to right")
    resized_crop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="augmentation: cut out a random part of at least this area, resized to the "
        "image's size (0.08 is usual for ImageNet); none: off",
    )
    mixup: float = Field(0.0, ge=0, le=1e3, description="alpha of mixup (arXiv 1710.09412); 0: off")
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1e3,
        description="alpha of cutmix (arXiv 1905.04899); 0: off; with mixup: half each",
    )

    @model_validator(mode="before")
    @classmethod
    def _autocast_is_a_precision(cls, fields: object) -> object:
        # Older study files and records have the field `autocast` in the place of `precision`.
        if not isinstance(fields, Mapping) or "autocast" not in fields:
            return fields
        rest = {name: value for name, value in fields.items() if name != "autocast"}
        given = fields["autocast"]
        if not isinstance(given, bool):
            raise ValueError(f"autocast takes true or false, got {shown(given)}")
        meant = "autocast" if given else "float32"
        if rest.setdefault("precision", meant) != meant:
            raise ValueError(
                f"autocast = {str(given).lower()} and precision = {shown(rest['precision'])} "
                "contradict each other: leave autocast out"
            )
        return rest

    @model_validator(mode="after")
    def _schedule_fits(self) -> Recipe:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, got {list(self.milestones)}")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones need schedule 'step', not {self.schedule!r}")
        if self.warmup > 1 and not float(self.warmup).is_integer():
            raise ValueError(
                f"warmup = {self.warmup} is neither a share of all steps (below 1) nor a number "
                "of steps"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate = {self.accumulate} parts need as many examples per step, and "
                f"batch_size = {self.batch_size}"
            )
        return self

    def steps_in_epoch(self, examples: int) -> int:
        """The number of steps in one epoch, given the number of training ``examples``."""
        return min(-(-examples // self.batch_size), self.steps_per_epoch or examples)

    def examples_in_epoch(self, examples: int) -> int:
        """How many examples one epoch trains on, given the number of training ``examples``."""
        return min(examples, self.steps_in_epoch(examples) * self.batch_size)

    @property
    def examples_at_once(self) -> int:
        """The most examples whose gradient is computed at a time."""
        return -(-self.batch_size // self.accumulate)

    @property
    def rate_changes_within_epoch(self) -> bool:
        """Whether the steps of one epoch may have different learning rates."""
        return self.warmup > 0 or self.schedule_per == "step"

    def learning_rate_at(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate of a step of an epoch, both counted from 0.

        ``steps`` is the number of steps in an epoch. During warm-up the rate is (steps so far + 1)
        / warm-up of what it would be without; a schedule by steps begins when the warm-up ends.
        """
        done, total = epoch * steps + step, self.epochs * steps
        warm = self.warmup if self.warmup >= 1 else math.ceil(self.warmup * total)
        rising = min(1.0, (done + 1) / warm) if warm else 1.0
        if self.schedule_per == "epoch":
            return rising * self._scheduled(epoch, epoch / self.epochs)
        share = max(0.0, done - warm) / max(1, total - warm)
        return rising * self._scheduled(done, share)

    def _scheduled(self, place: int, share: float) -> float:
        """The rate without warm-up at ``place`` (an epoch or step), which is a ``share`` of all."""
        span = self.learning_rate - self.final_learning_rate
        if self.schedule == "step":
            return self.learning_rate * self.gamma ** sum(place >= m for m in self.milestones)
        if self.schedule == "cosine":
            half = 0.5 * (1 + math.cos(math.pi * share))
            return self.final_learning_rate + span * half
        if self.schedule == "linear":
            return self.final_learning_rate + span * (1 - share)
        return self.learning_rate


class Distil(Frozen):
    """Learning from the dense network's answers (Hinton et al. 2015, arXiv 1503.02531)."""

    weight: float = Field(0.5, ge=0, le=1, description="share of the loss; the rest is the task's")
    temperature: float = Field(4.0, ge=1e-3, le=1e3, description="of both networks' logits")


class Lora(Frozen):
    """Low-rank adapters in place of full retraining (Hu et al. 2021, arXiv 2106.09685).

    Needs the extra ``[transformers]``, which has peft.
    """

    rank: int = Field(8, ge=1, le=65_536, description="columns of A and rows of B")
    alpha: float = Field(16.0, gt=0, le=1e6, description="the adapters are scaled by alpha/rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of an adapter's inputs")
    targets: tuple[str, ...] = Field(
        (),
        description="names or patterns of the layers with adapters; none: all linear layers but "
        "the output's",
    )
    train: tuple[str, ...] = Field(
        (),
        description="names or patterns of parameters that are trained in full as well: "
        "['*projector*', '*norm*']",
    )


class DenseTraining(Recipe):
    """The recipe of the dense network, or of several that differ in their seed alone."""

    seed: Seed = Field(0, description="of the initial weights, batches and augmentation")
    seeds: tuple[Seed, ...] | None = Field(
        None,
        min_length=1,
        description="in place of seed: a dense network for each, over which the study's statements "
        "hold; none: the one of seed",
    )

    @model_validator(mode="after")
    def _one_seed_or_several(self) -> DenseTraining:
        if self.seeds is None:
            return self
        if "seed" in self.model_fields_set:
            raise ValueError(
                f"seed = {self.seed} and seeds = {list(self.seeds)} are both given: leave one out"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        # Code that trains one network reads the first seed; a list of one seed is that seed.
        self.__dict__["seed"] = self.seeds[0]
        if len(self.seeds) == 1:
            self.__dict__["seeds"] = None
        return self


class Retraining(Recipe):
    """The recipe after pruning, the same for every candidate, once for each seed."""

    learning_rate: float = Field(0.001, ge=1e-12, le=1e30, description="at the first epoch")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="one retraining each")
    distil: Distil | None = Field(
        None, description="learn from the dense network as well: {weight = 0.5, temperature = 4.0}"
    )
    lora: Lora | None = Field(
        None,
        description="train low-rank adapters, which are merged at the end, and nothing else: "
        "{rank = 8, alpha = 16}",
    )
    procedure: str | None = Field(
        None,
        max_length=500,
        description="a training of one's own in place of the recipe's: module:function, called "
        "with (network, data, recipe, seed, report)",
    )
    common_random_numbers: bool = Field(
        True, description="all candidates see the same batches and augmentation within a seed"
    )

    @model_validator(mode="after")
    def _seeds_differ(self) -> Retraining:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        return self
