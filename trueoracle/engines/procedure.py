"""Training procedures that users write themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, TrainingError, first_line
from trueoracle.registry import Registry
from trueoracle.training.loop import EpochRecord, measure, stream_seed
from trueoracle.training.recipe import Retraining

__all__ = ["PROCEDURES", "Procedure", "find_procedure", "follow_procedure"]

Procedure = Callable[..., Any]
"""``procedure(network, data, recipe, seed, report)``: trains the network.

The procedure calls ``report(epoch)`` after each epoch (counted from 0), or ``report(epoch,
network)`` where it trains another object than it was given. It may also report nothing, and train
in place or return the trained network.
"""

PROCEDURES: Registry[Procedure] = Registry("training procedure")


def find_procedure(reference: str) -> Procedure:
    """The procedure named ``module:function``; :class:`InputError` if it cannot be called."""
    found = PROCEDURES.find(reference)
    if not callable(found):
        raise InputError(f"retraining.procedure {reference!r} cannot be called")
    return found


def follow_procedure(
    network: nn.Module,
    data: Splits,
    recipe: Retraining,
    seed: int,
    on_epoch: Callable[[int], None] | None = None,
) -> list[EpochRecord]:
    """Train ``network`` by the recipe's own procedure; one record per epoch that it reports.

    The metrics of a record are measured here, as for any other network, in evaluation mode and
    without touching the random numbers. Random numbers that the procedure draws from torch's global
    generator come from ``seed``. A procedure that reports nothing has one record, for the recipe's
    last epoch. Raises :class:`TrainingError` where the procedure fails, or reports epochs that do
    not ascend.
    """
    procedure = find_procedure(recipe.procedure or "")
    records: list[EpochRecord] = []
    reported: list[nn.Module] = []

    def report(epoch: int, trained: nn.Module | None = None) -> None:
        if (records and epoch <= records[-1].epoch) or epoch < 0:
            before = records[-1].epoch if records else "the start"
            raise InputError(f"epoch {epoch} was reported after {before}")
        with torch.random.fork_rng():
            rate = recipe.learning_rate_at(epoch, 0, recipe.steps_in_epoch(len(data.train)))
            reported.append(network if trained is None else trained)
            records.append(measure(reported[-1], data, epoch, rate, by_block=True))
        if on_epoch is not None:
            on_epoch(1)

    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(seed, 0, "procedure"))
        try:
            trained = procedure(network, data, recipe, seed, report)
            final = trained if isinstance(trained, nn.Module) else network
            if not records or final is not reported[-1]:
                report(max(recipe.epochs - 1, records[-1].epoch + 1 if records else 0), final)
            if final is not network:
                network.load_state_dict(final.state_dict())
        except Exception as error:  # the user's code runs
            raise TrainingError(
                f"retraining.procedure {recipe.procedure!r} failed: {first_line(error)}"
            ) from error
    return records
