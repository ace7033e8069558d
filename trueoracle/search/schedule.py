"""Which candidates are retrained, and for how long: successive halving as a plan.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943; within Hyperband, Li et al. 2018,
arXiv 1603.06560) trains many candidates a little, the better of them further, and few to the end.
Here every rung continues the same retraining, so that the candidates left at the end have had the
whole recipe, learning rates included. Nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from trueoracle.analysis.numbers import many
from trueoracle.errors import InputError

__all__ = ["ETA", "Rung", "Schedule", "halving", "parse_budget", "to_the_end"]

ETA = 1.5
"""The default factor by which epochs grow and candidates shrink from rung to rung.

A rung costs nothing by itself, since the candidates that are left go on. On four recorded studies,
small steps found better candidates than the usual factors of 2 to 4 (``docs/search.md``).
"""

DEFAULT_SHARE = 0.1
"""The default budget, as a share of the cost of retraining every candidate."""


@dataclass(frozen=True)
class Rung:
    """A step in which so many ``candidates`` are trained until they have had so many ``epochs``."""

    epochs: int
    candidates: int


@dataclass(frozen=True)
class Schedule:
    """Rungs with ever more epochs and ever fewer candidates; the last one ends the recipe."""

    rungs: tuple[Rung, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """The epochs that candidates have had before each rung."""
        return (0, *(rung.epochs for rung in self.rungs[:-1]))

    @property
    def cost(self) -> int:
        """What the schedule costs, in epochs of one candidate."""
        steps = zip(self.starts, self.rungs, strict=True)
        return sum(rung.candidates * (rung.epochs - start) for start, rung in steps)


def halving(
    candidates: int, epochs: int, budget: int, eta: float = ETA, first: int = 1
) -> Schedule:
    """The widest successive halving of ``candidates`` that ``budget`` affords.

    ``epochs`` are those of the recipe, ``budget`` counts epochs of one candidate. The rungs end
    after ``epochs``, an ``eta``-th of them, and so on, to the nearest whole epoch, down to
    ``first``. The number of candidates in each rung is such that (candidates × epochs) is equal in
    all rungs, or is that of all candidates. Where the first rung cannot hold all candidates, those
    that are first in the strategy's order begin. Rungs that would drop no candidate are left out,
    as are the lowest rungs where the budget is too small for all. Raises :class:`InputError` where
    the budget does not finish one network.
    """
    _check(candidates, epochs, budget)
    if not eta > 1:
        raise InputError(f"eta is a number above 1, got {eta}")
    powers = (eta**k for k in range(1, 1 + math.ceil(math.log(2 * epochs, eta))))
    ends = sorted({epochs, *(end for p in powers if (end := round(epochs / p)) >= max(1, first))})
    for first_rung in range(len(ends)):  # a small budget affords only the upper rungs
        found = _widest(candidates, ends[first_rung:], budget)
        if found is not None and len(found.rungs) > 1:
            return found
    return to_the_end(candidates, epochs, budget)


def _widest(candidates: int, ends: list[int], budget: int) -> Schedule | None:
    """Rungs with these ends that ``budget`` affords; None where it does not afford any."""
    affordable, too_much = ends[-1], candidates * ends[-1] + 1
    while too_much - affordable > 1:
        middle = (affordable + too_much) // 2
        if _rungs(candidates, ends, middle).cost <= budget:
            affordable = middle
        else:
            too_much = middle
    found = _rungs(candidates, ends, affordable)
    return found if found.cost <= budget else None


def to_the_end(candidates: int, epochs: int, budget: int) -> Schedule:
    """One rung: as many candidates as ``budget`` retrains from beginning to end."""
    _check(candidates, epochs, budget)
    return Schedule((Rung(epochs, min(candidates, budget // epochs)),))


def parse_budget(text: str | int | None, candidates: int, epochs: int) -> int:
    """A budget in epochs of one candidate, at most what retraining every candidate takes.

    ``text`` is a whole number of epochs, or a share of that full budget (``"10%"``). None stands
    for :data:`DEFAULT_SHARE`, or for one network where that is more. Raises :class:`InputError` for
    any other text, and for a budget that does not finish one network.
    """
    full = candidates * epochs
    if text is None:
        return max(epochs, int(DEFAULT_SHARE * full))
    given = str(text).strip()
    number, percent = given.removesuffix("%").strip(), given.endswith("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if not 0 < value < float("inf") or (percent and value > 100):
        raise InputError(
            f"a budget is a number of epochs, such as {max(epochs, full // 10)}, or a share of "
            f"retraining all, such as 10%; got {given!r}"
        )
    # In whole epochs; a rounding error must not make the budget one epoch smaller.
    budget = int(value * full / 100 + 1e-6) if percent else int(value)
    _check(candidates, epochs, budget)
    return min(budget, full)


def _rungs(candidates: int, ends: list[int], width: int) -> Schedule:
    """Rungs in which candidates × epochs is ``width``, where there are as many candidates."""
    rungs = [Rung(end, min(candidates, width // end)) for end in ends]
    kept = [one for one, later in pairwise(rungs) if one.candidates != later.candidates]
    return Schedule((*kept, rungs[-1]))


def _check(candidates: int, epochs: int, budget: int) -> None:
    if candidates < 1:
        raise InputError("there is no candidate to search among")
    if budget < epochs:
        raise InputError(
            f"a budget of {many(budget, 'epoch')} finishes no network: one retraining takes "
            f"{epochs:,}, and all {candidates:,} candidates {candidates * epochs:,}"
        )
