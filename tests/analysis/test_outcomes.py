from __future__ import annotations

import math

import pandas as pd
import pytest

from trueoracle.analysis.outcomes import (
    chance_in_words,
    check_rule,
    default_outcomes,
    final_outcomes,
    find_outcome,
    rule_in_words,
    seed_outcomes,
)
from trueoracle.errors import InputError
from trueoracle.tasks.metric import CLASSIFICATION, LOSS, Metric

ACCURACY = find_outcome(CLASSIFICATION, "test_accuracy")
SEGMENTATION = (LOSS, Metric("mean_iou", "mean IoU", better="higher", low=0, high=1))
FORECAST = (Metric("mse", "squared error", unit="K²"), Metric("mae", "absolute error", unit="K"))


def epochs(test_accuracy: list[float], candidate: str = "a", seed: int = 0) -> pd.DataFrame:
    count = len(test_accuracy)
    return pd.DataFrame(
        {
            "candidate": candidate,
            "seed": seed,
            "epoch": range(count),
            "train_loss": [1.0] * count,
            "validation_loss": [1.0, 0.2, *[0.5] * count][:count],
            "test_accuracy": test_accuracy,
        }
    )


@pytest.mark.parametrize(
    ("accuracy", "chance", "warns"),
    [(0.15, 0.1, True), (0.16, 0.1, False), (0.016, 0.01, False), (0.1, None, False),
     (math.nan, 0.1, False), (None, 0.1, False)],
)  # fmt: skip
def test_chance_is_warned_of(accuracy: float | None, chance: float | None, warns: bool) -> None:
    said = chance_in_words(ACCURACY, accuracy, chance)
    assert bool(said) == warns
    assert "test accuracy 0.15, and guessing gives 0.1;" in said or accuracy != 0.15


@pytest.mark.parametrize(
    ("better", "value", "chance", "warns"),
    [("lower", 2.3, 2.3, True), ("lower", 1.0, 2.3, False), ("lower", 1.2, 2.3, True),
     ("higher", 0.0, 0.0, True), ("higher", -0.3, 0.0, True), ("higher", 0.4, 0.0, False),
     ("higher", -1.5, -2.0, True), ("higher", -0.5, -2.0, False)],
)  # fmt: skip
def test_chance_is_that_of_any_metric(
    better: str, value: float, chance: float, warns: bool
) -> None:
    metrics = (LOSS, Metric("r2", "R²", better=better, high=5.0))  # type: ignore[arg-type]
    assert bool(chance_in_words(find_outcome(metrics, "test_r2"), value, chance)) == warns


RISING_THEN_FALLING = [0.1, 0.2, 0.9, 0.8, 0.7, 0.6, 0.5]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("last", 0.5), ("last-5", 0.7), ("best-on-validation", 0.2), ("best-on-test", 0.9)],
)
def test_each_rule_takes_its_epochs(rule: str, expected: float) -> None:
    shuffled = epochs(RISING_THEN_FALLING).sample(frac=1, random_state=0)
    outcome = find_outcome(CLASSIFICATION, "test_accuracy", rule)
    assert final_outcomes(shuffled, outcome)["a"] == pytest.approx(expected)


def test_the_best_epoch_is_that_of_the_tasks_own_metric() -> None:
    table = epochs(RISING_THEN_FALLING).rename(
        columns={
            "train_loss": "train_mse",
            "validation_loss": "validation_mse",
            "test_accuracy": "test_mae",
        }
    )
    for rule, expected in (("best-on-test", 0.1), ("best-on-validation", 0.2)):
        outcome = find_outcome(FORECAST, "test_mae", rule)
        assert final_outcomes(table, outcome)["a"] == pytest.approx(expected)
    assert (
        rule_in_words("best-on-validation", FORECAST) == "epoch of lowest validation squared error"
    )
    assert rule_in_words("best-on-test", FORECAST).startswith("epoch of best test absolute error:")
    assert rule_in_words("best-on-test", (LOSS,)).startswith("epoch of best test loss:")


def test_the_outcome_is_the_mean_over_seeds() -> None:
    table = pd.concat(
        [epochs([0.1, 0.2], "a", 0), epochs([0.1, 0.4], "a", 1), epochs([0.1, 0.9], "b", 0)]
    )
    assert list(seed_outcomes(table, ACCURACY).loc["a"]) == [0.2, 0.4]
    outcomes = final_outcomes(table, ACCURACY)
    # b has been retrained with seed 0 only: so both are outcomes of that seed.
    assert outcomes["a"] == pytest.approx(0.2)
    assert outcomes["b"] == pytest.approx(0.9)
    both = pd.concat([table, epochs([0.1, 0.7], "b", 1)])
    assert final_outcomes(both, ACCURACY).tolist() == pytest.approx([0.3, 0.8])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_candidate_that_diverged_has_no_outcome(loss: float) -> None:
    broken = epochs([0.1, 0.1], "a", 1)
    broken.loc[1, "train_loss"] = loss
    table = pd.concat([epochs([0.1, 0.2], "a", 0), broken])
    assert [bool(v) for v in seed_outcomes(table, ACCURACY).isna().loc["a"]] == [False, True]
    assert math.isnan(final_outcomes(table, ACCURACY)["a"])
    assert math.isnan(final_outcomes(broken, ACCURACY)["a"])


def test_without_a_common_seed_one_seed_speaks() -> None:
    table = pd.concat(
        [epochs([0.1], "a", 0), epochs([0.2], "b", 0), epochs([0.9], "b", 1), epochs([0.3], "c", 1)]
    )
    outcomes = final_outcomes(table, ACCURACY)
    assert outcomes["a"] == pytest.approx(0.1)
    assert outcomes["b"] == pytest.approx(0.2)
    assert math.isnan(outcomes["c"])


def test_an_outcome_says_its_name_unit_and_direction() -> None:
    iou = find_outcome(SEGMENTATION, "test_mean_iou")
    assert (iou.label, iou.name, iou.axis) == ("test mean IoU", "final test mean IoU", iou.name)
    assert iou.higher_is_better
    error = find_outcome(FORECAST, "validation_mae", "last-5")
    assert error.name == "validation absolute error (last-5)"
    assert error.axis == "validation absolute error (last-5) (K)"
    assert error.rule_in_words == "mean of the last 5 epochs"
    assert not error.higher_is_better
    # A name that only ends like one says nothing.
    odd = (LOSS, Metric("inaccuracy", "inaccuracy"))
    assert not find_outcome(odd, "test_inaccuracy").higher_is_better


def test_headline_and_loss_are_looked_at() -> None:
    assert default_outcomes(CLASSIFICATION) == ("test_accuracy", "test_loss")
    assert default_outcomes(FORECAST) == ("test_mae", "test_mse")
    assert default_outcomes((LOSS,)) == ("test_loss",)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'test_loss'"):
        find_outcome(CLASSIFICATION, "tst_loss")
    with pytest.raises(InputError, match="unknown metric 'test_accuracy'"):
        find_outcome(SEGMENTATION, "test_accuracy")
    with pytest.raises(InputError, match="did you mean 'last"):
        find_outcome(CLASSIFICATION, "test_loss", "lst")
    with pytest.raises(InputError, match="did you mean 'last"):
        check_rule("lst")


def test_best_on_validation_needs_a_validation_split() -> None:
    table = epochs([0.1, 0.2]).assign(validation_loss=math.nan)
    outcome = find_outcome(CLASSIFICATION, "test_accuracy", "best-on-validation")
    with pytest.raises(InputError, match="needs a validation split"):
        final_outcomes(table, outcome)
