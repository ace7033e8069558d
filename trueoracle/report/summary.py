"""Everything a report says, as plain values: no torch, no drawing, ready for JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd

from trueoracle.analysis.assessment import Assessment
from trueoracle.analysis.comparison import compare
from trueoracle.analysis.numbers import finite_or_none, quantity
from trueoracle.analysis.outcomes import chance_in_words, outcome_name, rule_in_words
from trueoracle.record.results import Results, short_name
from trueoracle.spec.scale import changes_from_file, scale_in_words

__all__ = ["REPORTED_METRICS", "cost_in_words", "summarise"]

REPORTED_METRICS = ("test_accuracy", "test_loss")
"""Both are looked at: where pruning regularises, loss and accuracy can tell different stories."""


def summarise(results: Results, rule: str = "last", short: Results | None = None) -> dict[str, Any]:
    """The summary of one recorded study, as far as it has come.

    ``short`` is its short retraining (:func:`trueoracle.record.results.find_short`), where there is
    one: ``short_retraining`` then relates the two.

    ``relations`` has one entry for each criterion and metric: the fields of
    :class:`trueoracle.analysis.assessment.Assessment` with the names of both, the ``verdict`` and
    the pruned filters of the chosen candidate (``chosen_pruned``; None where several tie).
    ``ceilings`` has the reliability of each metric's outcomes, ``comparison`` what
    :func:`trueoracle.analysis.comparison.compare` says of several criteria. ``warning`` says that
    the dense network is hardly better than chance, where it is. ``changed`` has the dotted fields
    whose values are not those of the shipped study of this name, which ``purpose`` tells of.
    ``cost`` is what pruning saves; None where an older record does not hold it. NaN is given as
    None.
    """
    spec = results.spec
    retrainings = results.retrainings
    recorded = REPORTED_METRICS if len(results.outcomes) else ()
    found = {metric: results.assess(metric, rule) for metric in recorded}
    return {
        **results.status(),
        "purpose": spec.purpose,
        "changed": changes_from_file(spec),
        "kind": spec.pruning.kind,
        "title": spec.title,
        "scale": spec.scale,
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
        "warning": _warning(results),
        "cost": _cost(results),
        "retraining_seconds": float(retrainings["seconds"].sum()) if len(retrainings) else 0.0,
        "relations": _relations(results, found, rule),
        "ceilings": _ceilings(found),
        "comparison": _comparison(results, rule),
        "short_retraining": None if short is None else _short(results, short, rule),
        "spec": spec.model_dump(mode="json"),
        "provenance": results.provenance,
    }


def _warning(results: Results) -> str:
    classes = [sitting["classes"] for sitting in results.provenance if "classes" in sitting]
    accuracy = finite_or_none(results.dense or {}).get("test_accuracy")
    return chance_in_words(accuracy, classes[-1] if classes else None)


def _cost(results: Results) -> dict[str, Any] | None:
    """Parameters and MACs before and after pruning, medians where candidates differ."""
    costs = results.candidates[["parameters", "macs"]]
    dense = results.dense
    if dense is None or dense["macs"] is None or costs.empty or costs.isna().any(axis=None):
        return None
    parameters, macs = (int(costs[name].median()) for name in ("parameters", "macs"))
    return {
        "dense_parameters": dense["parameters"],
        "dense_macs": dense["macs"],
        "parameters": parameters,
        "macs": macs,
        "equal": bool((costs.nunique() == 1).all()),
        "compression_ratio": dense["parameters"] / parameters,
        "theoretical_speedup": dense["macs"] / macs if macs else None,
    }


def cost_in_words(cost: dict[str, Any]) -> str:
    """Such as ``"each candidate: 1,924 of 3,210 parameters (compression 1.67x), …"``."""
    speedup = cost["theoretical_speedup"]
    faster = f" (speed-up {speedup:.2f}x)" if speedup else ""
    return (
        f"{'each' if cost['equal'] else 'the median'} candidate: {cost['parameters']:,} of "
        f"{cost['dense_parameters']:,} parameters (compression {cost['compression_ratio']:.2f}x), "
        f"{quantity(cost['macs'], cost['dense_macs'])} MACs{faster}"
    )


def _short(results: Results, short: Results, rule: str) -> dict[str, Any]:
    relations = []
    for metric in REPORTED_METRICS:
        found = results.assess_after(short, metric, rule)
        if found is None:
            continue
        points = results.points_after(short, metric, rule)
        relations.append(
            _entry(found, "short retraining", short_name(short, metric), metric, rule, points)
        )
    return {
        "study": short.spec.name,
        "digest": short.spec.digest,
        "epochs": short.spec.retraining.epochs,
        "relations": relations,
    }


def _entry(
    found: Assessment, criterion: str, score: str, metric: str, rule: str, points: pd.DataFrame
) -> dict[str, Any]:
    outcome = outcome_name(metric, rule)
    chosen = found.relation.chosen
    return {
        "criterion": criterion,
        "metric": metric,
        **found.as_dict(),
        "chosen_pruned": None if chosen is None else points["pruned"].iloc[chosen],
        "score_name": score,
        "outcome_name": outcome,
        "verdict": found.sentence(score, outcome),
    }


def _relations(
    results: Results, found: dict[str, list[Assessment]], rule: str
) -> list[dict[str, Any]]:
    """One entry a criterion and metric, criterion by criterion."""
    entries = [
        _entry(
            one,
            one.criterion,
            results.score_name(one.criterion),
            metric,
            rule,
            results.candidates,
        )
        for metric, assessments in found.items()
        for one in assessments
    ]
    return sorted(entries, key=lambda entry: results.criteria.index(entry["criterion"]))


def _ceilings(found: dict[str, list[Assessment]]) -> dict[str, Any]:
    return {
        metric: assessments[0].reliability.as_dict()
        for metric, assessments in found.items()
        if assessments
    }


def _comparison(results: Results, rule: str) -> dict[str, Any]:
    """The criteria among each other, by metric; empty where there is only one."""
    if len(results.criteria) < 2 or results.outcomes.empty:
        return {}
    return {metric: compare(results.table(metric, rule)) for metric in REPORTED_METRICS}
