"""Everything a report says, as plain values: no torch, no drawing, ready for JSON."""

from __future__ import annotations

from typing import Any

from trueoracle.analysis.numbers import finite_or_none
from trueoracle.analysis.outcomes import outcome_name, rule_in_words
from trueoracle.study.results import Results, score_name, short_name
from trueoracle.study.scale import scale_in_words, scale_of

__all__ = ["REPORTED_METRICS", "summarise"]

REPORTED_METRICS = ("test_accuracy", "test_loss")
"""Both are looked at: where pruning regularises, loss and accuracy can tell different stories."""


def summarise(results: Results, rule: str = "last", short: Results | None = None) -> dict[str, Any]:
    """The summary of one recorded study, as far as it has come.

    ``short`` is its short retraining (:func:`trueoracle.study.results.find_short`), where there is
    one: ``short_retraining`` then relates the two.

    ``relations`` has one entry for each criterion and metric: the fields of
    :class:`trueoracle.analysis.relation.Relation` with the names of both, the ``verdict`` and the
    pruned filters of the chosen candidate (``chosen_pruned``). NaN is given as None.
    """
    spec = results.spec
    retrainings = results.retrainings
    return {
        **results.status(),
        "purpose": spec.purpose,
        "scale": scale_of(spec.name),
        "scale_in_words": scale_in_words(spec),
        "network": spec.network.name,
        "data": spec.data.name,
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
        "short_retraining": None if short is None else _short(results, short, rule),
        "spec": spec.model_dump(mode="json"),
        "provenance": results.provenance,
    }


def _short(results: Results, short: Results, rule: str) -> dict[str, Any]:
    relations = []
    for metric in REPORTED_METRICS:
        points = results.points_after(short, metric, rule)
        if not (points["score"].notna() & points["outcome"].notna()).any():
            continue
        relation = results.relation_after(short, metric, rule)
        said, outcome = short_name(short, metric), outcome_name(metric, rule)
        relations.append(
            {
                "criterion": "short retraining",
                "metric": metric,
                **relation.as_dict(),
                "chosen_pruned": points["pruned"].iloc[relation.chosen],
                "score_name": said,
                "outcome_name": outcome,
                "verdict": relation.sentence(said, outcome),
            }
        )
    return {
        "study": short.spec.name,
        "digest": short.spec.digest,
        "epochs": short.spec.retraining.epochs,
        "relations": relations,
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
