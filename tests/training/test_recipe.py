from __future__ import annotations

import math
from typing import Any

import pytest
import torch
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


def test_true_is_taken_where_it_is_no_number() -> None:
    recipe = Retraining(flip=True, gradient_checkpointing=True, common_random_numbers=False)
    assert (recipe.flip, recipe.common_random_numbers) == (True, False)
    for name in ("epochs", "milestones", "momentum", "gradient_clip", "steps_per_epoch", "seeds"):
        for value in (True, [False]):
            with pytest.raises(ValidationError, match=r"(true|false) is no number"):
                Retraining.model_validate({name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"milestones": (5, 3)}, "ascend"),
        ({"milestones": (5,), "schedule": "cosine"}, "need schedule 'step'"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"learning_rate": float("nan")}, "finite|greater than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"optimiser": "sgd"}, "not permitted"),
        ({"warmup": 1.5}, "neither a share of all steps"),
        ({"schedule_per": "batch"}, "'epoch' or 'step'"),
        ({"precision": "float16"}, "'float32', 'autocast' or 'bfloat16'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(fields)


STEPS = 7


def rates(recipe: Recipe) -> list[float]:
    """Of every step of a training whose epochs have so many."""
    return [
        recipe.learning_rate_at(epoch, step, STEPS)
        for epoch in range(recipe.epochs)
        for step in range(STEPS)
    ]


@pytest.mark.parametrize(
    ("fields", "rate_of"),
    [
        ({"schedule": "linear"}, lambda done, total: 1 - done / total),
        (
            {"schedule": "linear", "final_learning_rate": 0.5},
            lambda done, total: 1 - 0.5 * done / total,
        ),
        ({"schedule": "cosine"}, lambda done, total: 0.5 * (1 + math.cos(math.pi * done / total))),
        ({"milestones": (9, 20)}, lambda done, _: 0.1 ** ((done >= 9) + (done >= 20))),
        ({"schedule": "constant"}, lambda *_: 1.0),
    ],
)
def test_a_schedule_by_steps(fields: dict[str, Any], rate_of: Any) -> None:
    recipe = Recipe(epochs=4, learning_rate=1.0, schedule_per="step", **fields)
    assert rates(recipe) == pytest.approx([rate_of(done, 28) for done in range(28)])
    assert recipe.rate_changes_within_epoch


def test_a_schedule_by_epochs_stays_within_them() -> None:
    recipe = Recipe(epochs=4, learning_rate=1.0, schedule="linear")
    assert rates(recipe) == [share for share in (1.0, 0.75, 0.5, 0.25) for _ in range(STEPS)]
    assert not recipe.rate_changes_within_epoch


@pytest.mark.parametrize(("warmup", "steps"), [(5, 5), (0.2, 6), (1, 1), (1.0, 1), (100, 100)])
def test_the_rate_rises_during_warmup(warmup: float, steps: int) -> None:
    recipe = Recipe(epochs=4, learning_rate=1.0, schedule="constant", warmup=warmup)
    assert rates(recipe) == pytest.approx([min(1.0, (i + 1) / steps) for i in range(28)])


def test_a_schedule_by_steps_begins_after_the_warmup() -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 6, 28)
    expected = []
    for _ in range(28):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    fields = {"schedule": "cosine", "schedule_per": "step"}
    recipe = Recipe(epochs=4, learning_rate=1.0, warmup=6, **fields)
    found = rates(recipe)
    # Theirs begins with a step at rate 0, and so is one step behind while it rises.
    assert found[:6] == pytest.approx(expected[1:7])
    assert found[6:] == pytest.approx(expected[6:])


def test_steps_of_an_epoch() -> None:
    recipe = Recipe(batch_size=8)
    assert [recipe.steps_in_epoch(n) for n in (1, 8, 9, 20)] == [1, 1, 2, 3]
    assert [recipe.examples_in_epoch(n) for n in (1, 8, 20)] == [1, 8, 20]
    capped = Recipe(batch_size=8, steps_per_epoch=2)
    assert [capped.steps_in_epoch(n) for n in (1, 9, 20)] == [1, 2, 2]
    assert [capped.examples_in_epoch(n) for n in (1, 9, 20)] == [1, 9, 16]


def test_autocast_is_read_by_its_earlier_name() -> None:
    assert Recipe.model_validate({"autocast": True}).precision == "autocast"
    assert Recipe.model_validate({"autocast": False}) == Recipe()
    both = {"autocast": True, "precision": "bfloat16"}
    with pytest.raises(ValidationError, match="contradict each other: leave autocast out"):
        Recipe.model_validate(both)
    with pytest.raises(ValidationError, match="autocast takes true or false, got"):
        Recipe.model_validate({"autocast": "yes"})


def test_seeds_must_differ() -> None:
    with pytest.raises(ValidationError, match="seeds must differ"):
        Retraining(seeds=(1, 1))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]
