from __future__ import annotations

import pytest
from pydantic import ValidationError

from trueoracle.training.recipe import Recipe, Retraining


def test_the_papers_schedule() -> None:
    recipe = Recipe(epochs=30, learning_rate=0.01, milestones=(20,))
    rates = [recipe.learning_rate_at(epoch) for epoch in range(30)]
    assert rates == pytest.approx([0.01] * 20 + [0.001] * 10)


def test_every_milestone_multiplies() -> None:
    recipe = Recipe(epochs=9, learning_rate=1.0, milestones=(2, 5), gamma=0.5)
    rates = [recipe.learning_rate_at(epoch) for epoch in (1, 2, 4, 5, 8)]
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_cosine_goes_from_the_first_rate_towards_the_last() -> None:
    recipe = Recipe(epochs=10, learning_rate=1.0, final_learning_rate=0.2, schedule="cosine")
    rates = [recipe.learning_rate_at(epoch) for epoch in range(10)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.6)
    assert rates == sorted(rates, reverse=True)
    assert recipe.learning_rate_at(10) == pytest.approx(0.2)


def test_constant_stays() -> None:
    recipe = Recipe(schedule="constant", learning_rate=0.3)
    assert {recipe.learning_rate_at(epoch) for epoch in range(30)} == {0.3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"milestones": (5, 3)}, "ascend"),
        ({"milestones": (5,), "schedule": "cosine"}, "need schedule 'step'"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"learning_rate": float("nan")}, "finite|greater than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"optimiser": "sgd"}, "not permitted"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(fields)


def test_seeds_must_differ() -> None:
    with pytest.raises(ValidationError, match="seeds must differ"):
        Retraining(seeds=(1, 1))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]
