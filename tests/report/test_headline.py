from __future__ import annotations

from typing import Any

import pytest

from trueoracle.report.glossary import GLOSSARY, term_of
from trueoracle.report.headline import (
    MOST_WORDS,
    badge,
    conditions,
    grid_headline,
    headline,
    other_outcomes,
)
from trueoracle.report.words import ceiling_sentences, limits_in_words
from trueoracle.spec.scale import differences_in_words
from trueoracle.spec.spec import StudySpec


def relation(criterion: str, agreement: float | None, answer: str, **known: Any) -> dict[str, Any]:
    return {
        "criterion": criterion, "metric": "test_accuracy", "agreement": agreement, "answer": answer,
        "score_name": "pruned train loss" if criterion == "oracle" else f"{criterion} of what is",
        "outcome_name": "final test accuracy", "ceiling": 0.71, "sign": -1, "at_most": 0.4,
        "interval_over": "2 retraining seeds and 10 filters, given the dense network",
    } | known  # fmt: skip


def said(*relations: dict[str, Any]) -> str:
    text = headline({"relations": list(relations)})
    assert len(text.split()) <= MOST_WORDS
    return text


def test_the_first_word_answers_for_all_criteria_and_the_numbers_are_theirs() -> None:
    yes, no = relation("l1", 0.45, "Yes"), relation("oracle", -0.01, "No")
    assert said(yes, no) == (
        "Yes. 1 of 2 criteria predicts final test accuracy. Best: l1 0.45 of about 0.71 possible; "
        "pruned train loss −0.01."
    )
    assert said(no, relation("l1", -0.3, "No")).startswith(
        "No. Neither criterion predicts final test accuracy. Best: oracle −0.01 of about 0.71"
    )
    unclear = relation("l1", 0.2, "Unclear")
    assert said(no, unclear).startswith("Unclear. No criterion of 2 is certain to predict ")
    assert said(yes) == (
        "Yes. L1 of what is predicts final test accuracy: agreement 0.45 of about 0.71 possible."
    )
    assert headline({"relations": [], "searches": []}).startswith("Unclear. No network")
    assert headline({"relations": [], "searches": [{}]}).startswith("Unclear. Only a search")


def test_nothing_is_said_to_be_better_than_possible() -> None:
    above = said(relation("oracle", 0.8, "Yes"))
    assert "possible" not in above
    assert above.endswith("agreement 0.80, as high as noise lets it be seen.")
    assert "0.71 possible" not in said(relation("oracle", 0.3, "No", ceiling=None))


@pytest.mark.parametrize("answer", ["Yes", "No", "Unclear"])
def test_it_stays_short_whatever_names_are(answer: str) -> None:
    long = "a criterion of a user who likes long names " * 4
    many = [relation(f"{i} {long}", 0.1, answer, outcome_name=long) for i in range(30)]
    said(*many)
    said(*many, relation("oracle", 0.0, answer, outcome_name=long, score_name=long))
    said(many[0])


def test_other_outcomes_and_conditions_are_one_line() -> None:
    loss = relation("l1", 0.3, "Unclear", metric="test_loss", outcome_name="final test loss")
    summary = {
        "relations": [relation("l1", 0.45, "Yes"), loss], "layers": {"conv1": 0.2}, "epochs": 15,
        "network": "lenet5-mini", "data": "mnist-5k", "outcome_in_words": "last epoch",
        "state": "running", "retrained": 3, "to_retrain": 90,
    }  # fmt: skip
    assert other_outcomes(summary) == (
        "final test loss: Unclear (best l1 0.30 of about 0.71 possible)"
    )
    assert conditions(summary) == (
        "Holds for lenet5-mini on mnist-5k, conv1 0.2, 15 epochs of retraining, outcome at the "
        "last epoch; certainty is over 2 retraining seeds and 10 filters, given the dense network; "
        "so far 3 of 90 networks are retrained."
    )


def test_a_grid_is_yes_or_no_only_where_all_of_its_studies_are() -> None:
    def of(*answers: str) -> str:
        points = [{"summary": {"relations": [relation("oracle", 0.3, one)]}} for one in answers]
        meta = {
            "criterion": "oracle", "metric": "test_accuracy", "tau": -0.3, "low": -0.5, "high": 0.1,
        }  # fmt: skip
        text = grid_headline({"points": [*points, {"summary": None}], "meta": [meta]})
        assert len(text.split()) <= MOST_WORDS
        return text

    assert of("Yes", "Yes").startswith(
        "Yes. Pruned train loss predicts final test accuracy in 2 of"
    )
    assert of("No", "No").startswith("No. ")
    assert of("Yes", "No", "Unclear") == (
        "Unclear. Pruned train loss predicts final test accuracy in 1 of 3 studies, not in 1; "
        "agreement over all 0.30 [−0.10, 0.50]."
    )
    assert grid_headline({"points": []}).startswith("Unclear. No network")
    none = {"relations": [], "searches": [], "retrained": 0, "diverged": 0}
    alone = [{"summary": none | {"searches": [{}]}}, {"summary": None}]
    assert grid_headline({"points": alone}).startswith("Unclear. Only a search")
    all_gone = [{"summary": none | {"retrained": 4, "diverged": 4}}] * 2
    assert grid_headline({"points": all_gone}) == (
        "Unclear. Every network that was retrained diverged."
    )
    unscored = [{"summary": none | {"retrained": 4, "diverged": 1}}]
    assert grid_headline({"points": unscored}).startswith("Unclear. Nothing that was retrained has")


def test_a_badge_names_every_changed_field() -> None:
    fields: dict[str, Any] = {
        "name": "mine", "network": {"name": "lenet5-mini"}, "data": {"name": "mnist-5k"},
        "pruning": {"layers": {"conv1": 0.2}}, "criteria": ["oracle"], "retraining": {"epochs": 15},
    }  # fmt: skip
    main = StudySpec.model_validate(fields)
    arm = StudySpec.model_validate(
        fields | {"name": "mine@short", "retraining": {"epochs": 3, "seeds": [0, 1]}}
    )
    assert differences_in_words(arm, main) == (
        "retraining.epochs 3, not 15, retraining.seeds 0 and 1, not 0 and 1 and 2"
    )
    plain = {"badge": ""}
    assert badge(main, plain) == ""
    assert badge(arm, plain, main) == differences_in_words(arm, main)
    cut = {"badge": "changed: retraining.epochs 3; small scale"}
    assert badge(main, cut) == "changed: retraining.epochs 3; small scale"
    assert badge(arm, cut, main) == f"{cut['badge']}; {differences_in_words(arm, main)}"


def test_a_criterion_above_the_ceiling_is_said_to_be() -> None:
    """No sentence calls a bound what a number beside it exceeds."""
    ceiling = {
        "ceiling": 0.41, "ceiling_low": None, "ceiling_high": None, "split_half": None, "seeds": 2,
        "blocks": 20,
    }  # fmt: skip
    summary: dict[str, Any] = {
        "relations": [relation("l1", 0.45, "Yes"), relation("oracle", 0.2, "No")],
        "ceilings": {"test_accuracy": ceiling},
    }
    (text,) = ceiling_sentences(summary)
    assert text.endswith("It is an estimate: l1 (0.45) lies above it.")
    others = summary | {"relations": [relation("oracle", 0.2, "No")]}
    assert "above" not in ceiling_sentences(others)[0]


def test_what_cannot_be_told_is_what_has_no_answer() -> None:
    relations = [
        relation("l1", 0.45, "Yes"),
        relation("l2", 0.1, "Unclear", at_most=0.33),
        relation("oracle", 0.2, "Unclear", at_most=0.52),
    ]
    assert limits_in_words({"relations": relations}, None) == [
        "For final test accuracy, 2 criteria of 3 have no answer: with 95%, sizes of τ up to 0.52 "
        "(oracle) are not excluded."
    ]
    assert limits_in_words({"relations": relations[:1]}, None) == [
        "For final test accuracy, each criterion has an answer."
    ]


def test_terms_are_named_once_and_found_whatever_k() -> None:
    assert len({term.id for term in GLOSSARY}) == len(GLOSSARY)
    headings = [heading for term in GLOSSARY for heading in term.headings]
    assert len(set(headings)) == len(headings)
    assert term_of("over 10 lowest") == term_of("over k lowest".replace("k", "3")) == "anomaly"
    assert term_of("over k lowest") == "anomaly"
    assert term_of("95% interval") == "interval"
    assert term_of("prunes") == ""
