"""A study from start to end: its stages in order; each stage skips what is recorded already."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path

from trueoracle.analysis.numbers import many, quantity
from trueoracle.analysis.outcomes import failures_in_words
from trueoracle.analysis.power import power
from trueoracle.engines.memory import readable_bytes
from trueoracle.errors import RETRY
from trueoracle.executors.base import as_executor
from trueoracle.pruning.cost import cost
from trueoracle.run.adopt import adopt
from trueoracle.run.dense import make_dense, warn_of_chance
from trueoracle.run.drive import check_executor
from trueoracle.run.footprint import held_bytes
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import Progress
from trueoracle.run.retrain import (
    check_retraining,
    follow,
    plan_retraining,
    retrain_candidates,
)
from trueoracle.run.score import list_candidates, score_candidates
from trueoracle.run.sitting import Sitting, sitting
from trueoracle.tasks.base import as_input
from trueoracle.training.team import find_team

__all__ = ["run", "score"]


def run(
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    *,
    engine: str = "auto",
    memory: int | None = None,
    executor: Executor | None = None,
    retry_failed: bool = False,
) -> None:
    """Carry out a study in ``folder``, from where it stopped to its end.

    ``engine`` and ``memory`` (bytes) are those of :func:`trueoracle.engines.choose.plan`;
    ``executor`` runs the retraining, by default this process. A network
    whose retraining fails is recorded with its error, and the study goes on without it; with
    ``retry_failed``, networks that failed in earlier sittings are retrained as well. Raises
    what :func:`trueoracle.run.sitting.sitting` raises. Where several processes were launched
    together, they share only the retraining; the first one does everything else.
    """
    check_retraining(prepared, engine)
    workers = as_executor(executor)
    check_executor(prepared, workers)
    team = find_team()
    if team is not None and not team.is_main:
        follow(prepared, team)
        return
    sat = sitting(prepared, folder, progress, retry_failed=retry_failed)
    with team.leading() if team else nullcontext(), sat as at:
        tell_cost(at)
        plan = plan_retraining(at, engine, memory, workers)
        dense = make_dense(at)
        warn_of_chance(at)
        at = list_candidates(at, dense)
        adopt(at)
        tell_blocks(at)
        score_candidates(at, dense)
        # All may have been adopted from a similar study, and failures dropped with another network.
        if at.left and (plan := plan or plan_retraining(at, engine, memory, workers)) is not None:
            retrain_candidates(at, dense, plan, workers)
        tell_failures(at)


def score(
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    *,
    criteria: Collection[str] | None = None,
) -> None:
    """Score every candidate, by all criteria or by those given, and retrain none.

    :func:`run` continues from there.
    """
    with sitting(prepared, folder, progress) as at:
        if criteria is None:  # a search, which names criteria, says what it costs itself
            tell_cost(at)
        dense = make_dense(at)
        warn_of_chance(at)
        at = list_candidates(at, dense)
        adopt(at)
        score_candidates(at, dense, criteria)


def tell_blocks(at: Sitting) -> None:
    """Warn where intervals cannot count examples because earlier outcomes lack blocks of them."""
    if at.prepared.data.blocks and (count := at.store.without_blocks()):
        at.progress.message(
            f"{many(count, 'outcome')} of an earlier version {'has' if count == 1 else 'have'} no "
            "blocks of examples: intervals take the examples as given (to count them, retrain all "
            "under another name)"
        )


def tell_failures(at: Sitting) -> None:
    """Say how many retrainings failed, and how to try them again."""
    if said := failures_in_words(at.store.failed().values(), at.prepared.retrainings):
        at.progress.message(f"{said}; {RETRY}")


def tell_cost(at: Sitting) -> None:
    """Say what the remaining retraining costs, before any long work."""
    prepared, progress, left = at.prepared, at.progress, at.left
    if not left:
        return
    data = prepared.data
    recipe = prepared.spec.retraining
    examples, epochs = recipe.examples_in_epoch(len(data.train)), recipe.epochs
    # Masked weights are still multiplied, so this cost is not the one recorded of a candidate.
    pruned = prepared.candidates.prune(prepared.network, 0)
    macs = cost(pruned, as_input(pruned, data.example(1))).macs
    training = f"{3 * macs * examples * epochs * left:.1e}".replace("e+", "e")
    place, networks = prepared.place
    whole = "the study" if networks == 1 else f"dense network {place} of {networks}"
    what = whole if left == prepared.retrainings else "what is left"
    progress.message(
        f"{what}: {left:,} networks of {quantity(macs)} MACs, {many(epochs, 'epoch')} of "
        f"{examples:,} examples each: {training} MACs of training (3 × forward)"
    )
    if place == 1 and (worth := _power(prepared)):
        progress.message(worth)
    held = held_bytes(prepared.spec, prepared.network, data)
    progress.message(f"memory: at least {readable_bytes(held)}, of data and a network in training")


def _power(prepared: Prepared) -> str:
    """The tau that the study would tell from chance; empty where no filters are pruned, or few."""
    sizes = [group.filters for group in prepared.candidates.groups]
    spec = prepared.spec
    if not sizes or sum(sizes) - len(sizes) < 2:
        return ""
    sampled = None if spec.pruning.candidates == "all" else len(prepared.candidates)
    if sampled is not None and sampled < 5:
        return ""
    found = power(
        sum(sizes),
        layers=len(sizes),
        candidates=sampled,
        seeds=len(spec.retraining.seeds),
        networks=prepared.place[1],
        examples=len(prepared.data.test) if "test" in prepared.data.blocks else None,
        criteria=len(spec.criteria),
    )
    return f"power: {found.sentence()}"
