"""What the statistics read: candidates, their scores before retraining, their outcomes after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from trueoracle.errors import InputError

__all__ = ["CandidateTable", "pruned_filters"]


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """P candidates of one dense network.

    ``outcomes`` ``[P, S]`` has one column a retraining seed, NaN where a network diverged;
    ``scores`` one column ``[P]`` a criterion (lower = prune this one), or also outcomes of less
    retraining, of which ``higher_is_chosen`` names those where more is better. ``sampled`` says
    that the candidates are a sample of all ways to prune, not all of them. ``pruned`` ``[P, F]`` is
    True where a candidate prunes a filter, and ``groups`` has the number of filters of each group,
    F in all; without them no filter labels can be permuted.
    """

    outcomes: np.ndarray
    scores: Mapping[str, np.ndarray]
    higher_is_better: bool
    sampled: bool = False
    pruned: np.ndarray | None = None
    groups: tuple[int, ...] = ()
    higher_is_chosen: frozenset[str] = field(default_factory=frozenset)

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
                    f"[{len(self)}]: one a candidate"
                )
        if self.pruned is not None and self.pruned.shape != (len(self), sum(self.groups)):
            raise InputError(
                f"pruned has the shape {list(self.pruned.shape)}, expected "
                f"{[len(self), sum(self.groups)]}: candidates × filters of all groups"
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

        By what they prune, then from the best outcome on, then by scores: rows that are equal in
        all of these are interchangeable. What is drawn at random is drawn along it.
        """
        costs = -self.outcomes if self.higher_is_better else self.outcomes
        columns = [self.scores[name] for name in sorted(self.scores)] + list(costs.T)
        if self.pruned is not None:
            columns += list(self.pruned.T)
        order: np.ndarray = np.lexsort(columns)
        return order

    @property
    def outcome(self) -> np.ndarray:
        """The mean over seeds ``[P]``; NaN where a candidate lacks one of them."""
        return self.mean_outcome(range(self.seeds))

    def mean_outcome(self, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """The mean ``[P]`` over some of the seeds, which may be repeated."""
        mean: np.ndarray = self.outcomes[:, np.asarray(seeds)].mean(axis=1)
        return mean

    def sign(self, criterion: str) -> int:
        """1 where a perfect criterion has tau 1 with the outcome, and -1 where it has -1."""
        return -1 if self.higher_is_better != (criterion in self.higher_is_chosen) else 1


def pruned_filters(
    ways: Sequence[Mapping[str, Sequence[int]]],
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which filters ``[P, F]`` each candidate prunes, and the number of filters of each group.

    ``ways`` has the pruned filters of each candidate by group. A group counts as many filters as
    the last one that some candidate prunes tells: all of them, where all ways to prune are listed.
    """
    groups = {name: 1 + max(max(way[name]) for way in ways) for name in ways[0]}
    pruned = np.zeros((len(ways), sum(groups.values())), dtype=bool)
    start = 0
    for name, filters in groups.items():
        columns = np.array([way[name] for way in ways])
        np.put_along_axis(pruned[:, start : start + filters], columns, True, axis=1)
        start += filters
    return pruned, tuple(groups.values())
