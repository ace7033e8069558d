from __future__ import annotations

import math

import pandas as pd
import pytest

from trueoracle.analysis.outcomes import (
    chance_in_words,
    final_outcomes,
    higher_is_better,
    seed_outcomes,
)
from trueoracle.errors import InputError


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
    ("accuracy", "classes", "warns"),
    [(0.15, 10, True), (0.16, 10, False), (0.016, 100, False), (0.1, None, False),
     (math.nan, 10, False)],
)  # fmt: skip
def test_chance_is_warned_of(accuracy: float, classes: int | None, warns: bool) -> None:
    assert bool(chance_in_words(accuracy, classes)) == warns


RISING_THEN_FALLING = [0.1, 0.2, 0.9, 0.8, 0.7, 0.6, 0.5]


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [("last", 0.5), ("last-5", 0.7), ("best-on-validation", 0.2), ("best-on-test", 0.9)],
)
def test_each_rule_takes_its_epochs(rule: str, outcome: float) -> None:
    shuffled = epochs(RISING_THEN_FALLING).sample(frac=1, random_state=0)
    assert final_outcomes(shuffled, rule=rule)["a"] == pytest.approx(outcome)


def test_the_outcome_is_the_mean_over_seeds() -> None:
    table = pd.concat(
        [epochs([0.1, 0.2], "a", 0), epochs([0.1, 0.4], "a", 1), epochs([0.1, 0.9], "b", 0)]
    )
    assert list(seed_outcomes(table).loc["a"]) == [0.2, 0.4]
    outcomes = final_outcomes(table)
    # b has been retrained with seed 0 only: so both are outcomes of that seed.
    assert outcomes["a"] == pytest.approx(0.2)
    assert outcomes["b"] == pytest.approx(0.9)
    both = pd.concat([table, epochs([0.1, 0.7], "b", 1)])
    assert final_outcomes(both).tolist() == pytest.approx([0.3, 0.8])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_candidate_that_diverged_has_no_outcome(loss: float) -> None:
    broken = epochs([0.1, 0.1], "a", 1)
    broken.loc[1, "train_loss"] = loss
    table = pd.concat([epochs([0.1, 0.2], "a", 0), broken])
    assert [bool(v) for v in seed_outcomes(table).isna().loc["a"]] == [False, True]
    assert math.isnan(final_outcomes(table)["a"])
    assert math.isnan(final_outcomes(broken)["a"])


def test_without_a_common_seed_one_seed_speaks() -> None:
    table = pd.concat(
        [epochs([0.1], "a", 0), epochs([0.2], "b", 0), epochs([0.9], "b", 1), epochs([0.3], "c", 1)]
    )
    outcomes = final_outcomes(table)
    assert outcomes["a"] == pytest.approx(0.1)
    assert outcomes["b"] == pytest.approx(0.2)
    assert math.isnan(outcomes["c"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'test_loss'"):
        higher_is_better("tst_loss")
    with pytest.raises(InputError, match="did you mean 'last"):
        final_outcomes(epochs([0.1, 0.2]), rule="lst")


def test_best_on_validation_needs_a_validation_split() -> None:
    table = epochs([0.1, 0.2]).assign(validation_loss=math.nan)
    with pytest.raises(InputError, match="needs a validation split"):
        final_outcomes(table, rule="best-on-validation")
