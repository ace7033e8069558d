"""The first sentence of a page, the line below it, and the badge of a study that was changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueoracle.analysis.numbers import interval, many, number
from trueoracle.report.words import best_first
from trueoracle.spec.scale import differences_in_words
from trueoracle.spec.spec import StudySpec

__all__ = [
    "MOST_WORDS",
    "badge",
    "conditions",
    "grid_headline",
    "headline",
    "nothing_retrained",
    "other_outcomes",
]

MOST_WORDS = 25
"""The most words of a headline, its first word (Yes, No or Unclear) included."""

_LONGEST_NAME = 28

Summary = Mapping[str, Any]


def headline(summary: Summary) -> str:
    """Does any criterion predict the headline outcome? At most :data:`MOST_WORDS` words.

    The first word is Yes where any criterion's answer is, No where all of them are, else Unclear.
    """
    if not summary["relations"]:
        return f"Unclear. {nothing_retrained(summary)}"
    own = _of_first_outcome(summary["relations"])
    best, count = own[0], len(own)
    outcome = _short(best["outcome_name"], 4)
    yes = sum(one["answer"] == "Yes" for one in own)
    answer = _answer(own)
    oracle = next((one for one in own if one["criterion"] == "oracle"), None)
    if count == 1:
        name = _short(best["score_name"], 4)
        said = {
            "Yes": f"{name} predicts {outcome}",
            "No": f"{name} does not predict {outcome}",
            "Unclear": f"whether {name} predicts {outcome} cannot be told",
        }[answer]
        return f"{answer}. {_capital(said)}: agreement {_reached(best)}."
    if answer == "Yes":
        said = f"{yes} of {count} criteria {_predict(yes)} {outcome}"
    elif answer == "No":
        which = "Neither criterion" if count == 2 else f"None of {count} criteria"
        said = f"{which} predicts {outcome}"
    else:
        said = f"No criterion of {count} is certain to predict {outcome}"
    text = f"{answer}. {said}. Best: {_name(best)} {_reached(best)}"
    if oracle is not None and oracle is not best:
        text += f"; {_short(oracle['score_name'], 3)} {number(oracle['agreement'], 2)}"
    return f"{text}."


def nothing_retrained(summary: Summary) -> str:
    """Why a study without an outcome has no answer: a search's few networks are no sample."""
    if summary["searches"]:
        return "Only a search has retrained networks, those that it preferred: too few to tell."
    if summary.get("retrained"):
        if summary["diverged"] == summary["retrained"]:
            return "Every network that was retrained diverged."
        return "Nothing that was retrained has a score and an outcome yet."
    return "No network has been retrained yet."


def _answer(relations: Sequence[Mapping[str, Any]]) -> str:
    """Whether any criterion predicts: Yes where one does, No where none does, else Unclear."""
    answers = {one["answer"] for one in relations}
    if "Yes" in answers:
        return "Yes"
    return "No" if answers == {"No"} else "Unclear"


def _predict(count: int) -> str:
    return "predicts" if count == 1 else "predict"


def _of_first_outcome(relations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ordered = best_first(relations)
    return [one for one in ordered if one["metric"] == ordered[0]["metric"]]


def _reached(relation: Mapping[str, Any]) -> str:
    """An agreement with what noise leaves, unless it lies above it: the ceiling is an estimate."""
    agreement, ceiling = relation["agreement"], relation.get("ceiling")
    said = number(agreement, 2)
    if ceiling is None or agreement is None:
        return said
    if agreement > ceiling:
        return f"{said}, as high as noise lets it be seen"
    return f"{said} of about {number(ceiling, 2)} possible"


def _name(relation: Mapping[str, Any]) -> str:
    return _short(relation["criterion"], 2)


def _short(name: str, words: int) -> str:
    """A name cut to some words and letters, since users name criteria and metrics."""
    kept = " ".join(name.split()[:words])
    if len(kept) > _LONGEST_NAME:
        kept = kept[: _LONGEST_NAME - 1]
    return kept if kept == " ".join(name.split()) else f"{kept}…"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def other_outcomes(summary: Summary) -> str:
    """The answers for the outcomes that the headline does not speak of; empty without any."""
    ordered = best_first(summary["relations"])
    said = []
    for metric in list(dict.fromkeys(one["metric"] for one in ordered))[1:]:
        own = [one for one in ordered if one["metric"] == metric]
        answer = _answer(own)
        said.append(f"{own[0]['outcome_name']}: {answer} (best {_name(own[0])} {_reached(own[0])})")
    return "; ".join(said)


def conditions(summary: Summary) -> str:
    """What the headline is conditional on, in one line."""
    known = _of_first_outcome(summary["relations"])[0] if summary["relations"] else None
    layers = ", ".join(f"{name} {ratio}" for name, ratio in summary["layers"].items())
    said = [
        f"Holds for {summary['network']} on {summary['data']}, {layers}, "
        f"{many(summary['epochs'], 'epoch')} of retraining, outcome at the "
        f"{summary['outcome_in_words']}"
    ]
    if known is not None and known["interval_over"]:
        said.append(f"certainty is over {known['interval_over']}")
    elif known is not None:
        said.append("no interval: nothing that varies is recorded twice")
    if summary["state"] != "finished":
        said.append(
            f"so far {summary['retrained']:,} of {summary['to_retrain']:,} networks are retrained"
        )
    return f"{'; '.join(said)}."


def badge(spec: StudySpec, summary: Summary, main: StudySpec | None = None) -> str:
    """The fields in which a study is not what its name promises; empty where it is.

    A field is named where it differs from the file of the study's name or, for a study beside a
    ``main`` one, from the main one's.
    """
    beside = "" if main is None else differences_in_words(spec, main)
    return "; ".join(filter(None, (summary["badge"], beside)))


def grid_headline(summary: Summary) -> str:
    """The headline of a grid, by the answers of its points; at most :data:`MOST_WORDS` words."""
    known = [entry["summary"] for entry in summary["points"] if entry["summary"]]
    found = [relation for one in known for relation in one["relations"]]
    if not found:
        searches = [search for one in known for search in one["searches"]]
        counts = {name: sum(one[name] for one in known) for name in ("retrained", "diverged")}
        return f"Unclear. {nothing_retrained({'searches': searches, **counts})}"
    metric = found[0]["metric"]
    own = [one for one in found if one["metric"] == metric]
    criteria = list(dict.fromkeys(one["criterion"] for one in own))
    name = "oracle" if "oracle" in criteria else criteria[0]
    own = [one for one in own if one["criterion"] == name]
    answers = [one["answer"] for one in own]
    yes, no, count = answers.count("Yes"), answers.count("No"), len(own)
    answer = "Yes" if yes == count else "No" if no == count else "Unclear"
    score, outcome = _short(own[0]["score_name"], 4), _short(own[0]["outcome_name"], 4)
    text = f"{answer}. {_capital(score)} predicts {outcome} in {yes} of "
    text += many(count, "study", "studies")
    if no:
        text += f", not in {no}"
    metas = [
        one
        for one in summary.get("meta") or []
        if (one["criterion"], one["metric"]) == (name, metric)
    ]
    if len(metas) == 1 and metas[0]["tau"] is not None:
        turned = sorted(
            own[0]["sign"] * metas[0][end] for end in ("low", "high") if metas[0][end] is not None
        )
        around = f" {interval(*turned)}" if len(turned) == 2 else ""
        text += f"; agreement over all {number(own[0]['sign'] * metas[0]['tau'], 2)}{around}"
    return f"{text}."
