"""What the numbers of a summary say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueoracle.analysis.numbers import (
    ABSENT,
    interval,
    many,
    milliseconds,
    number,
    p_value,
    percent,
)
from trueoracle.analysis.power import Power

__all__ = [
    "additive_sentence",
    "best_first",
    "by_agreement",
    "ceiling_sentences",
    "combination_sentence",
    "data_in_words",
    "grid_verdicts",
    "kinds_in_words",
    "latencies_in_words",
    "latency_in_words",
    "limits_in_words",
    "medians_in_words",
    "meta_sentence",
    "pruned_in_words",
    "searches_in_words",
    "slope_sentence",
    "told_apart",
    "verdicts",
]

CERTAIN = "Holm's p over all that is shown < 0.05, and an interval over filters without zero in it"
"""The rule of :attr:`trueoracle.analysis.assessment.Assessment.is_certain`."""

FEW = 3
"""The most criteria that all get a verdict at the head of a page."""


def told_apart(names: Sequence[str], digests: Sequence[str]) -> list[str]:
    """Names of studies, with the digest where several have one name; records of one study count."""
    said = [
        name if names.count(name) == 1 else f"{name} ({digest})"
        for name, digest in zip(names, digests, strict=True)
    ]
    before = (said[:place].count(one) for place, one in enumerate(said))
    return [f"{one}, {n + 1}" if n else one for one, n in zip(said, before, strict=True)]


def searches_in_words(summary: Mapping[str, Any]) -> list[str]:
    """What each recorded search has trained and chosen, one sentence per search."""
    return [_search_in_words(one, summary) for one in summary["searches"]]


def _search_in_words(search: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    order = f", ordered by {search['criterion']}" if search["criterion"] else ""
    said = (
        f"A search ({search['strategy']}{order}, seed {search['seed']}) trained "
        f"{many(search['networks'], 'network')} for {many(search['epochs'], 'epoch')} in all"
    )
    if not search["complete"]:
        return f"{said} and is not finished."
    if search["chosen"] is None:
        return f"{said}; all of them diverged."
    prunes = (
        "" if search["pruned"] is None else f", which prunes {pruned_in_words(search['pruned'])}"
    )
    dense, columns = summary["dense"] or {}, [f"test_{one['name']}" for one in summary["metrics"]]
    values = "; ".join(
        f"{column.replace('_', ' ')} {number(search['outcome'][column], 4)}"
        f" (dense network {number(dense.get(column), 4)})"
        for column in dict.fromkeys((*columns, search["by"]))
    )
    return f"{said} and chose candidate {search['chosen']}{prunes}: {values}."


def best_first(relations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The relations sorted by outcome, and within an outcome from the greatest agreement down."""
    outcomes = list(dict.fromkeys(relation["metric"] for relation in relations))

    def place(relation: Mapping[str, Any]) -> tuple[int, bool, float]:
        return outcomes.index(relation["metric"]), *by_agreement(relation)

    return [dict(relation) for relation in sorted(relations, key=place)]


def by_agreement(relation: Mapping[str, Any]) -> tuple[bool, float]:
    """The key that sorts relations from the greatest agreement down, those without any last."""
    agreement = relation["agreement"]
    return agreement is None, 0.0 if agreement is None else -agreement


def verdicts(summary: Mapping[str, Any]) -> list[str]:
    """The first sentences of a study's page: on each criterion, or on the best and the oracle."""
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
    """Whether any of many criteria predicts the outcome (Yes, No or Unclear), and which do."""
    best = own[0]
    answers = [one.get("answer") for one in own]
    yes, no = answers.count("Yes"), answers.count("No")
    answer = "Yes" if yes else "No" if no == len(own) else "Unclear"
    text = (
        f"{answer}: of {many(len(own), 'criterion', 'criteria')}, {yes} "
        f"{'predicts' if yes == 1 else 'predict'} {best['outcome_name']} (τ is certain and 0.2 or "
        f"more), of {no} it is certain that they do not, and of {len(own) - yes - no} it is "
        f"unclear; {best['criterion']} agrees most ({_tau(best)})"
    )
    place = next((i for i, one in enumerate(own, start=1) if _is_oracle(one)), 1)
    if place > 1:
        text += f", the pruned train loss is number {place} ({_tau(own[place - 1])})"
    over = best.get("interval_over")
    given = f" Intervals are over {over}." if over else ""
    if not any(one.get("counts_filters") for one in own):
        return f"{text}; that other filters would give another τ is not counted.{given}"
    return f"{text}. Certain is: {CERTAIN}.{given}"


def _tau(relation: Mapping[str, Any]) -> str:
    text = f"agreement {number(relation['agreement'], 2)}"
    low, high = relation.get("agreement_low"), relation.get("agreement_high")
    if low is not None and high is not None:
        text += f" {interval(low, high)}"
    if relation.get("at_most") is not None:
        text += f", of size {number(relation['at_most'], 2)} at most with 95%"
    return text


def data_in_words(facts: Mapping[str, Any]) -> str:
    """What examples of text or questions are made of, in one line; empty for other data."""
    if not facts:
        return ""
    counted = ", ".join(f"{part} {n:,}" for part, n in (facts.get("tokens_counted") or {}).items())
    said = [
        f"text {facts.get('text')} (SHA-256 {str(facts.get('text_sha256'))[:12]})",
        f"tokenizer {facts.get('tokenizer')} of {facts.get('vocabulary')} tokens "
        f"(SHA-256 {str(facts.get('tokenizer_sha256'))[:12]})",
        f"context {facts.get('context')}",
        f"stride {facts['stride']}" if "stride" in facts else "",
        f"BOS {facts.get('bos')}",
        f"tokens counted: {counted}" if counted else "",
        *(
            f"{percent(one['test'])} of test answers are right {one['label']}"
            for one in facts.get("baselines") or ()
        ),
    ]
    return "; ".join(filter(None, said))


def ceiling_sentences(summary: Mapping[str, Any]) -> list[str]:
    """The agreement that noise leaves to any criterion, one sentence per outcome."""
    names = {one["metric"]: one["outcome_name"] for one in summary["relations"]}
    said = []
    for metric, known in (summary.get("ceilings") or {}).items():
        if metric not in names or known is None or known.get("ceiling") is None:
            continue
        around = interval(known.get("ceiling_low"), known.get("ceiling_high"))
        ceiling = number(known["ceiling"], 2) + ("" if around == ABSENT else f" {around}")
        alike = known.get("split_half")
        halves = "seeds and examples" if known.get("blocks") and known["seeds"] > 1 else "seeds"
        if known.get("blocks") and known["seeds"] < 2:
            halves = "examples"
        order = "" if alike is None else f" (τ = {number(alike, 2)} between halves of the {halves})"
        text = f"The ceiling of {ceiling} for {names[metric]}"
        if known.get("blocks"):
            text += f" counts the noise of {halves}{order}: "
            text += "about so far could a perfect criterion agree."
        else:
            text += (
                f" counts retraining noise only{order}: about so far could a perfect "
                "criterion agree on these examples. The record has no outcomes by blocks of "
                "examples: how other examples would order the candidates is not known."
            )
        above = [
            f"{one['criterion']} ({number(one['agreement'], 2)})"
            for one in summary["relations"]
            if one["metric"] == metric and (one["agreement"] or 0) > known["ceiling"]
        ]
        if above:
            verb = "lies" if len(above) == 1 else "lie"
            text += f" It is an estimate: {', '.join(above)} {verb} above it."
        said.append(text)
    return said


def latency_in_words(latency: Mapping[str, Any] | None) -> str:
    """How long a forward takes, and where that was measured, in one sentence."""
    if latency is None or not latency["batch"]:
        return "Latency was not measured: running the study again measures it"
    each = [
        f"{many(size, 'example')} {milliseconds(pruned, dense)}"
        for size, dense, pruned in zip(
            *(latency[name] for name in ("batch", "dense", "pruned")), strict=True
        )
    ]
    counts = " and ".join(dict.fromkeys(f"{one:.0f}" for one in latency["repeats"]))
    networks = latency.get("networks")
    over = f", median of {many(networks, 'dense network')}" if networks else ""
    return (
        f"Latency of a pruned network, of the dense one's: {'; '.join(each)} (medians of {counts} "
        f"forwards on {latency['device']}, {many(latency['threads'], 'thread')}{over})"
    )


def latencies_in_words(studies: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Where and how the latencies of a table were measured, from (label, summary) of each study."""
    places: dict[tuple[str, int], list[float]] = {}
    for _, summary in studies:
        if (known := summary["latency"]) is not None and known["batch"]:
            places.setdefault((known["device"], known["threads"]), []).extend(known["repeats"])
    said = [
        f"Latencies are {medians_in_words(repeats, *where)}, where the study was run, of the dense "
        "network and of the candidate of median MACs in turn."
        for where, repeats in places.items()
    ]
    without = [label for label, summary in studies if not (summary["latency"] or {}).get("batch")]
    if without:
        of = f" of {', '.join(without)}" if said else ""
        said.append(f"Latency{of} was not measured: running the study again measures it.")
    return " ".join(said)


def medians_in_words(repeats: Sequence[float], device: str, threads: int) -> str:
    """What measured times are: ``"medians of 28 to 31 forwards on x86_64 with 1 thread"``."""
    return f"medians of {_range(repeats)} forwards on {device} with {many(threads, 'thread')}"


def _range(counts: Sequence[float]) -> str:
    ends = dict.fromkeys(f"{one:.0f}" for one in (min(counts), max(counts)))
    return " to ".join(ends)


def limits_in_words(summary: Mapping[str, Any], plan: Power | None) -> list[str]:
    """What the data of a study cannot tell, one sentence per outcome, and what it was able to."""
    said = []
    for metric in dict.fromkeys(one["metric"] for one in summary["relations"]):
        own = [one for one in best_first(summary["relations"]) if one["metric"] == metric]
        open_ones = [one for one in own if one["answer"] == "Unclear"]
        bounds = [one for one in open_ones if one.get("at_most") is not None]
        name = own[0]["outcome_name"]
        if not open_ones:
            said.append(f"For {name}, each criterion has an answer.")
            continue
        which = many(len(open_ones), "criterion", "criteria")
        verb = "has" if len(open_ones) == 1 else "have"
        text = f"For {name}, {which} of {len(own)} {verb} no answer"
        if bounds:
            most = max(bounds, key=lambda one: float(one["at_most"]))
            text += (
                f": with 95%, sizes of τ up to {number(most['at_most'], 2)} "
                f"({most['criterion']}) are not excluded"
            )
        said.append(f"{text}.")
    if plan is not None:
        said.append(f"By its design alone, {plan.sentence()}.")
    return said


def combination_sentence(combination: Mapping[str, Any], outcome: str) -> str:
    """How much a fitted combination of the criteria gains over the best of them."""
    gain = combination["gain"]
    other = combination.get("other_examples")
    examples = "other examples than they were fitted on" if other else "the same examples"
    gained = "a loss" if gain is not None and gain < 0 else "a gain"
    return (
        f"All criteria together, weighted to fit some candidates and tried on the others "
        f"({many(combination['folds'], 'fold')}), agree with {outcome} to "
        f"{number(combination['agreement'], 2)}; the best single one, {combination['single']}, to "
        f"{number(combination['single_agreement'], 2)}: {gained} of "
        f"{number(None if gain is None else abs(gain), 2)} on {examples}."
    )


def additive_sentence(additive: Mapping[str, Any], outcome: str) -> str:
    """How well a sum over filters, fitted to the outcomes of other candidates, agrees."""
    text = (
        f"A sum of one number for each filter, fitted to the outcomes of some candidates and tried "
        f"on the others ({many(additive['folds'], 'fold')}), agrees with {outcome} to "
        f"{number(additive['agreement'], 2)}"
    )
    if additive.get("other_examples"):
        return f"{text} on other examples than it was fitted on."
    return f"{text} on the examples that it was fitted on. On others it can agree far less."


def meta_sentence(
    meta: Mapping[str, Any], score: str, outcome: str, kind: str = "", *, sign: int
) -> str:
    """What a random-effects meta-analysis says over the studies of a grid, of one ``kind``.

    ``sign`` turns raw tau into agreement (+1 is perfect).
    """

    def turned(low: str, high: str) -> str:
        ends = [sign * end for end in (meta.get(low), meta.get(high)) if end is not None]
        return interval(min(ends), max(ends)) if len(ends) == 2 else ABSENT

    count = len(meta["studies"])
    over = many(count, "study", "studies") + (f" of kind {kind!r}" if kind else "")
    clusters = meta.get("clusters")
    if clusters is not None and clusters < count:
        over += f" of {many(clusters, 'dense network')}"
    value = number(None if meta["tau"] is None else sign * meta["tau"], 2)
    around = turned("low", "high")
    text = f"Over {over}, {score} agrees {value} {around} with {outcome}"
    if clusters == 1 and count > 1:
        text += "; with one dense network, nothing is said of another"
    if meta.get("i2") is not None:
        between = "the studies" if clusters in (None, count) else "networks"
        text += f"; {meta['i2']:.0%} of its variation is between {between}"
        if meta.get("p_value") is not None:
            text += f" (p = {p_value(meta['p_value'])})".replace("= <", "< ")
    if (expected := turned("prediction_low", "prediction_high")) != ABSENT:
        text += f", and in another one of their kind {expected} is expected"
    return f"{text[0].upper()}{text[1:]}."


def slope_sentence(slope: Mapping[str, Any], score: str, outcome: str) -> str:
    """How tau changes with what makes the studies harder."""
    said = f"p = {p_value(slope['p_value'])}".replace("= <", "< ")
    return (
        f"With each unit of {slope['by']}, τ of {score} with {outcome} changes by "
        f"{number(slope['slope'], 3)} {interval(slope['low'], slope['high'], 3)} ({said})."
    )


def grid_verdicts(summary: Mapping[str, Any]) -> list[str]:
    """The first sentences of a grid's page; where criteria are many, on the pruned train loss."""
    found = [
        relation
        for entry in summary["points"]
        for relation in (entry["summary"] or {"relations": []})["relations"]
    ]
    names = {
        (one["criterion"], one["metric"]): (one["score_name"], one["outcome_name"]) for one in found
    }
    signs = {(one["criterion"], one["metric"]): one["sign"] for one in found}
    criteria = list(dict.fromkeys(one["criterion"] for one in found))
    spoken_of = criteria if len(criteria) <= FEW or "oracle" not in criteria else ["oracle"]
    kinds = summary.get("kinds") or ()
    said = [
        meta_sentence(
            meta,
            *names[meta["criterion"], meta["metric"]],
            kind=meta["kind"] if len(kinds) > 1 else "",
            sign=signs[meta["criterion"], meta["metric"]],
        )
        for meta in summary.get("meta") or []
        if meta["criterion"] in spoken_of and (meta["criterion"], meta["metric"]) in names
    ]
    apart = kinds_in_words(kinds)
    return [*filter(None, [apart]), *said]


def kinds_in_words(kinds: Sequence[str]) -> str:
    """Why several kinds of pruning are not pooled; empty where there is one."""
    if len(kinds) < 2:
        return ""
    return (
        f"{many(len(kinds), 'kind')} of pruning ({', '.join(kinds)}), each by itself: one kind "
        "ends better than another whatever a criterion says, so that pooling them would make a "
        "correlation out of nothing."
    )


def pruned_in_words(pruned: dict[str, Any]) -> str:
    """What is pruned: ``"conv1 2, 7; conv2 0, 3"``, or ``"mask 9f86d081884c7d65"`` for weights."""
    if isinstance(pruned.get("mask"), str):
        if int(pruned["mask"], 16) == 0:  # as trueoracle.pruning.unstructured numbers it
            return "the criterion's own choice"
        return f"mask {pruned['mask']}"
    return "; ".join(f"{name} {', '.join(map(str, which))}" for name, which in pruned.items())
