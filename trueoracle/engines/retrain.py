"""The one place where candidates of a dense network are pruned and retrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines.choose import train_epochs
from trueoracle.engines.procedure import follow_procedure
from trueoracle.networks.copying import copied
from trueoracle.tasks.distillation import Distilled
from trueoracle.training.checkpoint import Checkpoint
from trueoracle.training.continuing import MemberState
from trueoracle.training.loop import EpochRecord, Stream, training_task
from trueoracle.training.recipe import Retraining

__all__ = ["retrain", "retraining_data", "stream_of"]


def stream_of(recipe: Retraining, seed: int, candidate: str) -> Stream:
    """Where a candidate's random numbers come from: by default the same for all under a seed."""
    return seed, "" if recipe.common_random_numbers else candidate


def retraining_data(data: Splits, recipe: Retraining, dense: nn.Module) -> Splits:
    """The data with the task of retraining: the data's own, or learning from ``dense`` as well."""
    if recipe.distil is None:
        return data
    teacher = copied(dense).to(data.train.device)
    task = training_task(data.task, recipe)
    distilled = Distilled(task, teacher, recipe.distil.weight, recipe.distil.temperature)
    return replace(data, task=distilled)


def retrain(
    networks: Sequence[nn.Module],
    streams: Sequence[Stream],
    data: Splits,
    recipe: Retraining,
    *,
    engine: str,
    epochs: range | None = None,
    states: Sequence[MemberState] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[list[list[EpochRecord]], list[MemberState]]:
    """Retrain pruned networks in place, for some ``epochs`` of the recipe or all of them.

    A recipe with a ``procedure`` of its own trains them one after the other, without a
    ``checkpoint``. ``data`` comes from :func:`retraining_data`. All else is as in
    :func:`trueoracle.engines.choose.train_epochs`.
    """
    if recipe.procedure is not None:
        records = [
            follow_procedure(network, data, recipe, seed, on_epoch)
            for network, (seed, _) in zip(networks, streams, strict=True)
        ]
        return records, [{} for _ in networks]
    return train_epochs(
        networks,
        streams,
        data,
        recipe,
        epochs or range(recipe.epochs),
        engine=engine,
        states=states,
        on_epoch=on_epoch,
        checkpoint=checkpoint,
    )
