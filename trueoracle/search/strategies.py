"""Ways to choose one candidate on a budget: an order to begin in, and a schedule.

What is compared is one number a candidate after so many epochs, lower being better; where it comes
from (a record, or networks in training) is the caller's. Nothing here needs torch.
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
"""In which a strategy that learns begins: few, since all of a batch are trained as one."""
LEAST_BATCH = 4
"""Candidates of a batch, at the least: where fewer begin, so are the batches."""


class Values(Protocol):
    """Where the numbers come from."""

    def __call__(self, candidates: Sequence[int], epochs: int) -> Sequence[float]:
        """The value of each candidate after so many epochs, lower being better; NaN: diverged."""


@dataclass(frozen=True)
class Strategy:
    """A way to choose: who comes first, and what is spent on whom."""

    name: str
    words: str
    order: Literal["criterion", "random", "id"]
    plan: Callable[[int, int, int, float], Schedule]
    """``(candidates, epochs, budget, eta)`` to a schedule."""
    learns: bool = False
    """Whether the first rung begins in batches, each chosen by what those before it came to."""

    def ordered(
        self,
        scores: Sequence[float] | np.ndarray,
        ids: Sequence[str] | Sequence[int],
        seed: int = 0,
    ) -> list[int]:
        """The rows of the candidates in the order in which they begin; it also breaks ties.

        By ``scores`` ``[P]``, the lowest first and NaN last, or drawn with ``seed``, or by ``ids``
        ``[P]``. Of equal scores the lower id comes first, so that the order in which candidates are
        listed decides nothing.
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
    # After a fifth of the epochs values tell more than after one, and the model makes up for it
    # that fewer begin (measured: docs/search.md).
    return halving(candidates, epochs, budget, eta, first=-(-epochs // 5))


def _to_the_end(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    return to_the_end(candidates, epochs, budget)


def _one(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    to_the_end(candidates, epochs, budget)  # which refuses a budget that is too small
    return to_the_end(candidates, epochs, epochs)


def _all(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    return to_the_end(candidates, epochs, candidates * epochs)


STRATEGIES: dict[str, Strategy] = {
    one.name: one
    for one in (
        Strategy(
            "guided",
            "successive halving, those first whose filters were best to prune in others",
            "criterion",
            _guided,
            learns=True,
        ),
        Strategy(
            "halving", "successive halving, those of the lowest scores first", "criterion", halving
        ),
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
    """How a search went: for each rung its candidates and their values after it."""

    candidates: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def chosen(self) -> int:
        """The best of the last rung."""
        return survivors(self.candidates[-1], self.values[-1], 1)[0]


def choose(
    order: Sequence[int], schedule: Schedule, values: Values, pruned: np.ndarray | None = None
) -> Course:
    """Carry a schedule out: the first of ``order`` begin, the best of each rung go on.

    With ``pruned`` those who begin are chosen batch by batch, as :func:`begin` does.
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
    """Who begins, and what they come to: the first ``count`` of ``order``.

    With ``pruned`` ``[P, F]``, which filters each candidate prunes, they come in batches: the first
    by ``order``, each later one of those that an additive model fitted to all before it expects to
    do best (equal ones by ``order``). Filters are worth about as much whatever else is pruned, so
    that a few dozen candidates tell of all the others.
    """
    batches = 1 if pruned is None else max(1, min(BATCHES, count // LEAST_BATCH))
    going: list[int] = []
    found: list[float] = []
    for some in np.array_split(np.arange(count), batches):
        begun = set(going)
        left = [one for one in order if one not in begun]
        if going and pruned is not None:
            comparable = [value if math.isfinite(value) else math.inf for value in found]
            # Rounded, so that those of equal filters' worth stay equal on every machine.
            left.sort(key=predict_additive(pruned, going, comparable).round(9).__getitem__)
        batch = left[: len(some)]
        found += [float(value) for value in values(batch)]
        going += batch
    return going, found


def survivors(candidates: Sequence[int], values: Sequence[float], count: int) -> list[int]:
    """The ``count`` candidates of the lowest values, in the order given.

    Of equal ones the first; what diverged (NaN, infinite) comes last.
    """
    comparable = [value if math.isfinite(value) else math.inf for value in values]
    best = sorted(range(len(candidates)), key=comparable.__getitem__)[:count]
    return [candidates[i] for i in sorted(best)]
