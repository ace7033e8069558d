"""All that is known of one criterion against one outcome: the relation, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.bootstrap import Interval, bootstrap, levels_in_words
from trueoracle.analysis.comparison import adjusted_p_values
from trueoracle.analysis.correlation import kendall_of_finite, top_weighted
from trueoracle.analysis.numbers import finite_or_none, mean_count, number, percent
from trueoracle.analysis.permutation import label_permutation_p_values
from trueoracle.analysis.relation import Relation, relate
from trueoracle.analysis.reliability import Reliability, noise_ceiling
from trueoracle.analysis.selection import Selection, select
from trueoracle.analysis.table import CandidateTable

__all__ = ["Assessment", "Pooled", "assess", "pool"]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Assessment:
    """One criterion against one outcome.

    Raw, as :class:`Relation`'s coefficients are:

    - ``interval``: the 95 % interval of tau, and ``interval_over`` what was drawn anew for it, and
      what was taken as given, in words; ``standard_error`` is tau's.

    Turned, so that +1 means that the score orders candidates as the outcome does:

    - ``agreement_interval``: the same interval of the agreement;
    - ``weighted_agreement``: the top-weighted tau, in which the best candidates count most;
    - ``reliability``: with the ceiling, the agreement that retraining noise leaves to a perfect
      criterion; ``share_of_ceiling`` is the agreement as a share of it.

    Without a sign: ``permutation_p_value`` permutes filter labels, and ``adjusted_p_value`` is
    Holm's over all criteria of the table; both are NaN where labels cannot be permuted.
    ``selection`` is what choosing by the score is worth.
    """

    criterion: str
    relation: Relation
    interval: Interval
    interval_over: str
    standard_error: float
    permutation_p_value: float
    adjusted_p_value: float
    weighted_agreement: float
    reliability: Reliability
    selection: Selection

    @property
    def agreement_interval(self) -> Interval:
        """The 95 % interval of the agreement."""
        low, high = self.interval.low, self.interval.high
        return self.interval if self.relation.sign > 0 else Interval(-high, -low)

    @property
    def share_of_ceiling(self) -> float:
        """The agreement as a share of what any criterion could reach."""
        return self.reliability.share(self.relation.agreement)

    @property
    def is_certain(self) -> bool:
        """Whether tau is certain not to be zero: the one rule of verdicts, tables and figures.

        Holm's p-value of permuted labels is below 0.05, and the interval, where there is one,
        leaves zero out. Never where filter labels could not be permuted: an interval over seeds or
        samples does not count that other filters would have given another tau.
        """
        if not self.adjusted_p_value < SIGNIFICANT:  # NaN where labels were not permuted
            return False
        low, high = self.interval.low, self.interval.high
        return math.isnan(low) or low > 0 or high < 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of the relation and of the selection among them."""
        return {
            **self.relation.as_dict(),
            **finite_or_none(
                {
                    "kendall_low": self.interval.low,
                    "kendall_high": self.interval.high,
                    "agreement_low": self.agreement_interval.low,
                    "agreement_high": self.agreement_interval.high,
                    "interval_over": self.interval_over,
                    "standard_error": self.standard_error,
                    "permutation_p_value": self.permutation_p_value,
                    "adjusted_p_value": self.adjusted_p_value,
                    "weighted_agreement": self.weighted_agreement,
                    "ceiling": self.reliability.ceiling,
                    "share_of_ceiling": self.share_of_ceiling,
                    "certain": self.is_certain,
                }
            ),
            **self.selection.as_dict(),
        }

    def sentence(self, score: str = "the score", outcome: str = "the outcome") -> str:
        """The verdict in words."""
        relation = self.relation
        if relation.n == 1:
            return "Nothing can be said of a single candidate."
        if math.isnan(relation.kendall.value):
            return f"Nothing can be said: {score} or {outcome} is the same for all {relation.n}."
        if self.reliability.ceiling == 0:
            return (
                f"Nothing can be said: {outcome} orders the candidates in another way each time "
                "that they are retrained."
            )
        tau = f"τ {number(relation.kendall.value, 2)}"
        share = self.share_of_ceiling
        if share >= 1:
            tau += ", as much as retraining noise allows"
        elif share > 0:
            tau += f", {percent(share, 0)} of what retraining noise allows"
        if math.isnan(self.permutation_p_value):
            tau += "; filter labels could not be permuted, so that chance is not ruled out"
        return (
            f"{score[0].upper()}{score[1:]} {self._strength()} {outcome} after retraining "
            f"({tau}); {self._choice()}."
        )

    def _choice(self) -> str:
        """How many candidates end better than the chosen one, in words."""
        relation = self.relation
        share = f"none of {relation.n:,} candidates"
        if relation.anomalies:
            count = mean_count(relation.anomalies)
            share = f"{count} of {relation.n:,} candidates ({relation.anomaly_ratio:.1%})"
        end = "ends" if relation.anomalies == 1 else "end"
        if relation.tied == 1:
            return f"{share} {end} better than the one it would choose"
        least = "highest" if relation.higher_score_is_better else "lowest"
        on_average = "" if relation.anomalies == 0 else "on average "
        return (
            f"{on_average}{share} {end} better than the one it would choose, which is one of "
            f"{relation.tied:,} that share the {least} score"
        )

    def _strength(self) -> str:
        """Words for an agreement as a share of the ceiling; the borders are habit, not theory."""
        agreement = self.relation.agreement
        if not self.is_certain:
            return "says nothing certain about"
        if agreement < 0:
            return "is misleading about"
        share = self.share_of_ceiling
        share = agreement if math.isnan(share) else share
        for border, words in ((0.7, "predicts"), (0.4, "largely predicts"), (0.2, "hints at")):
            if share >= border:
                return words
        return "says little about"


def assess(table: CandidateTable, *, k: int | None = None, seed: int = 0) -> list[Assessment]:
    """Every criterion of a table against its outcome, the mean over seeds.

    ``k`` is that of :func:`trueoracle.analysis.selection.select`. Criteria without any finite score
    are left out, as is everything where no outcome is finite.
    """
    outcome = table.outcome
    known = np.isfinite(outcome)
    names = [name for name, column in table.scores.items() if (np.isfinite(column) & known).any()]
    if not names:
        return []
    reliability = noise_ceiling(table.outcomes, sampled=table.sampled, seed=seed)
    permuted = label_permutation_p_values(table, seed=seed)
    adjusted = dict(zip(names, adjusted_p_values([permuted[n] for n in names]), strict=True))

    def taus(one: CandidateTable, rows: np.ndarray, drawn: np.ndarray) -> Sequence[float]:
        return [kendall_of_finite(one.scores[name][rows], drawn) for name in names]

    resampled = bootstrap([table], taus, seed=seed)
    over = levels_in_words([table])
    made = []
    for place, name in enumerate(names):
        scores = table.scores[name]
        finite = np.isfinite(scores) & known
        made.append(
            Assessment(
                criterion=name,
                relation=relate(
                    scores,
                    outcome,
                    higher_is_better=table.higher_is_better,
                    higher_score_is_better=name in table.higher_is_chosen,
                ),
                interval=resampled.interval(place, bounds=(-1, 1)),
                interval_over=over,
                standard_error=resampled.standard_error(place),
                permutation_p_value=permuted[name],
                adjusted_p_value=adjusted[name],
                weighted_agreement=top_weighted(
                    table.lowest_first(name)[finite],
                    outcome[finite],
                    higher_is_better=table.higher_is_better,
                ),
                reliability=reliability,
                selection=select([table], name, k=k),
            )
        )
    return made


@dataclass(frozen=True)
class Pooled:
    """The mean of raw tau over dense networks, with the interval that draws networks anew."""

    criterion: str
    tau: float
    interval: Interval
    interval_over: str
    standard_error: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(
            {
                "criterion": self.criterion,
                "kendall_tau": self.tau,
                "kendall_low": self.interval.low,
                "kendall_high": self.interval.high,
                "interval_over": self.interval_over,
                "standard_error": self.standard_error,
            }
        )


def pool(tables: Sequence[CandidateTable], *, seed: int = 0) -> list[Pooled]:
    """Every criterion that all tables have, over the dense networks that they come from."""
    names = [name for name in tables[0].scores if all(name in table.scores for table in tables)]
    if not names:
        return []

    def taus(one: CandidateTable, rows: np.ndarray, drawn: np.ndarray) -> Sequence[float]:
        return [kendall_of_finite(one.scores[name][rows], drawn) for name in names]

    resampled = bootstrap(tables, taus, seed=seed)
    return [
        Pooled(
            criterion=name,
            tau=float(resampled.estimate[place]),
            interval=resampled.interval(place, bounds=(-1, 1)),
            interval_over=levels_in_words(tables),
            standard_error=resampled.standard_error(place),
        )
        for place, name in enumerate(names)
    ]
