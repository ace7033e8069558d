"""Ways to choose one candidate on a budget: an order to begin in, and a schedule.

Strategies compare one number per candidate after so many epochs, lower being better. The caller
takes these numbers from a record, or from networks in training. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from trueoracle.analysis.additive import predict_additive
from trueoracle.errors import unknown
from trueoracle.search.schedule import Schedule, halving, to_the_end

__all__ = [
    "STRATEGIES",
    "Course",
    "Strategy",
    "Values",
    "begin",
    "choose",
    "find_strategy",
    "survivors",
]

BATCHES = 4
"""The most batches in which candidates begin where a strategy learns.

They are few, since a batch is trained as one.
"""
LEAST_BATCH = 4
"""The fewest candidates per batch: where few begin, there are fewer batches."""


class Values(Protocol):
    """A function that returns the numbers that are compared."""

    def __call__(self, candidates: Sequence[int], epochs: int) -> Sequence[float]:
        """The value of each candidate after so many epochs, lower being better; NaN: diverged."""


@dataclass(frozen=True)
class Strategy:
    """A way to choose: the order of the candidates, and the epochs that each gets."""

    name: str
    words: str
    order: Literal["criterion", "random", "id"]
    plan: Callable[[int, int, int, float], Schedule]
    """Makes a schedule from ``(candidates, epochs, budget, eta)``."""
    learns: bool = False
    """Whether the first rung begins in batches, each chosen by the values of those before it."""

    def ordered(
        self,
        scores: Sequence[float] | np.ndarray,
        ids: Sequence[str] | Sequence[int],
        seed: int = 0,
    ) -> list[int]:
        """The rows of the candidates in the order in which they begin, which also breaks ties.

        The order is by ``scores`` ``[P]``, the lowest first and NaN last, or drawn with ``seed``,
        or by ``ids`` ``[P]``. Where scores are equal the lower id comes first, so that the order in
        which candidates are listed decides nothing.
        """
        by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=int)
        if self.order == "random":
            by_id = by_id[np.random.default_rng(seed).permutation(len(by_id))]
        elif self.order == "criterion":
            own = np.asarray(scores, dtype=float)[by_id]
            by_id = by_id[np.argsort(own, kind="stable")]
        rows: list[int] = by_id.tolist()
        return rows


def _guided(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    # Values after a fifth of the epochs predict better than those after one epoch. Fewer candidates
    # can begin then, but the model makes up for that (docs/search.md has the trial).
    return halving(candidates, epochs, budget, eta, first=-(-epochs // 5))


def _to_the_end(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    return to_the_end(candidates, epochs, budget)


def _one(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    to_the_end(candidates, epochs, budget)  # called because it refuses a budget that is too small
    return to_the_end(candidates, epochs, epochs)


def _all(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    return to_the_end(candidates, epochs, candidates * epochs)


STRATEGIES: dict[str, Strategy] = {
    one.name: one
    for one in (
        Strategy(
            "guided",
            "successive halving, first the candidates whose filters were best to prune in others",
            "criterion",
            _guided,
            learns=True,
        ),
        Strategy("halving", "successive halving, the lowest scores first", "criterion", halving),
        Strategy("random-halving", "successive halving, in a random order", "random", halving),
        Strategy("top", "the lowest scores, each retrained to the end", "criterion", _to_the_end),
        Strategy("random", "random candidates, each retrained to the end", "random", _to_the_end),
        Strategy("criterion", "the lowest score, retrained alone", "criterion", _one),
        Strategy("full", "every candidate, retrained to the end", "id", _all),
    )
}


def find_strategy(name: str) -> Strategy:
    """A strategy by name; raises :class:`InputError` for an unknown one."""
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name]


@dataclass(frozen=True)
class Course:
    """The course of a search: each rung's candidates, and their values after the rung."""

    candidates: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def chosen(self) -> int:
        """The best candidate of the last rung."""
        return survivors(self.candidates[-1], self.values[-1], 1)[0]


def choose(
    order: Sequence[int], schedule: Schedule, values: Values, pruned: np.ndarray | None = None
) -> Course:
    """Carry out a schedule: the first of ``order`` begin, the best of each rung go on.

    With ``pruned``, the first rung's candidates are chosen batch by batch, as :func:`begin` does.
    """
    first, *later = schedule.rungs
    going, own = begin(order, first.candidates, lambda some: values(some, first.epochs), pruned)
    rungs, found = [tuple(going)], [tuple(own)]
    for rung in later:
        going = survivors(going, found[-1], rung.candidates)
        rungs.append(tuple(going))
        found.append(tuple(float(value) for value in values(going, rung.epochs)))
    return Course(tuple(rungs), tuple(found))


def begin(
    order: Sequence[int],
    count: int,
    values: Callable[[Sequence[int]], Sequence[float]],
    pruned: np.ndarray | None = None,
) -> tuple[list[int], list[float]]:
    """The first rung's candidates and their values: the first ``count`` of ``order``.

    With ``pruned`` ``[P, F]``, the filters that each candidate prunes, candidates begin in batches.
    The first batch is taken by ``order``. Each later batch holds the candidates that an additive
    model, fitted to all earlier ones, expects to do best (equal ones by ``order``). A filter is
    worth about as much whatever else is pruned, so that a few dozen candidates predict all others.
    """
    batches = 1 if pruned is None else max(1, min(BATCHES, count // LEAST_BATCH))
    going: list[int] = []
    found: list[float] = []
    for some in np.array_split(np.arange(count), batches):
        begun = set(going)
        left = [one for one in order if one not in begun]
        if going and pruned is not None:
            comparable = [value if math.isfinite(value) else math.inf for value in found]
            # Rounded, so that candidates predicted to be equal stay equal on every machine.
            left.sort(key=predict_additive(pruned, going, comparable).round(9).__getitem__)
        batch = left[: len(some)]
        found += [float(value) for value in values(batch)]
        going += batch
    return going, found


def survivors(candidates: Sequence[int], values: Sequence[float], count: int) -> list[int]:
    """The ``count`` candidates of the lowest values, in the order given.

    Of equal candidates the first ones stay; one that diverged (NaN, infinite) comes last.
    """
    comparable = [value if math.isfinite(value) else math.inf for value in values]
    best = sorted(range(len(candidates)), key=comparable.__getitem__)[:count]
    return [candidates[i] for i in sorted(best)]
