"""Everything that a report says, as plain values for JSON. No torch, no drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from trueoracle.analysis.assessment import Assessment, judged_together
from trueoracle.analysis.comparison import compare
from trueoracle.analysis.numbers import finite_or_none, quantity
from trueoracle.analysis.outcomes import (
    baseline_in_words,
    chance_in_words,
    failures_in_words,
    noise_in_words,
    rule_in_words,
)
from trueoracle.record.layout import NOISE
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import SHORT, Results
from trueoracle.report.share import shared_names, without_places
from trueoracle.spec.scale import changes_from_file, scale_in_words, scale_of
from trueoracle.spec.spec import candidates_in_words

__all__ = ["Assessed", "assess_together", "cost_in_words", "summarise"]


@dataclass(frozen=True)
class Assessed:
    """The assessments of a study by outcome, and those of its short retraining."""

    outcomes: dict[str, list[Assessment]]
    short: dict[str, list[Assessment]]


def assess_together(
    studies: Sequence[tuple[Results, Results | None]], rule: str = "last"
) -> list[Assessed]:
    """The assessments of studies that one page or table shows, each with its short retraining.

    P-values are adjusted for all that is shown: criteria, outcomes, arms and points of a grid.
    """
    found: list[tuple[int, bool, str]] = []
    groups: list[list[Assessment]] = []
    for place, (results, short) in enumerate(studies):
        if not len(results.outcomes):
            continue
        both = None if short is None else results.with_short(short)
        for column in results.default_outcomes:
            found.append((place, False, column))
            groups.append(results.assess(column, rule))
            if both is not None:
                found.append((place, True, column))
                groups.append(both.assess(column, rule, [SHORT]))
    made = [Assessed({}, {}) for _ in studies]
    for (place, is_short, column), group in zip(found, judged_together(groups), strict=True):
        (made[place].short if is_short else made[place].outcomes)[column] = group
    return made


def summarise(
    results: Results,
    rule: str = "last",
    short: Results | None = None,
    assessed: Assessed | None = None,
) -> dict[str, Any]:
    """The summary of one recorded study, as far as the study has come.

    ``short`` is the study's short retraining (:func:`trueoracle.record.runs.find_short`), where
    there is one; ``assessed`` is what :func:`assess_together` found where more than this study is
    shown. NaN is given as None. The summary has, among others,

    - ``task``, ``metrics``: the task, and what it measures;
    - ``relations``: one entry for each criterion and outcome (``metric``): the fields of
      :class:`trueoracle.analysis.assessment.Assessment` with the names of both, the ``verdict`` and
      the pruned filters of the chosen candidate (``chosen_pruned``; None where several tie);
    - ``ceilings``: the reliability of each outcome;
    - ``comparison``: what :func:`trueoracle.analysis.comparison.compare` finds among criteria;
    - ``short_retraining``: the relations of the short retraining's outcomes to this study's;
    - ``warning``: that the dense network is hardly better than chance, or that pruned losses
      differ no more than by the choice of examples, where that is so;
    - ``candidates_in_words``: what the candidates are, and which part of that is random;
    - ``data_facts``: what is recorded of text and questions; empty for other data;
    - ``changed``: the dotted fields whose values are not those of the file of this name, which
      ``purpose`` describes;
    - ``badge``: these and small scale, in words;
    - ``cost``: what pruning saves; None where an older record does not hold it;
    - ``latency``: how long a forward takes (:attr:`Results.latency`); None where it was not
      measured;
    - ``searches``: what searches have chosen (:attr:`Results.searches`);
    - ``dense_seeds``: the seeds of the dense networks. Where there are several, ``networks`` has
      the summary of each, with its own p-values, and all of the above is over the networks.
    """
    spec = results.spec
    retrainings = results.retrainings
    known = assessed or assess_together([(results, short)], rule)[0]
    found = known.outcomes
    status = results.status()
    made = {
        **status,
        "purpose": spec.purpose,
        "changed": to_jsonable_python(changes_from_file(spec)),
        "kind": spec.pruning.kind,
        "title": spec.title,
        "scale": scale_of(spec),
        "scale_in_words": scale_in_words(spec),
        "network": spec.network.name,
        "data": spec.data.name,
        "data_facts": results.data_facts,
        "task": results.task,
        "metrics": [finite_or_none(asdict(metric)) for metric in results.metrics],
        "surgery": spec.pruning.surgery,
        "layers": dict(spec.pruning.layers),
        "seeds": list(spec.retraining.seeds),
        "epochs": spec.retraining.epochs,
        "exhaustive": spec.pruning.candidates == "all",
        "outcome": rule,
        "outcome_in_words": rule_in_words(rule, results.metrics),
        "dense": finite_or_none(results.dense or {}),
        "warning": _warning(results),
        "failures_in_words": failures_in_words(results.failures["error"], status["to_retrain"]),
        "candidates_in_words": candidates_in_words(spec.pruning, status["candidates"]),
        "cost": _cost(results),
        "latency": results.latency,
        "searches": results.searches,
        "retraining_seconds": float(retrainings["seconds"].sum()) if len(retrainings) else 0.0,
        "relations": _relations(results, found, rule),
        "ceilings": _ceilings(found),
        "comparison": _comparison(results, rule),
        "short_retraining": None if short is None else _short(results, short, known, rule),
        "spec": spec.model_dump(mode="json"),
        "provenance": results.provenance,
        "dense_seeds": [one.dense.seed for one in spec.networks],
        "networks": _networks(results, rule),
    }
    if results.is_shared:
        return dict(without_places(made, shared_names(results.criteria)))
    return made


def _networks(results: Results, rule: str) -> list[dict[str, Any]]:
    if not isinstance(results, PooledResults):
        return []
    return [summarise(one, rule) for one in results.networks.values()]


def _warning(results: Results) -> str:
    if isinstance(results, PooledResults):
        said = {seed: _warning(one) for seed, one in results.networks.items()}
        return "; ".join(f"dense network {seed}: {words}" for seed, words in said.items() if words)
    noise = [sitting[NOISE] for sitting in results.provenance if sitting.get(NOISE)]
    little = noise_in_words(noise[-1], results.metrics[0].unit) if noise else ""
    chance = [sitting["chance"] for sitting in results.provenance if "chance" in sitting]
    outcome = results.outcome()
    value = (results.dense or {}).get(outcome.column)
    guessing = chance_in_words(outcome, value, chance[-1] if chance else None)
    dense = guessing or baseline_in_words(outcome, value, results.data_facts)
    return "; ".join(filter(None, (dense, little)))


def _cost(results: Results) -> dict[str, Any] | None:
    """Parameters and MACs before and after pruning, as medians where candidates differ."""
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
    """The cost, such as ``"each candidate: 1,924 of 3,210 parameters (compression 1.67x), …"``."""
    speedup = cost["theoretical_speedup"]
    faster = f" (theoretical speed-up {speedup:.2f}x)" if speedup else ""
    return (
        f"{'each' if cost['equal'] else 'the median'} candidate: {cost['parameters']:,} of "
        f"{cost['dense_parameters']:,} parameters (compression {cost['compression_ratio']:.2f}x), "
        f"{quantity(cost['macs'], cost['dense_macs'])} MACs{faster}"
    )


def _short(results: Results, short: Results, known: Assessed, rule: str) -> dict[str, Any]:
    both = results.with_short(short)
    return {
        "study": short.spec.name,
        "digest": short.spec.digest,
        "epochs": short.spec.retraining.epochs,
        "relations": [
            _entry(both, one, column, rule)
            for column, assessments in known.short.items()
            for one in assessments
        ],
    }


def _entry(results: Results, found: Assessment, column: str, rule: str) -> dict[str, Any]:
    outcome = results.outcome(column, rule)
    score = results.score(found.criterion, outcome).label
    chosen = found.relation.chosen
    return {
        "criterion": found.criterion,
        "metric": column,
        **found.as_dict(),
        "chosen_pruned": None if chosen is None else results.candidates["pruned"].iloc[chosen],
        "score_name": score,
        "outcome_name": outcome.name,
        "verdict": found.sentence(score, outcome.name),
    }


def _relations(
    results: Results, found: dict[str, list[Assessment]], rule: str
) -> list[dict[str, Any]]:
    """One entry per criterion and outcome, criterion by criterion."""
    entries = [
        _entry(results, one, column, rule)
        for column, assessments in found.items()
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
    """The criteria compared with each other, by outcome; empty where there is only one."""
    if len(results.criteria) < 2 or results.outcomes.empty:
        return {}
    return {one: compare(results.candidate_tables(one, rule)) for one in results.default_outcomes}
