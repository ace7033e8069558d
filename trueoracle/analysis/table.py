"""What the statistics read: candidates, their scores before retraining, their outcomes after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from trueoracle.analysis.correlation import sign_of
from trueoracle.errors import InputError

__all__ = ["Blocks", "CandidateTable", "means", "pruned_filters"]

DIGITS = 12
"""Mean outcomes that are equal to so many digits are equal."""


def means(outcomes: np.ndarray) -> np.ndarray:
    """The means ``[P]`` of outcomes ``[P, S]``, each to :data:`DIGITS` digits of its own.

    Further digits depend on the order in which seeds are added, and would break ties at random.
    """
    mean: np.ndarray = np.sort(outcomes, axis=1).mean(axis=1)
    size = np.abs(mean)
    known = (size > 1e-200) & (size < 1e200)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.where(known, size, 1.0))))
    return np.where(known, np.round(mean * scale) / scale, mean)


@dataclass(frozen=True, eq=False)
class Blocks:
    """The outcomes again, by B blocks of the examples that they are measured on.

    ``sums`` ``[P, S, B]`` are those of the metric over the examples of a block, ``counts`` ``[B]``
    the numbers of examples. For metrics that are no means over examples, the sums are pseudo-values
    (:meth:`trueoracle.training.evaluate.Tally.by_block`). A block is drawn as the examples are, so
    that blocks differ as new examples would.
    """

    sums: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def means(self, blocks: Sequence[int] | np.ndarray) -> np.ndarray:
        """The outcome ``[P, S]`` over the examples of some of the blocks."""
        some = np.asarray(blocks)
        means: np.ndarray = self.sums[:, :, some].sum(axis=2) / self.counts[some].sum()
        return means


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """P candidates of one dense network.

    - ``outcomes`` ``[P, S]``: one column per retraining seed. NaN is missing; a network that
      diverged is infinite, whichever way, and counts as the worst finite outcome of the table;
    - ``scores``: one column ``[P]`` per criterion (lower = prune this one); outcomes of less
      retraining are scores too, and ``higher_is_chosen`` names those of which more is better;
    - ``higher_is_better``: whether higher outcomes are better;
    - ``sampled``: the candidates are a sample of all ways to prune, not all of them;
    - ``pruned`` ``[P, F]``: True where a candidate prunes a filter; ``groups`` has the number of
      filters of each group, F in all. Without these two, nothing can be said of other filters;
    - ``blocks``: the outcomes by blocks of examples. Records before format 5, and most tables from
      elsewhere, have none: then nothing can be said of other examples;
    - ``kind``: the kind of pruning, where several are told apart;
    - ``unit``: what the columns of ``pruned`` stand for, where these are no filters.
    """

    outcomes: np.ndarray
    scores: Mapping[str, np.ndarray]
    higher_is_better: bool
    sampled: bool = False
    pruned: np.ndarray | None = None
    groups: tuple[int, ...] = ()
    higher_is_chosen: frozenset[str] = field(default_factory=frozenset)
    blocks: Blocks | None = None
    kind: str = ""
    unit: str = "filter"

    def __post_init__(self) -> None:
        """Raise :class:`InputError` where the columns do not fit together."""
        if self.outcomes.ndim != 2 or 0 in self.outcomes.shape:
            raise InputError(
                f"outcomes are candidates × seeds, got the shape {list(self.outcomes.shape)}"
            )
        for name, column in self.scores.items():
            if column.shape != (len(self),):
                raise InputError(
                    f"scores of {name!r} have the shape {list(column.shape)}, expected "
                    f"[{len(self)}]: one per candidate"
                )
        if self.pruned is not None and self.pruned.shape != (len(self), sum(self.groups)):
            raise InputError(
                f"pruned has the shape {list(self.pruned.shape)}, expected "
                f"{[len(self), sum(self.groups)]}: candidates × filters of all groups"
            )
        if self.blocks is not None:
            expected = (*self.outcomes.shape, len(self.blocks))
            if self.blocks.sums.shape != expected or not (self.blocks.counts > 0).all():
                raise InputError(
                    f"sums by block have the shape {list(self.blocks.sums.shape)}, expected "
                    f"{list(expected)}: candidates × seeds × blocks, each of some examples"
                )

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def seeds(self) -> int:
        """How many retrainings each candidate has."""
        return int(self.outcomes.shape[1])

    @cached_property
    def order(self) -> np.ndarray:
        """The rows ``[P]`` in an order that does not depend on how they are listed.

        Rows are sorted by what they prune, then from the best outcome on, then by scores; rows that
        are equal in all of these are interchangeable. Random draws follow this order.
        """
        costs = -self.better(self.outcomes)
        columns = [self.scores[name] for name in sorted(self.scores)] + list(costs.T)
        if self.pruned is not None:
            columns += list(self.pruned.T)
        order: np.ndarray = np.lexsort(columns)
        return order

    @property
    def outcome(self) -> np.ndarray:
        """The mean over seeds ``[P]``; NaN where a candidate lacks one of them."""
        return self.mean_outcome(range(self.seeds))

    @property
    def diverged(self) -> np.ndarray:
        """Which retrainings diverged: bool ``[P, S]``."""
        return np.asarray(np.isinf(self.outcomes))

    @property
    def any_diverged(self) -> np.ndarray:
        """Which candidates diverged in some retraining: bool ``[P]``."""
        return np.asarray(self.diverged.any(axis=1))

    @cached_property
    def finished(self) -> np.ndarray:
        """The outcomes ``[P, S]``, with the worst finite one where a retraining diverged."""
        known = self.outcomes[np.isfinite(self.outcomes)]
        if not len(known) or not self.diverged.any():
            return np.where(self.diverged, math.nan, self.outcomes)
        worst = known.min() if self.higher_is_better else known.max()
        made: np.ndarray = np.where(self.diverged, worst, self.outcomes)
        return made

    def mean_outcome(self, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """The mean ``[P]`` over some of the seeds, as :func:`means` gives it."""
        return means(self.finished[:, np.asarray(seeds)])

    @cached_property
    def fitted_and_judged(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Outcomes ``[P]`` to fit a model to, and to judge it by.

        Outcomes are on every other block of examples and on the blocks between, and the other way
        round. Where there are no blocks, the same outcomes serve for both.
        """
        blocks = 0 if self.blocks is None else len(self.blocks)
        if blocks < 2:
            return [(self.outcome, self.outcome)]
        even, odd = (self.take(blocks=np.arange(start, blocks, 2)).outcome for start in (0, 1))
        return [(even, odd), (odd, even)]

    @property
    def without_blocks(self) -> np.ndarray:
        """The mean outcome over seeds ``[1 + B, P]``: of all examples, and without each block."""
        every = np.arange(len(self.blocks or ()))
        rest = [self.take(blocks=np.delete(every, one)).outcome for one in every]
        return np.stack([self.outcome, *rest])

    def take(
        self,
        rows: np.ndarray | None = None,
        *,
        seeds: np.ndarray | None = None,
        blocks: np.ndarray | None = None,
    ) -> CandidateTable:
        """The table of some of the candidates, seeds and blocks of examples; by default all."""
        outcomes, parts = self.outcomes, self.blocks
        if blocks is not None and parts is not None:
            outcomes = np.where(self.diverged, math.inf, parts.means(blocks))
            parts = Blocks(parts.sums[:, :, blocks], parts.counts[blocks])
        if seeds is not None:
            outcomes = outcomes[:, seeds]
            parts = None if parts is None else Blocks(parts.sums[:, seeds], parts.counts)
        scores, pruned = self.scores, self.pruned
        if rows is not None:
            outcomes = outcomes[rows]
            parts = None if parts is None else Blocks(parts.sums[rows], parts.counts)
            scores = {name: column[rows] for name, column in scores.items()}
            pruned = None if pruned is None else pruned[rows]
        return replace(self, outcomes=outcomes, scores=scores, pruned=pruned, blocks=parts)

    def better(self, outcome: np.ndarray) -> np.ndarray:
        """Outcomes with their sign turned so that the highest is the best."""
        return outcome if self.higher_is_better else -outcome

    def lowest_first(self, criterion: str) -> np.ndarray:
        """Scores ``[P]`` with their sign turned so that the lowest is chosen."""
        scores = self.scores[criterion]
        return -scores if criterion in self.higher_is_chosen else scores

    def sign(self, criterion: str) -> int:
        """What turns a raw coefficient of a criterion into agreement: 1 or -1."""
        return sign_of(
            higher_is_better=self.higher_is_better,
            higher_score_is_better=criterion in self.higher_is_chosen,
        )


def pruned_filters(
    ways: Sequence[Mapping[str, Sequence[int]]],
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which filters ``[P, F]`` each candidate prunes, and the number of filters of each group.

    ``ways`` has the pruned filters of each candidate by group. Only filters that some candidate
    prunes are counted, which are all filters of a group where all ways to prune are listed.
    """
    parts = []
    for name in ways[0]:
        numbers = np.array([way[name] for way in ways])
        known, columns = np.unique(numbers, return_inverse=True)
        part = np.zeros((len(ways), len(known)), dtype=bool)
        np.put_along_axis(part, columns.reshape(numbers.shape), True, axis=1)
        parts.append(part)
    return np.concatenate(parts, axis=1), tuple(part.shape[1] for part in parts)
