from __future__ import annotations

from typing import Any

import pytest

from trueoracle.report.words import (
    additive_sentence,
    best_first,
    ceiling_sentences,
    combination_sentence,
    grid_verdicts,
    meta_sentence,
    slope_sentence,
    verdicts,
)


def relation(criterion: str, agreement: float | None, **known: Any) -> dict[str, Any]:
    tau = None if agreement is None else -agreement
    return {
        "criterion": criterion,
        "metric": "test_accuracy",
        "score_name": f"score {criterion}",
        "outcome_name": "final test accuracy",
        "agreement": agreement,
        "kendall_tau": tau,
        "sign": -1,
        "verdict": f"{criterion} says something",
    } | known


def test_the_best_come_first_within_each_outcome_and_the_undefined_last() -> None:
    relations = [
        relation("a", 0.1),
        relation("b", None),
        relation("c", 0.3),
        relation("d", -0.2),
        relation("a", 0.2, metric="test_loss"),
        relation("c", 0.4, metric="test_loss"),
    ]
    order = [(r["criterion"], r["metric"]) for r in best_first(relations)]
    accuracy = [(name, "test_accuracy") for name in ("c", "a", "d", "b")]
    assert order == [*accuracy, ("c", "test_loss"), ("a", "test_loss")]


def test_a_few_criteria_speak_for_themselves() -> None:
    relations = [relation("oracle", 0.1), relation("l1", 0.2), relation("l2", None)]
    said = verdicts({"relations": relations})
    assert said == ["oracle says something", "l1 says something", "l2 says something"]


def test_of_many_the_best_and_the_oracle_are_told() -> None:
    relations = [
        relation("l1", 0.2, answer="Unclear", counts_filters=True),
        relation("oracle", 0.12, answer="No", counts_filters=True),
        relation(
            "taylor", 0.412, agreement_low=0.3, agreement_high=0.5, at_most=0.48, answer="Yes",
            counts_filters=True, interval_over="2 retraining seeds and 10 filters, given …",
        ),
        relation("snip", -0.4, answer="No", counts_filters=True),
        relation("flat", None, answer="Unclear", counts_filters=True),
    ]  # fmt: skip
    first, second = verdicts({"relations": relations})
    assert first == (
        "Yes: of 5 criteria, 1 predicts final test accuracy (τ is certain and 0.2 or more), of 2 "
        "it is certain that they do not, and of 2 it is unclear; taylor agrees most (agreement "
        "0.41 [0.30, 0.50], of size 0.48 at most with 95%), the pruned train loss is number 3 "
        "(agreement 0.12). Certain is: Holm's p over all that is shown < 0.05, and an interval "
        "over filters without zero in it. Intervals are over 2 retraining seeds and 10 filters, "
        "given …."
    )
    no = verdicts({"relations": [one | {"answer": "No"} for one in relations]})
    assert no[0].startswith("No: of 5 criteria, 0 predict final test accuracy")
    unclear = verdicts({"relations": [one | {"answer": "Unclear"} for one in relations]})
    assert unclear[0].startswith("Unclear: of 5 criteria, 0 predict")
    assert second == "oracle says something"


def test_without_the_oracle_or_p_values_less_is_said() -> None:
    relations = [relation(name, value) for name, value in zip("abcd", (1, 2, 3, 4), strict=True)]
    (said,) = verdicts({"relations": relations})
    assert said.startswith("Unclear: of 4 criteria, 0 predict final test accuracy")
    assert said.endswith(
        "d agrees most (agreement 4.00); that other filters would give another τ is not counted."
    )


def test_the_ceiling_is_told_where_it_is_known() -> None:
    summary: dict[str, Any] = {"relations": [relation("l1", 0.2)]}
    assert ceiling_sentences(summary) == []
    known = {"ceiling": 0.631, "split_half": 0.449, "reliability": 0.6, "seeds": 2}
    summary["ceilings"] = {"test_accuracy": known, "test_loss": None}
    assert ceiling_sentences(summary) == [
        "The ceiling of 0.63 for final test accuracy counts retraining noise only (τ = 0.45 "
        "between halves of the seeds): about so far could a perfect criterion agree on these "
        "examples. "
        "The record has no outcomes by blocks of examples: how other examples would order the "
        "candidates is not known."
    ]
    both = known | {"blocks": 20, "ceiling_low": 0.5, "ceiling_high": 0.7}
    summary["ceilings"] = {"test_accuracy": both}
    assert ceiling_sentences(summary) == [
        "The ceiling of 0.63 [0.50, 0.70] for final test accuracy counts the noise of seeds and "
        "examples (τ = 0.45 between halves of the seeds and examples): about so far could a "
        "perfect criterion agree."
    ]
    summary["ceilings"] = {"test_accuracy": known | {"ceiling": None}}
    assert ceiling_sentences(summary) == []


@pytest.mark.parametrize(
    ("gain", "words"), [(0.051, "a gain of 0.05"), (-0.02, "a loss of 0.02"), (None, "gain of –")]
)
def test_a_combination_gains_or_loses(gain: float | None, words: str) -> None:
    combination = {
        "agreement": 0.55, "single": "taylor", "single_agreement": 0.5, "gain": gain, "folds": 5,
    }  # fmt: skip
    said = combination_sentence(combination, "final test loss")
    assert "(5 folds), agree with final test loss to 0.55; the best single one, taylor" in said
    assert said.endswith(f"{words} on the same examples.")
    other = combination_sentence(combination | {"other_examples": True}, "final test loss")
    assert other.endswith(f"{words} on other examples than they were fitted on.")


def test_a_sum_over_filters_is_one_sentence() -> None:
    said = additive_sentence({"agreement": 0.61, "folds": 5}, "final test loss")
    assert (
        "tried on the others (5 folds), agrees with final test loss to 0.61 on the examples that"
        in said
    )
    assert said.endswith("On others it can agree far less.")
    other = additive_sentence({"agreement": 0.3, "folds": 5, "other_examples": True}, "loss")
    assert other.endswith("agrees with loss to 0.30 on other examples than it was fitted on.")


META = {
    "criterion": "oracle", "metric": "test_accuracy", "studies": [{}, {}], "tau": -0.12,
    "low": -0.22, "high": -0.01, "prediction_low": -0.45, "prediction_high": 0.2, "i2": 0.634,
    "p_value": 0.02,
}  # fmt: skip


def test_a_meta_analysis_is_one_sentence() -> None:
    assert meta_sentence(META, "pruned train loss", "final test accuracy", sign=-1) == (
        "Over 2 studies, pruned train loss agrees 0.12 [0.01, 0.22] with final test accuracy; 63% "
        "of its variation is between the studies (p = 0.02), and in another one of their kind "
        "[−0.20, 0.45] is expected."
    )
    plain = META | {"i2": None, "prediction_low": None}
    assert (
        meta_sentence(plain, "x", "y", sign=1)
        == "Over 2 studies, x agrees −0.12 [−0.22, −0.01] with y."
    )


def test_studies_of_one_network_are_said_to_be_of_one() -> None:
    studies: dict[str, Any] = {"studies": [{}] * 4}
    two = meta_sentence(META | studies | {"clusters": 2}, "x", "y", sign=1)
    assert two.startswith("Over 4 studies of 2 dense networks, x agrees ")
    assert "63% of its variation is between networks" in two
    unknown = {"i2": None, "prediction_low": None}
    one = meta_sentence(META | studies | unknown | {"clusters": 1}, "x", "y", sign=1)
    assert one.startswith("Over 4 studies of 1 dense network, x agrees ")
    assert one.endswith("; with one dense network, nothing is said of another.")


def test_a_slope_says_by_what_and_how_sure() -> None:
    slope = {"by": "width", "slope": 0.0123, "low": -0.001, "high": 0.02, "p_value": 0.07}
    assert slope_sentence(slope, "pruned train loss", "final test loss") == (
        "With each unit of width, τ of pruned train loss with final test loss changes by "
        "0.012 [−0.001, 0.020] (p = 0.07)."
    )


def test_a_grid_of_many_criteria_tells_of_the_oracle() -> None:
    def summary(*criteria: str) -> dict[str, Any]:
        entry = {"summary": {"relations": [relation(name, 0.1) for name in criteria]}}
        metas = [META | {"criterion": name} for name in criteria]
        return {"points": [entry, {"summary": None}], "meta": metas}

    assert len(grid_verdicts(summary("l1", "oracle"))) == 2
    (said,) = grid_verdicts(summary("l1", "l2", "random", "oracle"))
    assert "score oracle agrees" in said.lower()
    assert grid_verdicts({"points": [], "meta": None}) == []
