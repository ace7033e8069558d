"""Everything a report says, as plain values: no torch, no drawing, ready for JSON."""

from __future__ import annotations

from typing import Any

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import outcome_name, rule_in_words
from trueoracle.study.results import Results, score_name

__all__ = ["REPORTED_METRICS", "summarise"]

REPORTED_METRICS = ("test_accuracy", "test_loss")
"""Both are looked at: where pruning regularises, loss and accuracy can tell different stories."""


def summarise(results: Results, rule: str = "last") -> dict[str, Any]:
    """The summary of one recorded study, as far as it has come.

    ``relations`` has one entry for each criterion and metric: the fields of
    :class:`trueoracle.analysis.relation.Relation` with the names of both, the ``verdict`` and the
    pruned filters of the chosen candidate (``chosen_pruned``). NaN is given as None.
    """
    spec = results.spec
    retrainings = results.retrainings
    return {
        **results.status(),
        "purpose": spec.purpose,
        "surgery": spec.pruning.surgery,
        "layers": dict(spec.pruning.layers),
        "seeds": list(spec.retraining.seeds),
        "epochs": spec.retraining.epochs,
        "exhaustive": spec.pruning.candidates == "all",
        "outcome": rule,
        "outcome_in_words": rule_in_words(rule),
        "dense": finite_or_none(results.dense or {}),
        "retraining_seconds": float(retrainings["seconds"].sum()) if len(retrainings) else 0.0,
        "relations": _relations(results, rule) if len(results.outcomes) else [],
        "spec": spec.model_dump(mode="json"),
        "provenance": results.provenance,
    }


def _relations(results: Results, rule: str) -> list[dict[str, Any]]:
    entries = []
    for criterion in results.criteria:
        for metric in REPORTED_METRICS:
            points = results.points(criterion, metric, rule)
            if not (points["score"].notna() & points["outcome"].notna()).any():
                continue  # a criterion without a finite score, or nothing but divergence
            relation = results.relation(criterion, metric, rule)
            entries.append(
                {
                    "criterion": criterion,
                    "metric": metric,
                    **relation.as_dict(),
                    "chosen_pruned": points["pruned"].iloc[relation.chosen],
                    "score_name": score_name(criterion),
                    "outcome_name": outcome_name(metric, rule),
                    "verdict": relation.sentence(score_name(criterion), outcome_name(metric, rule)),
                }
            )
    return entries
