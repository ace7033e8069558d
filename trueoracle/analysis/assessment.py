"""All that is known of one criterion against one outcome: the relation, and how sure it is.

An assessment is of one dense network or of several. Candidates of different dense networks are
never compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueoracle.analysis.comparison import adjusted_p_values
from trueoracle.analysis.correlation import kendalls, top_weighted
from trueoracle.analysis.interactions import standardised_ranks
from trueoracle.analysis.jackknife import Interval, in_words, jackknife
from trueoracle.analysis.numbers import finite_or_none, interval, many, mean_count, number
from trueoracle.analysis.permutation import label_permutation_p_values
from trueoracle.analysis.relation import Relation, mean_relation, relate
from trueoracle.analysis.reliability import (
    LEAST_CEILING,
    Reliability,
    disattenuated,
    mean_reliability,
    noise_ceiling,
    without_noise,
)
from trueoracle.analysis.selection import Selection, select
from trueoracle.analysis.table import CandidateTable

__all__ = ["MATTERS", "SIGNIFICANT", "Assessment", "assess", "judged_together"]

SIGNIFICANT = 0.05

MATTERS = 0.2
"""The least agreement that is called a Yes. A tau of 0.2 orders 60 of 100 pairs rightly."""


@dataclass(frozen=True)
class Assessment:
    """One criterion against one outcome, in each of some dense ``networks``, by default one.

    For several networks, coefficients are means over the networks.

    Raw, as :class:`Relation`'s coefficients are:

    - ``interval``: the 95 % interval of tau; ``interval_over`` says in words what the interval
      counts and what it takes as given; ``standard_error`` is tau's.

    Turned, so that +1 means that the score orders candidates as the outcome does:

    - ``agreement_interval``: the same interval of the agreement;
    - ``weighted_agreement``: the top-weighted tau, in which the best candidates count most;
    - ``reliability``: with the ceiling, the agreement that noise leaves to a perfect criterion;
    - ``disattenuated``: the agreement that there would be with the expected outcome, free of
      noise, and its 95 % interval; NaN where the ceiling is too low to tell.

    Without a sign:

    - ``at_most``: the upper bound of the size of tau, with 95 % confidence;
    - ``permutation_p_value`` is found by permuting filter labels, ``equivalence_p_value`` is of a
      tau of :data:`MATTERS` or more, and those called ``adjusted_`` are Holm's over all that is
      shown together (:func:`judged_together`);
    - ``counts_filters``: whether the interval allows for other filters. Where it does not, nothing
      is certain and all p-values are NaN;
    - ``selection``: what choosing by the score is worth.
    """

    criterion: str
    relation: Relation
    interval: Interval
    interval_over: str
    standard_error: float
    at_most: float
    counts_filters: bool
    permutation_p_value: float
    adjusted_p_value: float
    equivalence_p_value: float
    adjusted_equivalence_p_value: float
    weighted_agreement: float
    reliability: Reliability
    disattenuated: float
    disattenuated_interval: Interval
    selection: Selection
    networks: int = 1

    @property
    def agreement_interval(self) -> Interval:
        """The 95 % interval of the agreement."""
        return _turned(self.interval, self.relation.sign)

    @property
    def is_certain(self) -> bool:
        """Whether tau is certain not to be zero: the one rule of verdicts, tables and figures.

        Holm's p-value of permuted labels is below 0.05, and the interval, which has to allow for
        other filters, leaves zero out.
        """
        if not (self.adjusted_p_value < SIGNIFICANT and self.counts_filters):
            return False
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def answer(self) -> str:
        """Does the score predict the outcome? ``"Yes"``, ``"No"`` or ``"Unclear"``.

        - Yes: tau is certain (:attr:`is_certain`), in the right direction, and at least
          :data:`MATTERS` in size.
        - No: tau is certain and in the wrong direction, or it is certain to be smaller than
          :data:`MATTERS` (Holm's ``adjusted_equivalence_p_value`` is below 0.05).
        - Unclear: anything else.
        """
        agreement = self.relation.agreement
        if self.is_certain and agreement >= MATTERS:
            return "Yes"
        if (self.is_certain and agreement < 0) or self.is_small:
            return "No"
        return "Unclear"

    @property
    def is_small(self) -> bool:
        """Whether tau is certain to be smaller than :data:`MATTERS`."""
        return self.counts_filters and self.adjusted_equivalence_p_value < SIGNIFICANT

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, including those of the relation and of the selection."""
        return {
            **self.relation.as_dict(),
            **finite_or_none(
                {
                    "networks": self.networks,
                    "kendall_low": self.interval.low,
                    "kendall_high": self.interval.high,
                    "agreement_low": self.agreement_interval.low,
                    "agreement_high": self.agreement_interval.high,
                    "interval_over": self.interval_over,
                    "standard_error": self.standard_error,
                    "at_most": self.at_most,
                    "counts_filters": self.counts_filters,
                    "permutation_p_value": self.permutation_p_value,
                    "adjusted_p_value": self.adjusted_p_value,
                    "equivalence_p_value": self.equivalence_p_value,
                    "adjusted_equivalence_p_value": self.adjusted_equivalence_p_value,
                    "weighted_agreement": self.weighted_agreement,
                    "ceiling": self.reliability.ceiling,
                    "ceiling_of_examples": self.reliability.blocks > 0,
                    "disattenuated": self.disattenuated,
                    "disattenuated_low": self.disattenuated_interval.low,
                    "disattenuated_high": self.disattenuated_interval.high,
                    "certain": self.is_certain,
                    "answer": self.answer,
                }
            ),
            **self.selection.as_dict(),
        }

    def sentence(self, score: str = "the score", outcome: str = "the outcome") -> str:
        """The verdict in words, of which the first is :attr:`answer`."""
        relation = self.relation
        if relation.n == 1:
            return "Unclear: nothing can be said of a single candidate."
        if math.isnan(relation.kendall.value):
            where = f"all {relation.n}" if self.networks == 1 else "all of a dense network"
            return (
                f"Unclear: nothing can be said, since {score} or {outcome} is the same for {where}."
            )
        if self.reliability.ceiling == 0 and self.answer == "Unclear":
            return (
                f"Unclear: nothing can be said, since {outcome} orders the candidates in another "
                f"way each time ({self.reliability.over} repeated)."
            )
        over = "" if self.networks == 1 else f" over {many(self.networks, 'dense network')}"
        return (
            f"{self.answer}: {score} {self._strength()} {outcome} after retraining{over} "
            f"({self._tau()}); {self._choice()}."
        )

    def _tau(self) -> str:
        """The agreement with its interval, its bound, and what it would be without noise."""
        around = self.agreement_interval
        said = f"agreement {number(self.relation.agreement, 2)}"
        if not math.isnan(around.low):
            said += f" {interval(around.low, around.high)}"
        if not self.is_certain and not math.isnan(self.at_most):
            said += f", of size {number(self.at_most, 2)} at most with 95%"
        if not self.counts_filters:
            return f"{said}; that other filters would give another τ is not counted"
        ceiling = self.reliability.ceiling
        if ceiling < LEAST_CEILING:
            said += ", and outcomes repeat themselves too little to say what it is without noise"
        elif self.answer == "Yes" and not math.isnan(self.disattenuated):
            without = number(self.disattenuated, 2)
            said += f", without noise of {self.reliability.over} {without}"
        return said

    def _choice(self) -> str:
        """How many candidates end better than the chosen one, in words."""
        relation = self.relation
        chosen = "the one it would choose"
        if self.networks > 1:
            share = f"on average {relation.anomaly_ratio:.1%}" if relation.anomalies else "none"
            return f"{share} of a network's candidates end better than {chosen} there"
        if relation.tied == 1 and relation.chosen_diverged:
            return (
                "the candidate it would choose diverged in retraining, which counts as the worst "
                f"of {relation.n:,}"
            )
        share = f"none of {relation.n:,} candidates"
        if relation.anomalies:
            count = mean_count(relation.anomalies)
            share = f"{count} of {relation.n:,} candidates ({relation.anomaly_ratio:.1%})"
        end = "ends" if relation.anomalies == 1 else "end"
        if relation.tied == 1:
            return f"{share} {end} better than {chosen}"
        least = "highest" if relation.higher_score_is_better else "lowest"
        on_average = "" if relation.anomalies == 0 else "on average "
        return (
            f"{on_average}{share} {end} better than {chosen}, which is one of "
            f"{relation.tied:,} that share the {least} score"
        )

    def _strength(self) -> str:
        """Words for the answer; the borders between them are convention, not theory."""
        if self.answer == "Unclear":
            return "says nothing certain about"
        if self.answer == "No":
            wrong = self.is_certain and self.relation.agreement < 0
            return "is misleading about" if wrong and not self.is_small else "says little about"
        without = self.disattenuated
        strength = self.relation.agreement if math.isnan(without) else without
        for border, words in ((0.7, "predicts"), (0.4, "largely predicts")):
            if strength >= border:
                return words
        return "hints at"


def judged_together(groups: Sequence[Sequence[Assessment]]) -> list[list[Assessment]]:
    """The same assessments, their p-values adjusted for all that one display shows.

    One list per outcome, layer, arm or study: whatever stands in the display side by side.
    """
    flat = [one for group in groups for one in group]
    adjusted = adjusted_p_values([one.permutation_p_value for one in flat])
    small = adjusted_p_values([one.equivalence_p_value for one in flat])
    made = iter(
        replace(one, adjusted_p_value=p, adjusted_equivalence_p_value=q)
        for one, p, q in zip(flat, adjusted, small, strict=True)
    )
    return [[next(made) for _ in group] for group in groups]


def assess(
    tables: CandidateTable | Sequence[CandidateTable], *, k: int | None = None, seed: int = 0
) -> list[Assessment]:
    """Every criterion of a table against its outcome, the mean over seeds.

    Several tables are of as many dense networks; the criteria that all of them have are assessed.
    ``k`` is that of :func:`trueoracle.analysis.selection.select`. Criteria without any finite score
    are left out; where no outcome is finite, all are. P-values are adjusted for the criteria of the
    tables; for several displays, :func:`judged_together` adjusts for all of them.
    """
    several = [tables] if isinstance(tables, CandidateTable) else list(tables)
    names = [name for name in several[0].scores if all(_is_known(t, name) for t in several)]
    if not names:
        return []
    named = [replace(t, scores={name: t.scores[name] for name in names}) for t in several]
    permuted = label_permutation_p_values(named, seed=seed)  # of all that is listed
    known = [_with_outcome(table) for table in named]
    columns = [standardised_ranks(np.stack(list(t.scores.values()))) for t in known]
    found = jackknife(known, _taus, columns=columns)
    without, of_ceiling = without_noise(known, _taus, columns)
    reliability = mean_reliability([noise_ceiling(t) for t in known], of_ceiling)
    counted = found.counts_filters
    over = in_words(known)
    made = []
    for place, name in enumerate(names):
        relation = mean_relation([_relation(table, name) for table in named])
        made.append(
            Assessment(
                criterion=name,
                relation=relation,
                interval=found.tau_interval(place),
                interval_over=over,
                standard_error=found.standard_error(place),
                at_most=found.at_most(place),
                counts_filters=counted,
                permutation_p_value=permuted[name],
                adjusted_p_value=math.nan,
                equivalence_p_value=(
                    found.equivalence_p_value(MATTERS, place)
                    if counted and all(table.pruned is not None for table in named)
                    else math.nan
                ),
                adjusted_equivalence_p_value=math.nan,
                weighted_agreement=float(np.mean([_top_weighted(t, name) for t in named])),
                reliability=reliability,
                disattenuated=disattenuated(relation.agreement, reliability.ceiling),
                disattenuated_interval=_turned(without[place], relation.sign),
                selection=select(known, name, k=k),
                networks=len(named),
            )
        )
    return judged_together([made])[0]


def _with_outcome(table: CandidateTable) -> CandidateTable:
    """The table of the candidates that have an outcome: others are not there yet, or left out."""
    rows = np.flatnonzero(np.isfinite(table.outcome))
    return table if len(rows) == len(table) else table.take(rows)


def _is_known(table: CandidateTable, name: str) -> bool:
    """Whether some candidate has both a finite score and a finite outcome."""
    column = table.scores.get(name)
    return column is not None and bool((np.isfinite(column) & np.isfinite(table.outcome)).any())


def _relation(table: CandidateTable, name: str) -> Relation:
    return relate(
        table.scores[name],
        table.outcome,
        higher_is_better=table.higher_is_better,
        higher_score_is_better=name in table.higher_is_chosen,
        diverged=table.any_diverged,
    )


def _top_weighted(table: CandidateTable, name: str) -> float:
    scores, outcome = table.lowest_first(name), table.outcome
    finite = np.isfinite(scores) & np.isfinite(outcome)
    return top_weighted(scores[finite], outcome[finite], higher_is_better=table.higher_is_better)


def _taus(table: CandidateTable) -> np.ndarray:
    """Raw tau ``[K]`` of every score."""
    return kendalls(np.stack(list(table.scores.values())), table.outcome)


def _turned(around: Interval, sign: int) -> Interval:
    return around if sign > 0 else Interval(-around.high, -around.low)
