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
        relation("l1", 0.2, adjusted_p_value=0.01, certain=False),  # zero is in its interval
        relation("oracle", 0.12, adjusted_p_value=0.4, certain=False),
        relation(
            "taylor", 0.412, adjusted_p_value=0.001, kendall_low=-0.5, kendall_high=-0.3,
            share_of_ceiling=0.653, certain=True, interval_over="2 retraining seeds, given …",
        ),
        relation("snip", -0.4, adjusted_p_value=0.001, certain=True),
        relation("flat", None),
    ]  # fmt: skip
    first, second = verdicts({"relations": relations})
    assert first == (
        "Of 5 criteria, taylor agrees most with final test accuracy (τ = −0.41 [−0.50, −0.30], 65% "
        "of the ceiling), the pruned train loss is number 3 (τ = −0.12); 1 of 5 predict it better "
        "than chance (Holm's p < 0.05, and no interval with zero in it). Intervals are over 2 "
        "retraining seeds, given …."
    )
    assert second == "oracle says something"


def test_without_the_oracle_or_p_values_less_is_said() -> None:
    relations = [relation(name, value) for name, value in zip("abcd", (1, 2, 3, 4), strict=True)]
    assert verdicts({"relations": relations}) == [
        "Of 4 criteria, d agrees most with final test accuracy (τ = −4.00); filter labels could "
        "not be permuted, so that chance is not ruled out."
    ]


def test_the_ceiling_is_told_where_it_is_known() -> None:
    summary: dict[str, Any] = {"relations": [relation("l1", 0.2)]}
    assert ceiling_sentences(summary) == []
    known = {"ceiling": 0.631, "split_half": 0.449, "reliability": 0.6, "seeds": 2}
    summary["ceilings"] = {"test_accuracy": known, "test_loss": None}
    assert ceiling_sentences(summary) == [
        "The ceiling of 0.63 for final test accuracy counts retraining noise only (τ = 0.45 "
        "between halves of the seeds): so far could a perfect criterion agree on these examples. "
        "It does not count that other examples would order the candidates in another way, too."
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
    assert words in said


def test_a_sum_over_filters_is_one_sentence() -> None:
    said = additive_sentence({"agreement": 0.61, "folds": 5}, "final test loss")
    assert (
        "tried on the others (5 folds), agrees with final test loss to 0.61 on the examples that"
        in said
    )
    assert said.endswith("On others it can agree far less.")


META = {
    "criterion": "oracle", "metric": "test_accuracy", "studies": [{}, {}], "tau": -0.12,
    "low": -0.22, "high": -0.01, "prediction_low": -0.45, "prediction_high": 0.2, "i2": 0.634,
    "p_value": 0.02,
}  # fmt: skip


def test_a_meta_analysis_is_one_sentence() -> None:
    assert meta_sentence(META, "pruned train loss", "final test accuracy") == (
        "Over 2 studies, pruned train loss has τ = −0.12 [−0.22, −0.01] with final test accuracy; "
        "63% of its variation is between the studies (p = 0.02), and in another one of their kind "
        "[−0.45, 0.20] is expected."
    )
    plain = META | {"i2": None, "prediction_low": None}
    assert (
        meta_sentence(plain, "x", "y") == "Over 2 studies, x has τ = −0.12 [−0.22, −0.01] with y."
    )


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

    assert len(grid_verdicts(summary("l1", "oracle"))) == 3
    said, given = grid_verdicts(summary("l1", "l2", "random", "oracle"))
    assert "score oracle has τ" in said.lower()
    assert "take the studies for independent" in given
    assert grid_verdicts({"points": [], "meta": None}) == []
