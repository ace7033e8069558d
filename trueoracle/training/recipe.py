"""How a network is trained: optimiser, schedule, epochs, batches, augmentation."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["DenseTraining", "Distil", "Frozen", "Recipe", "Retraining", "Seed"]

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Frozen(BaseModel):
    """A value object: immutable, and strict about unknown fields.

    Every number has a range, beyond which it is of no use to anyone; tests find one that has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Recipe(Frozen):
    """One training: the same fields for the dense network and for retraining."""

    epochs: int = Field(30, ge=1, le=1_000_000, description="passes over the training split")
    batch_size: int = Field(
        256, ge=1, le=10_000_000, description="images per step; the last batch may be smaller"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, ge=1e-12, le=1e30, description="at the first epoch")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only; Adam's first beta is 0.9")
    weight_decay: float = Field(
        1e-4, ge=0, le=100, description="L2 for SGD and Adam, decoupled for AdamW"
    )
    schedule: Literal["constant", "step", "cosine"] = "step"
    milestones: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (), description="step: epochs (counted from 0) from which the rate is multiplied by gamma"
    )
    gamma: float = Field(0.1, ge=1e-12, le=1, description="step: factor at each milestone")
    final_learning_rate: float = Field(
        0.0, ge=0, le=1e30, description="cosine: the rate approached"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the training loss only")
    gradient_clip: float | None = Field(
        None, ge=1e-12, le=1e12, description="largest gradient norm; none: off"
    )
    autocast: bool = Field(
        False, description="train in bfloat16 where torch deems it safe; not by the native engine"
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

    @model_validator(mode="after")
    def _milestones_ascend(self) -> Recipe:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, got {list(self.milestones)}")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones need schedule 'step', not {self.schedule!r}")
        return self

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0; constant within the epoch."""
        if self.schedule == "step":
            return self.learning_rate * self.gamma ** sum(epoch >= m for m in self.milestones)
        if self.schedule == "cosine":
            span = self.learning_rate - self.final_learning_rate
            half = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
            return self.final_learning_rate + span * half
        return self.learning_rate


class Distil(Frozen):
    """Learning from the dense network's answers (Hinton et al. 2015, arXiv 1503.02531)."""

    weight: float = Field(0.5, ge=0, le=1, description="share of the loss; the rest is the task's")
    temperature: float = Field(4.0, ge=1e-3, le=1e3, description="of both networks' logits")


class DenseTraining(Recipe):
    """The recipe of the dense network."""

    seed: Seed = Field(0, description="of the initial weights, batches and augmentation")


class Retraining(Recipe):
    """The recipe after pruning, the same for every candidate, once for each seed."""

    learning_rate: float = Field(0.001, ge=1e-12, le=1e30, description="at the first epoch")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="one retraining each")
    distil: Distil | None = Field(
        None, description="learn from the dense network as well: {weight = 0.5, temperature = 4.0}"
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
