from __future__ import annotations

from functools import partial
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest

from trueoracle.errors import InputError
from trueoracle.search import replay as module
from trueoracle.search.replay import _best_of_random, selection_metric
from trueoracle.tasks.metric import CLASSIFICATION, Metric

replay = partial(module.replay, metrics=CLASSIFICATION)
COUNT, EPOCHS, SEEDS = 20, 4, (0, 1, 2)


def recorded(noise: float = 0.0) -> pd.DataFrame:
    """Candidate i's losses go to i / 100, the better the lower; accuracies mirror them."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in SEEDS:
        for i in range(COUNT):
            for epoch in range(EPOCHS):
                loss = i / 100 + (EPOCHS - 1 - epoch) + noise * rng.standard_normal()
                rows.append(
                    {"candidate": f"c{i}", "seed": seed, "epoch": epoch, "train_loss": loss,
                     "validation_loss": loss, "validation_accuracy": -loss,
                     "test_loss": loss, "test_accuracy": 1 - loss}
                )  # fmt: skip
    return pd.DataFrame(rows)


def scores(values: list[float] | None = None) -> pd.Series:
    given = values or [float(i) for i in range(COUNT)]
    return pd.Series(given, index=[f"c{i}" for i in range(COUNT)])


def row(table: pd.DataFrame, strategy: str, share: float, outcome: str, network: str) -> pd.Series:
    found = table[
        (table["strategy"] == strategy)
        & (table["share"] == share)
        & (table["outcome"] == outcome)
        & (table["network"] == network)
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_the_order_of_the_candidates_decides_nothing() -> None:
    outcomes = recorded(0.1).round(1)  # with ties in every epoch
    tied = scores([float(i % 3) for i in range(COUNT)])
    order = np.random.default_rng(1).permutation(COUNT)
    pruned = np.random.default_rng(2).random((COUNT, 5)) < 0.4
    keys = ["strategy", "share", "outcome", "network"]
    plain = replay(outcomes, tied, epochs=EPOCHS, draws=5, pruned=pruned)
    moved = replay(
        outcomes.sample(frac=1, random_state=0), tied.iloc[order], epochs=EPOCHS, draws=5,
        pruned=pruned[order],
    )  # fmt: skip
    pd.testing.assert_frame_equal(moved.set_index(keys), plain.set_index(keys))


def test_a_perfect_criterion_has_no_regret_and_a_wrong_one_has() -> None:
    right = replay(recorded(), scores(), epochs=EPOCHS)
    wrong = replay(recorded(), scores([-float(i) for i in range(COUNT)]), epochs=EPOCHS)
    for network in ("own", "other seeds"):
        assert row(right, "criterion", 0.1, "test_loss", network)["regret"] == 0
        found = row(wrong, "criterion", 0.1, "test_accuracy", network)
        assert found["regret"] == pytest.approx(0.19)
        assert found["rank"] == COUNT
        assert found["in_top"] == 0
        assert found["spent"] == EPOCHS
    assert row(wrong, "full", 0.1, "test_loss", "own")["regret"] == 0
    assert row(wrong, "full", 0.1, "test_loss", "own")["spent_share"] == 1
    # It sees 6 of them for an epoch, the wrong ones first.
    assert 0 < row(wrong, "halving", 0.1, "test_loss", "own")["regret"] < 0.19
    assert row(wrong, "halving", 1.0, "test_loss", "own")["regret"] == 0


def test_filters_guide_a_search_where_the_criterion_misleads() -> None:
    """Candidate i prunes two of seven filters, and ends the better the lower they are."""
    pairs = list(combinations(range(7), 2))[:COUNT]
    pruned = np.array([[filter_ in pair for filter_ in range(7)] for pair in pairs])
    outcomes = recorded()
    worth = outcomes["candidate"].map({f"c{i}": sum(pair) for i, pair in enumerate(pairs)})
    metrics = ["train_loss", "validation_loss", "test_loss"]
    outcomes[metrics] = np.add.outer(worth.to_numpy() + outcomes["epoch"].to_numpy() * 0.0, [0] * 3)
    wrong = scores([float(-sum(pair)) for pair in pairs])
    table = replay(outcomes, wrong, epochs=EPOCHS, budgets=[0.5], pruned=pruned)
    assert row(table, "guided", 0.5, "validation_loss", "own")["regret"] == 0
    assert row(table, "halving", 0.5, "validation_loss", "own")["regret"] > 0
    unknown = replay(outcomes, wrong, epochs=EPOCHS, budgets=[0.5])
    assert "guided" not in set(unknown["strategy"])


def test_random_search_is_the_mean_over_all_draws() -> None:
    table = replay(recorded(), scores(), epochs=EPOCHS, budgets=[0.15], strategies=["random"])
    expected = np.mean([min(three) / 100 for three in combinations(range(COUNT), 3)])
    found = row(table, "random", 0.15, "test_loss", "own")
    assert found["regret"] == pytest.approx(expected)
    assert found["in_top"] == pytest.approx(3 / COUNT)
    assert found["spent"] == 3 * EPOCHS
    assert found["low"] == 0
    # 3 of 20: the best of them is beyond the thirteenth in fewer than 2.5 % of all draws.
    assert found["high"] == pytest.approx(0.13)


def test_equal_ones_share_their_chance() -> None:
    """Live, of equal values the first in the random order is taken: all orders of six by hand."""
    costs = np.array([3.0, 1.0, 1.0, 2.0, 1.0, 2.0])
    chance = np.zeros(6)
    for order in permutations(range(6)):
        first = order[:3]
        chance[min(first, key=lambda i: costs[i])] += 1 / 720
    assert _best_of_random(costs, 3) == pytest.approx(chance)


def test_a_single_search_has_no_interval() -> None:
    outcomes = recorded()
    table = replay(outcomes[outcomes["seed"] == 0], scores(), epochs=EPOCHS, budgets=[0.2])
    known = table[table["outcome"] == "test_loss"].set_index("strategy")["low"].notna()
    assert not known[["halving", "top", "criterion", "full"]].any()
    assert known[["random", "random-halving"]].all()


def test_a_search_sees_one_seed_and_is_judged_by_the_others() -> None:
    outcomes = recorded()
    metrics = ["train_loss", "validation_loss", "test_loss"]
    lucky = (outcomes["seed"] == 0) & (outcomes["candidate"] == "c10")
    outcomes.loc[lucky, metrics] -= 5
    table = replay(outcomes, scores(), epochs=EPOCHS, budgets=[1.0], strategies=["full"])
    assert row(table, "full", 1.0, "test_loss", "own")["regret"] == 0
    # One search of three takes c10. The others' best is c0, whereas where seed 0 is among those
    # that judge, c10 has the better mean, by 2.5 less a tenth.
    found = row(table, "full", 1.0, "test_loss", "other seeds")
    assert found["regret"] == pytest.approx((0.1 + 2 * (2.5 - 0.1)) / 3)
    assert found["searches"] == 3


def test_what_diverged_is_never_better() -> None:
    outcomes = recorded()
    gone = (outcomes["candidate"] == "c0") & (outcomes["epoch"] >= 1)
    outcomes = outcomes[~(gone & (outcomes["epoch"] > 1))]
    outcomes.loc[gone, ["train_loss", "validation_loss", "test_loss"]] = np.nan
    table = replay(
        outcomes, scores(), epochs=EPOCHS, budgets=[0.2], strategies=["halving", "criterion"]
    )
    assert row(table, "criterion", 0.2, "test_loss", "own")["regret"] == pytest.approx(0.18)
    assert row(table, "halving", 0.2, "test_loss", "own")["regret"] == 0


def test_without_a_validation_split_the_train_loss_is_compared() -> None:
    outcomes = recorded()
    outcomes[["validation_loss", "validation_accuracy"]] = np.nan
    table = replay(outcomes, scores(), epochs=EPOCHS, budgets=[0.5], strategies=["top"])
    assert set(table["outcome"]) == {"train_loss", "test_loss", "test_accuracy"}


def test_accuracy_can_be_compared_too() -> None:
    table = replay(
        recorded(), scores(), epochs=EPOCHS, by="validation_accuracy", strategies=["full"]
    )
    assert (table["regret"] == 0).all()


def test_what_is_never_compared() -> None:
    with pytest.raises(InputError, match="does not choose by test_loss: take validation_loss, "):
        selection_metric("test_loss", CLASSIFICATION, has_validation=True)
    with pytest.raises(InputError, match="validation_accuracy needs a validation split"):
        selection_metric("validation_accuracy", CLASSIFICATION, has_validation=False)
    with pytest.raises(InputError, match="unknown metric of a search 'loss'"):
        selection_metric("loss", CLASSIFICATION, has_validation=True)


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_metrics_of_any_task_are_compared_in_their_direction(better: str) -> None:
    loss = Metric("error", "squared error")
    metrics = (loss, Metric("fit", "fit", better=better))  # type: ignore[arg-type]
    renamed = {f"{split}_loss": f"{split}_error" for split in ("train", "validation", "test")}
    outcomes = recorded().rename(columns=renamed).drop(columns="validation_accuracy")
    outcomes = outcomes.drop(columns="test_accuracy")
    sign = -1 if better == "higher" else 1
    for split in ("train", "validation", "test"):
        outcomes[f"{split}_fit"] = sign * outcomes[f"{split}_error"]
    assert selection_metric(None, metrics, has_validation=True) == "validation_error"
    assert selection_metric(None, metrics, has_validation=False) == "train_error"
    table = module.replay(
        outcomes, scores(), metrics=metrics, epochs=EPOCHS, by="validation_fit", strategies=["full"]
    )
    assert set(table["outcome"]) == {"validation_fit", "test_fit", "test_error"}
    assert (table["regret"] == 0).all()


def test_a_task_with_a_loss_alone_is_judged_by_it() -> None:
    outcomes = recorded().drop(columns=["validation_accuracy", "test_accuracy"])
    table = module.replay(
        outcomes, scores(), metrics=CLASSIFICATION[:1], epochs=EPOCHS, budgets=[0.5]
    )
    assert set(table["outcome"]) == {"validation_loss", "test_loss"}


def test_an_unfinished_record_is_refused() -> None:
    outcomes = recorded()
    with pytest.raises(InputError, match="every candidate retrained with one seed"):
        replay(outcomes[outcomes["candidate"] != "c3"], scores(), epochs=EPOCHS)
    with pytest.raises(InputError, match="none of the budgets finishes a network: 4 of 80"):
        replay(outcomes, scores(), epochs=EPOCHS, budgets=[0.01])
