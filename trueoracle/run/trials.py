"""Trials on a few examples before long work: of pruning, recipes, batches and criteria."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import torch
from torch import nn

from trueoracle.analysis.numbers import many
from trueoracle.criteria.base import Criterion, find_criterion
from trueoracle.criteria.importance import importance_of
from trueoracle.data.splits import Split, Splits
from trueoracle.engines.base import what_only_the_loop_does
from trueoracle.errors import InputError, NotApplicableError, first_line
from trueoracle.networks.copying import copied
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.depth import DepthCandidates, check_depth
from trueoracle.pruning.parity import check_parity
from trueoracle.pruning.unstructured import WeightCandidates, check_masks
from trueoracle.run.material import EXAMPLES
from trueoracle.run.progress import about
from trueoracle.spec.spec import (
    StudySpec,
)
from trueoracle.tasks.base import (
    INPUT,
    Batch,
    Task,
    as_input,
    in_words,
    run_network,
)
from trueoracle.tasks.classification import Classification
from trueoracle.training.loop import Training
from trueoracle.training.recipe import Recipe

__all__ = [
    "slow_in_words",
    "try_around",
    "try_batches",
    "try_criteria",
    "try_pruning",
    "try_recipes",
    "try_training",
]

_SLOW_SECONDS = 1.0


def slow_in_words(network: nn.Module, task: Task, example: Batch, spec: StudySpec) -> str:
    """How long training takes, where one pass over a few examples takes a second or more."""
    tried = copied(network).eval()
    seconds = 0.0
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        with suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
            # Where the network does not run, finding the groups gives the best error.
            task.forward(tried, example)
        seconds = time.perf_counter() - started
        if seconds < _SLOW_SECONDS:
            return ""
    recipe = spec.retraining if spec.network.arrives_trained else spec.dense
    epoch = about(3 * 1000 * seconds / EXAMPLES)  # a step costs three forward passes
    return (
        f"the network takes {seconds:.2g} s for {EXAMPLES} examples on the CPU: checking the "
        f"study takes minutes, and training it {epoch} for each of "
        f"{many(recipe.epochs, 'epoch')} and 1,000 examples"
    )


def try_pruning(network: nn.Module, candidates: CandidateList, example: Batch) -> None:
    """Try the pruning itself, each kind in its own way."""
    given = as_input(network, example)
    if candidates.units == "weights":
        check_masks(network, cast(WeightCandidates, candidates), given)
    elif candidates.units == "layers":
        check_depth(network, cast(DepthCandidates, candidates), given)
    else:
        check_parity(network, cast(Candidates, candidates), given)


def try_recipes(network: nn.Module, task: Task, example: Batch, spec: StudySpec) -> None:
    """Check that the network trains by the study's recipes; raises :class:`InputError`."""
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError("none of the network's parameters requires a gradient: nothing can train")
    shape = tuple(example[INPUT].shape[1:]) if INPUT in example else ()
    is_image = len(shape) == 3 and example[INPUT].is_floating_point()
    classes = task.classes if isinstance(task, Classification) else None
    for stage, recipe in (("dense", spec.dense), ("retraining", spec.retraining)):
        for name in ("shift", "flip", "resized_crop", "cutmix"):
            if getattr(recipe, name) and not is_image:
                raise InputError(f"{stage}.{name} needs images [C, H, W], got {in_words(example)}")
            if getattr(recipe, name) and task.has_spatial_targets:
                raise InputError(
                    f"{stage}.{name} would move images and not what task {task.label!r} compares "
                    "them with: augment the data that is given"
                )
        if recipe.shift and recipe.shift >= min(shape[1:]):
            raise InputError(
                f"{stage}.shift = {recipe.shift:,} moves images of {shape[1]}x{shape[2]} pixels "
                "out of sight: expected fewer pixels than a side has"
            )
        for name in ("mixup", "cutmix", "label_smoothing"):
            if getattr(recipe, name) and classes is None:
                raise InputError(f"{stage}.{name} needs classes, and task {task.label!r} has none")
        if recipe.mixup or recipe.cutmix:
            logits = run_network(network, example, task).shape[1]
            if logits != classes:
                raise InputError(
                    f"{stage}.mixup and {stage}.cutmix need one logit for each of {classes} "
                    f"classes: network {spec.network.name!r} gives {logits}"
                )
    if spec.retraining.distil is not None:
        task.logits(run_network(network, example, task))


def try_training(
    network: nn.Module, candidates: CandidateList, task: Task, example: Batch, spec: StudySpec
) -> None:
    """Try a step of each recipe that adds something to the network, on networks of its stage."""
    data = Splits(Split(example), None, Split(example), task)
    stages: list[tuple[str, Recipe, Callable[[], nn.Module]]] = [
        ("retraining", spec.retraining, lambda: candidates.prune(network, 0))
    ]
    if not spec.network.arrives_trained:
        stages.append(("dense", spec.dense, lambda: copied(network)))
    for stage, recipe, made in stages:
        if what_only_the_loop_does(recipe):
            try:
                Training(made(), data, recipe, (0, "")).check(example)
            except InputError as error:
                raise InputError(f"{stage}: {error}") from error


def try_batches(network: nn.Module, data: Splits, spec: StudySpec) -> None:
    """Refuse a last batch of one image where the network cannot train on one."""
    for stage, recipe in (("dense", spec.dense), ("retraining", spec.retraining)):
        if stage == "dense" and spec.network.arrives_trained:
            continue
        size, examples = recipe.batch_size, recipe.examples_in_epoch(len(data.train))
        # What is computed at once: of a full batch and of the last one, the last part.
        each = recipe.examples_at_once
        batches = {min(size, examples), examples % size} - {0}
        if all((batch % each or min(batch, each)) > 1 for batch in batches):
            continue
        try:
            data.task.forward(copied(network).train(), data.example(1))
        except Exception as error:  # the user's forward runs, which can raise anything
            parts = "" if recipe.accumulate == 1 else f" computed in {recipe.accumulate} parts"
            last = "batch" if recipe.accumulate == 1 else "part"
            raise InputError(
                f"{stage}.batch_size = {size}{parts} leaves a last {last} of one example (of "
                f"{examples:,}), on which the network cannot train: {first_line(error)}"
            ) from error


def try_around(
    network: nn.Module, candidates: CandidateList, data: Splits, name: str | None
) -> None:
    """Refuse to draw candidates around a criterion that does not score filters or weights."""
    if name is None:
        return
    try:
        importance_of(find_criterion(name), copied(network).eval(), candidates, data.few(16))
    except NotApplicableError as reason:
        if not reason.of_images:  # with all images it may apply
            raise InputError(f"pruning.candidates = 'around:{name}': {reason}") from reason


def try_criteria(
    network: nn.Module,
    candidates: CandidateList,
    criteria: Mapping[str, Criterion],
    data: Splits,
    spec: StudySpec,
    *,
    shipped: bool,
) -> dict[str, str]:
    """Try criteria on a few candidates and images, before anything rests on them.

    Tried are a user's own criteria, and shipped ones that do not apply to everything or are given
    parameters; where the network is not ``shipped``, all criteria are tried, since any may fail on
    it. Returns the reason by criterion for those that do not apply, and for shipped ones that fail.
    Raises :class:`InputError` where no criterion is left, and where a user's own criterion or one
    with given parameters fails.
    """
    skipped: dict[str, str] = {}
    for name, criterion in criteria.items():
        is_plain = criterion.is_shipped and not criterion.settings
        if shipped and is_plain and not criterion.conditional:
            try:
                criterion.check(candidates)
            except NotApplicableError as reason:
                skipped[name] = str(reason)
            continue
        few, count = (1, 16) if criterion.is_shipped else (3, 64)
        try:
            criterion(
                copied(network).eval(),
                candidates.take(range(min(few, len(candidates)))),
                data.few(count),
                spec.retraining,
            )
        except NotApplicableError as reason:
            if not reason.of_images:  # with all images it may apply
                skipped[name] = str(reason)
        except InputError as reason:
            if not is_plain:  # its author can mend it
                raise
            skipped[name] = str(reason)
    if len(skipped) == len(criteria):
        raise InputError(f"no criterion of the study applies: {'; '.join(skipped.values())}")
    return skipped
