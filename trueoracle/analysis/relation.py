"""What a score before retraining says of an outcome after it: the study's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.correlation import (
    Correlation,
    discordant_ratio,
    kendall,
    pearson,
    sign_of,
    spearman,
)
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.ties import count_above, lowest
from trueoracle.errors import InputError

__all__ = ["Relation", "mean_relation", "relate"]


@dataclass(frozen=True)
class Relation:
    """The statistics of one score against one outcome.

    Two signs occur, and each field has one of them:

    - raw: ``kendall``, ``spearman`` and ``pearson`` are those of the columns as they are. A
      perfect criterion has -1 where a higher outcome is better, and +1 where a lower one is;
    - turned: ``agreement`` is +1 where the score orders candidates as the outcome does, whichever
      way either is better. It is ``sign`` times Kendall's tau.

    The others have no sign:

    - ``n`` candidates count; ``dropped`` had no finite score or outcome;
    - ``chosen`` is the row (of the columns given) of the lowest score, or of the highest where
      ``higher_score_is_better``, as where the score is itself an outcome of which more is better;
    - ``anomalies`` end strictly better than the chosen one; ``anomaly_ratio`` is their share;
    - ``rank`` is the chosen one's place by outcome (1 = best), and ``regret`` the difference
      between the best outcome and its own, never negative;
    - ``discordant_ratio`` is the share of all pairs that score and outcome order oppositely;
    - ``diverged`` candidates diverged in some retraining; they count as the worst, and
      ``chosen_diverged`` says that the chosen one is among them (its true regret may then be
      larger than ``regret``);
    - ``tied`` counts the candidates that share the lowest score. Where they are several, each is
      as likely to be chosen: ``anomalies``, ``anomaly_ratio``, ``chosen_outcome``, ``rank`` and
      ``regret`` are means over them, and ``chosen`` is None.
    """

    n: int
    dropped: int
    higher_is_better: bool
    kendall: Correlation
    spearman: Correlation
    pearson: Correlation
    anomalies: float
    anomaly_ratio: float
    discordant_ratio: float
    tied: int
    chosen: int | None
    chosen_score: float
    chosen_outcome: float
    best_outcome: float
    rank: float
    regret: float
    higher_score_is_better: bool = False
    diverged: int = 0
    chosen_diverged: bool = False

    @property
    def sign(self) -> int:
        """What turns a raw coefficient into agreement: 1 or -1."""
        return sign_of(
            higher_is_better=self.higher_is_better,
            higher_score_is_better=self.higher_score_is_better,
        )

    @property
    def agreement(self) -> float:
        """Kendall's tau, its sign turned so that +1 is perfect."""
        return self.sign * self.kendall.value

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None; ``kendall_tau`` is raw, as are ``…_r``."""
        fields = asdict(self) | {"sign": self.sign, "agreement": self.agreement}
        for name in ("kendall", "spearman", "pearson"):
            coefficient = fields.pop(name)
            label = "kendall_tau" if name == "kendall" else f"{name}_r"
            fields[label] = coefficient["value"]
            fields[f"{name}_p_value"] = coefficient["p_value"]
        return finite_or_none(fields)


def relate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    higher_is_better: bool,
    higher_score_is_better: bool = False,
    diverged: np.ndarray | None = None,
) -> Relation:
    """Relate scores ``x [P]`` (lower = prune this one) to outcomes ``y [P]``.

    ``diverged`` ``[P]`` says which rows have the worst outcome because a network diverged.
    ``higher_score_is_better`` is for scores such as an outcome of a short retraining. Rows where
    either is not finite are dropped and counted. Raises :class:`InputError` where the lengths
    differ or no row is left.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"scores and outcomes must be columns of one length: {x.shape}, {y.shape}")
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(finite) == 0:
        raise InputError("no candidate has both a finite score and a finite outcome")
    scores, outcomes = x[finite], y[finite]
    lower_is_better = -scores if higher_score_is_better else scores
    chosen = np.flatnonzero(lowest(lower_is_better))
    better = outcomes if higher_is_better else -outcomes
    anomalies = float(count_above(better, better[chosen]).mean())
    return Relation(
        n=len(finite),
        dropped=len(x) - len(finite),
        higher_is_better=higher_is_better,
        kendall=kendall(scores, outcomes),
        spearman=spearman(scores, outcomes),
        pearson=pearson(scores, outcomes),
        anomalies=anomalies,
        anomaly_ratio=anomalies / len(finite),
        discordant_ratio=discordant_ratio(
            lower_is_better, outcomes, higher_is_better=higher_is_better
        ),
        tied=len(chosen),
        chosen=int(finite[chosen[0]]) if len(chosen) == 1 else None,
        chosen_score=float(scores[chosen[0]]),
        chosen_outcome=float(outcomes[chosen].mean()),
        best_outcome=float(outcomes[better.argmax()]),
        rank=anomalies + 1,
        regret=float((better.max() - better[chosen]).mean()),
        higher_score_is_better=higher_score_is_better,
        diverged=0 if diverged is None else int(diverged[finite].sum()),
        chosen_diverged=diverged is not None and bool(diverged[finite][chosen].all()),
    )


def mean_relation(each: Sequence[Relation]) -> Relation:
    """The mean relation over dense networks, whose candidates are not compared with each other.

    ``n``, ``dropped``, ``anomalies`` and ``diverged`` are sums; the rest are means, without
    p-values. ``tied`` is the largest of any network, and there is no ``chosen`` candidate.
    """
    if len(each) == 1:
        return each[0]

    def mean(of: Callable[[Relation], float]) -> float:
        return float(np.mean([of(one) for one in each]))

    return Relation(
        n=sum(one.n for one in each),
        dropped=sum(one.dropped for one in each),
        higher_is_better=each[0].higher_is_better,
        kendall=Correlation(mean(lambda one: one.kendall.value), math.nan),
        spearman=Correlation(mean(lambda one: one.spearman.value), math.nan),
        pearson=Correlation(mean(lambda one: one.pearson.value), math.nan),
        anomalies=sum(one.anomalies for one in each),
        anomaly_ratio=mean(lambda one: one.anomaly_ratio),
        discordant_ratio=mean(lambda one: one.discordant_ratio),
        tied=max(one.tied for one in each),
        chosen=None,
        chosen_score=mean(lambda one: one.chosen_score),
        chosen_outcome=mean(lambda one: one.chosen_outcome),
        best_outcome=mean(lambda one: one.best_outcome),
        rank=mean(lambda one: one.rank),
        regret=mean(lambda one: one.regret),
        higher_score_is_better=each[0].higher_score_is_better,
        diverged=sum(one.diverged for one in each),
        chosen_diverged=all(one.chosen_diverged for one in each),
    )
