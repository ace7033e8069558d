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

from trueoracle.errors import unknown
from trueoracle.search.schedule import Schedule, halving, to_the_end

__all__ = ["STRATEGIES", "Course", "Strategy", "Values", "choose", "find_strategy", "survivors"]


class Values(Protocol):
    """Where the numbers come from."""

    def __call__(self, candidates: Sequence[int], epochs: int) -> Sequence[float]:
        """The value of each candidate after so many epochs, lower being better; NaN: diverged."""


@dataclass(frozen=True)
class Strategy:
    """A way to choose: who comes first, and what is spent on whom."""

    name: str
    words: str
    order: Literal["criterion", "random", "listed"]
    plan: Callable[[int, int, int, float], Schedule]
    """``(candidates, epochs, budget, eta)`` to a schedule."""

    def ordered(self, scores: Sequence[float] | np.ndarray, seed: int = 0) -> list[int]:
        """The candidates in the order in which they begin.

        By ``scores`` ``[P]``, the lowest first and NaN last, or drawn with ``seed``, or as listed.
        """
        if self.order == "listed":
            return list(range(len(scores)))
        if self.order == "random":
            drawn: list[int] = np.random.default_rng(seed).permutation(len(scores)).tolist()
            return drawn
        placed: list[int] = np.argsort(np.asarray(scores, dtype=float), kind="stable").tolist()
        return placed


def _halving_after_criterion(candidates: int, epochs: int, budget: int, eta: float) -> Schedule:
    # Where the criterion already chose who begins, the very first epochs say little more.
    return halving(candidates, epochs, budget, eta, first=-(-epochs // 8))


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
            "halving",
            "successive halving, those of the lowest scores first",
            "criterion",
            _halving_after_criterion,
        ),
        Strategy("random-halving", "successive halving, in a random order", "random", halving),
        Strategy("top", "the lowest scores, each retrained to the end", "criterion", _to_the_end),
        Strategy("random", "random candidates, each retrained to the end", "random", _to_the_end),
        Strategy("criterion", "the lowest score, retrained alone", "criterion", _one),
        Strategy("full", "every candidate, retrained to the end", "listed", _all),
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


def choose(order: Sequence[int], schedule: Schedule, values: Values) -> Course:
    """Carry a schedule out: the first of ``order`` begin, the best of each rung go on."""
    going = list(order)
    rungs: list[tuple[int, ...]] = []
    found: list[tuple[float, ...]] = []
    for rung in schedule.rungs:
        going = survivors(going, found[-1], rung.candidates) if found else going[: rung.candidates]
        rungs.append(tuple(going))
        found.append(tuple(float(value) for value in values(going, rung.epochs)))
    return Course(tuple(rungs), tuple(found))


def survivors(candidates: Sequence[int], values: Sequence[float], count: int) -> list[int]:
    """The ``count`` candidates of the lowest values, in the order given.

    Of equal ones the first; what diverged (NaN, infinite) comes last.
    """
    comparable = [value if math.isfinite(value) else math.inf for value in values]
    best = sorted(range(len(candidates)), key=comparable.__getitem__)[:count]
    return [candidates[i] for i in sorted(best)]
