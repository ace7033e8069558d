"""Criteria that retrain a little: a few steps, or batch norm's statistics alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueoracle.criteria.base import criterion
from trueoracle.criteria.samples import filled_sample, sample
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.engines.choose import Plan, plan
from trueoracle.engines.retrain import retrain, retraining_data
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.pruning.candidates import CandidateList
from trueoracle.tasks.metric import headline
from trueoracle.training.evaluate import evaluate
from trueoracle.training.recipe import Retraining

__all__ = ["STEPS", "eagleeye", "loss_after_steps", "oracle_bn"]

STEPS = 20
"""Steps of retraining before the loss is measured."""

STATISTICS_BATCH = 128
"""Images per batch where batch norm's statistics are estimated anew."""


@criterion(
    "loss-after-steps",
    label="train loss after 20 steps of retraining",
    source="a retraining cut short, as successive halving does: Jamieson & Talwalkar 2016 "
    "(arXiv 1502.07943)",
    basis="ours",
    separable=True,
    uses_recipe=True,
)
def loss_after_steps(
    dense: nn.Module, candidates: CandidateList, data: Splits, recipe: Retraining
) -> np.ndarray:
    """Train loss (nats) after 20 steps of the study's retraining. Scores ``[P]``.

    The recipe's optimiser, batch size, regularisation and augmentation, at its first learning rate
    throughout. The steps are whole batches of a fixed part of the training images, the same for
    all candidates, gone through more than once where 20 batches are more than there are images;
    with ``distil``, the dense network is the teacher. Then the task's loss over the training
    examples, in evaluation mode; NaN where training diverged. Not applicable to a recipe with a
    ``procedure``, which decides itself how many steps it takes.
    """
    if recipe.procedure is not None:
        raise NotApplicableError(
            f"retraining.procedure {recipe.procedure!r} decides itself how many steps it takes"
        )
    short, few = _cut_short(recipe, data)
    few = retraining_data(few, short, dense)
    networks = len(candidates)
    example = candidates.prune(dense, 0)
    planned = _plan(example, few, short, networks, is_uniform=candidates.is_uniform)
    size = planned.group * planned.groups
    losses: list[float] = []
    for start in range(0, networks, size):
        some = [candidates.prune(dense, i) for i in range(start, min(start + size, networks))]
        # This stream belongs to no seed of the study: its retrainings see other batches.
        stream = (0, "loss-after-steps")
        records, _ = retrain(some, [stream] * len(some), few, short, engine=planned.engine)
        losses += [own[-1].train_loss for own in records]
    return np.array(losses)


@criterion(
    "oracle-bn",
    label="pruned train loss with new batch norm statistics",
    source="Li et al. 2020 (EagleEye, arXiv 2007.02491), section 3",
    basis="derived: the train loss in the place of a held-out accuracy",
    version=2,
    separable=True,
    conditional=True,
)
def oracle_bn(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Pruned train loss (nats) after estimating batch norm's statistics anew. Scores ``[P]``.

    Means and variances of every batch norm are averaged over batches of 128 of a fixed 512 of the
    training images, in a fixed random order, passed through the pruned network, all else in
    evaluation mode and no weight changed; then the mean cross-entropy over the training images.
    Not applicable where no batch norm keeps statistics.
    """
    return _adapted(dense, candidates, data, data.measured_train, "loss")


@criterion(
    "eagleeye",
    label="minus pruned validation accuracy with new batch norm statistics",
    source="Li et al. 2020 (EagleEye, arXiv 2007.02491), section 3",
    basis="as published: statistics of 512 images",
    version=2,
    separable=True,
    conditional=True,
)
def eagleeye(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Minus the validation accuracy with batch norm's statistics estimated anew. ``[P]``.

    The statistics are those of ``oracle-bn``, of training images; the images on which accuracy is
    measured are no training images. Of other tasks it is their first metric beside the loss, with a
    minus where higher is better. Not applicable without batch norm, a validation split, or such a
    metric.
    """
    if data.validation is None:
        raise NotApplicableError("there is no validation split (data.validation_images = 0)")
    metric = headline(data.task.metrics)
    if metric.name == "loss":
        raise NotApplicableError(f"task {data.task.label!r} measures nothing but its loss")
    values = _adapted(dense, candidates, data, data.validation, metric.name)
    return -values if metric.better == "higher" else values


def _adapted(
    dense: nn.Module, candidates: CandidateList, data: Splits, split: AnySplit, metric: str
) -> np.ndarray:
    """A metric ``[P]`` of the pruned networks with batch norm statistics of their own."""
    if not any(_norms(dense)):
        raise NotApplicableError("the network has no batch norm")
    few = sample(data.train, data.task)
    # Shuffled: a sample is in the data's order, often by class, and batches would be of few.
    order = torch.randperm(len(few), generator=torch.Generator().manual_seed(0))
    values = []
    for index in range(len(candidates)):
        network = candidates.prune(dense, index).eval()
        for norm in _norms(network):
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        with torch.no_grad():
            for start in range(0, len(few), STATISTICS_BATCH):
                if start + 1 < len(few) or len(few) == 1:  # a batch of one has no statistics
                    rows = order[start : start + STATISTICS_BATCH]
                    data.task.forward(network, few.take(rows.to(few.device)).fields)
        values.append(evaluate(network, split, data.task)[metric])
    return np.array(values)


def _norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """The batch norms that keep statistics."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            yield module


def _plan(
    network: nn.Module, data: Splits, recipe: Retraining, members: int, *, is_uniform: bool
) -> Plan:
    """A plan with the first engine that can, in a fixed order, as rounding depends on engines."""
    for name in ("native", "wide") if is_uniform else ():
        try:
            return plan(network, data, recipe, members=members, engine=name)
        except InputError:  # the engine cannot train the network, or memory holds no population
            continue
    return plan(network, data, recipe, members=members, engine="loop")


def _cut_short(recipe: Retraining, data: Splits) -> tuple[Retraining, Splits]:
    """The recipe and images for :data:`STEPS` steps, all of them whole batches if possible."""
    batch = min(recipe.batch_size, len(data.train))
    a_pass = len(data.train) // batch
    passes = next(n for n in range(1, STEPS + 1) if STEPS % n == 0 and STEPS // n <= a_pass)
    part = filled_sample(data.train, data.task, STEPS // passes * batch)
    short = recipe.model_copy(
        update={
            "epochs": passes,
            "batch_size": batch,
            "steps_per_epoch": None,
            "schedule": "constant",
            "schedule_per": "epoch",
            "milestones": (),
            "warmup": 0.0,
        }
    )
    # A criterion must not see validation and test images, but Splits needs a test split.
    one = data.measured_train.take(torch.arange(1))
    few = Splits(part, None, one, data.task, data.fill, data.measured_train)
    return short, few
