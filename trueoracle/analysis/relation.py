"""What a score before retraining says of an outcome after it: the study's answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.correlation import (
    Correlation,
    discordant_ratio,
    kendall,
    pearson,
    spearman,
)
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.ties import count_above, lowest
from trueoracle.errors import InputError

__all__ = ["Relation", "relate"]


@dataclass(frozen=True)
class Relation:
    """The statistics of one score against one outcome.

    ``n`` candidates count; ``dropped`` had no finite score or outcome (diverged, say).
    Coefficients are those of the columns as they are: where a higher outcome is better, a perfect
    criterion has tau -1. ``agreement`` is tau with the sign turned so that +1 is perfect.
    ``chosen`` is the row (in the columns given) of the lowest score. An anomaly ends strictly
    better than it; ``rank`` is its place by outcome (1 = best) and ``regret`` what the best outcome
    has over its own, never negative. Where the score is itself an outcome of which more is better
    (``higher_score_is_better``), the highest one chooses.

    ``tied`` counts the candidates that share the lowest score. Where they are several, each is as
    likely to be chosen: ``anomalies``, ``anomaly_ratio``, ``chosen_outcome``, ``rank`` and
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

    @property
    def agreement(self) -> float:
        turned = self.higher_is_better != self.higher_score_is_better
        return -self.kendall.value if turned else self.kendall.value

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        fields = asdict(self) | {"agreement": self.agreement}
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
) -> Relation:
    """Relate scores ``x [P]`` (lower = prune this one) to outcomes ``y [P]``.

    ``higher_score_is_better`` is for scores such as the accuracy after a short retraining. Rows
    where either is not finite are dropped and counted. Raises :class:`InputError` where the lengths
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
    )
