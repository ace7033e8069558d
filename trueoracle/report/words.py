"""What the numbers of a summary say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueoracle.analysis.numbers import interval, many, number, p_value

__all__ = [
    "additive_sentence",
    "best_first",
    "ceiling_sentences",
    "combination_sentence",
    "grid_verdicts",
    "meta_sentence",
    "pruned_in_words",
    "slope_sentence",
    "verdicts",
]

FEW = 3
"""Up to so many criteria each has its own verdict at the head of a page."""


def best_first(relations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The relations by outcome, and within one from the greatest agreement down."""
    outcomes = list(dict.fromkeys(relation["metric"] for relation in relations))

    def place(relation: Mapping[str, Any]) -> tuple[int, bool, float]:
        agreement = relation["agreement"]
        unknown = agreement is None
        return outcomes.index(relation["metric"]), unknown, 0.0 if unknown else -agreement

    return [dict(relation) for relation in sorted(relations, key=place)]


def verdicts(summary: Mapping[str, Any]) -> list[str]:
    """What a study's page says first: of a few criteria each, of many the best and the oracle."""
    relations = summary["relations"]
    criteria = list(dict.fromkeys(relation["criterion"] for relation in relations))
    if len(criteria) <= FEW:
        return [relation["verdict"] for relation in relations]
    said = []
    ordered = best_first(relations)
    for metric in dict.fromkeys(relation["metric"] for relation in ordered):
        own = [relation for relation in ordered if relation["metric"] == metric]
        said.append(_of_many(own))
        said += [relation["verdict"] for relation in own if _is_oracle(relation)]
    return said


def _is_oracle(relation: Mapping[str, Any]) -> bool:
    return bool(relation["criterion"] == "oracle")


def _of_many(own: Sequence[Mapping[str, Any]]) -> str:
    best = own[0]
    text = (
        f"Of {many(len(own), 'criterion').replace('criterions', 'criteria')}, {best['criterion']} "
        f"tells {best['outcome_name']} best ({_tau(best)})"
    )
    place = next((i for i, one in enumerate(own, start=1) if _is_oracle(one)), 1)
    if place > 1:
        text += f", the pruned train loss is number {place} ({_tau(own[place - 1])})"
    judged = [one for one in own if one.get("adjusted_p_value") is not None]
    if judged:
        sure = sum(one["adjusted_p_value"] < 0.05 and one["agreement"] > 0 for one in judged)
        text += f"; {sure} of {len(judged)} tell it better than chance (Holm-adjusted p < 0.05)"
    return f"{text}."


def _tau(relation: Mapping[str, Any]) -> str:
    text = f"τ = {number(relation['kendall_tau'], 2)}"
    low, high = relation.get("kendall_low"), relation.get("kendall_high")
    if low is not None and high is not None:
        text += f" {interval(low, high)}"
    if relation.get("share_of_ceiling") is not None:
        text += f", {relation['share_of_ceiling']:.0%} of the ceiling"
    return text


def ceiling_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What retraining noise leaves for any criterion to tell, one sentence an outcome."""
    names = {one["metric"]: one["outcome_name"] for one in summary["relations"]}
    said = []
    for metric, known in (summary.get("ceilings") or {}).items():
        if metric not in names or known is None or known.get("ceiling") is None:
            continue
        ceiling = number(known["ceiling"], 2)
        alike = known.get("split_half")
        said.append(
            f"Retrained with other seeds, candidates come in another order by {names[metric]}"
            + ("" if alike is None else f" (τ = {number(alike, 2)} between halves of the seeds)")
            + f": no criterion can be expected to agree with it by more than {ceiling}."
        )
    return said


def combination_sentence(combination: Mapping[str, Any], outcome: str) -> str:
    """How much a fitted combination of the criteria gains over the best of them."""
    gain = combination["gain"]
    gained = "a loss" if gain is not None and gain < 0 else "a gain"
    return (
        f"All criteria together, weighted to fit some candidates and tried on the others "
        f"({many(combination['folds'], 'fold')}), agree with {outcome} to "
        f"{number(combination['agreement'], 2)}; the best single one, {combination['single']}, to "
        f"{number(combination['single_agreement'], 2)}: {gained} of "
        f"{number(None if gain is None else abs(gain), 2)}."
    )


def additive_sentence(additive: Mapping[str, Any], outcome: str) -> str:
    """How far importances could come: a sum over filters that knows the outcomes of others."""
    return (
        f"A sum of one number for each filter, fitted to the outcomes of some candidates and tried "
        f"on the others ({many(additive['folds'], 'fold')}), agrees with {outcome} to "
        f"{number(additive['agreement'], 2)}: so much could a criterion that adds up importances "
        "tell, if it knew what each filter is worth after retraining."
    )


def meta_sentence(meta: Mapping[str, Any], score: str, outcome: str) -> str:
    """What a random-effects meta-analysis says over the studies of a grid."""
    count = len(meta["studies"])
    text = (
        f"Over {many(count, 'study').replace('studys', 'studies')}, {score} has "
        f"τ = {number(meta['tau'], 2)} {interval(meta['low'], meta['high'])} with {outcome}"
    )
    if meta.get("i2") is not None:
        text += f"; {meta['i2']:.0%} of its variation is between the studies"
        if meta.get("p_value") is not None:
            text += f" (p = {p_value(meta['p_value'])})".replace("= <", "< ")
    if meta.get("prediction_low") is not None and meta.get("prediction_high") is not None:
        expected = interval(meta["prediction_low"], meta["prediction_high"])
        text += f", and in another one of their kind {expected} is to be expected"
    return f"{text[0].upper()}{text[1:]}."


def slope_sentence(slope: Mapping[str, Any], score: str, outcome: str) -> str:
    """How tau changes with what makes the studies harder."""
    said = f"p = {p_value(slope['p_value'])}".replace("= <", "< ")
    return (
        f"With each unit of {slope['by']}, τ of {score} with {outcome} changes by "
        f"{number(slope['slope'], 3)} {interval(slope['low'], slope['high'], 3)} ({said})."
    )


def grid_verdicts(summary: Mapping[str, Any]) -> list[str]:
    """What a grid's page says first; of many criteria, of the pruned train loss."""
    found = [
        relation
        for entry in summary["points"]
        for relation in (entry["summary"] or {"relations": []})["relations"]
    ]
    names = {
        (one["criterion"], one["metric"]): (one["score_name"], one["outcome_name"]) for one in found
    }
    criteria = list(dict.fromkeys(one["criterion"] for one in found))
    told = criteria if len(criteria) <= FEW or "oracle" not in criteria else ["oracle"]
    return [
        meta_sentence(meta, *names[meta["criterion"], meta["metric"]])
        for meta in summary.get("meta") or []
        if meta["criterion"] in told and (meta["criterion"], meta["metric"]) in names
    ]


def pruned_in_words(pruned: dict[str, Any]) -> str:
    """Such as ``"conv1 2, 7; conv2 0, 3"``; of single weights ``"mask 9f86d081884c7d65"``."""
    if isinstance(pruned.get("mask"), str):
        return f"mask {pruned['mask']}"
    return "; ".join(f"{name} {', '.join(map(str, which))}" for name, which in pruned.items())
