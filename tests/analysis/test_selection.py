from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueoracle.analysis.selection import lowest_few, select
from trueoracle.analysis.table import Blocks, CandidateTable


def table(
    scores: list[float], *seeds: list[float], higher_is_better: bool = True
) -> CandidateTable:
    return CandidateTable(
        np.array(seeds, dtype=float).T, {"c": np.array(scores, dtype=float)}, higher_is_better
    )


def test_by_hand() -> None:
    #                scores and the outcomes of one seed: the chosen one ends third of five
    one = table([1, 2, 3, 4, 5], [0.7, 0.9, 0.5, 0.8, 0.6])
    found = select([one], "c", k=2)
    assert found.percentile == pytest.approx(100 * 2 / 4)
    assert found.beats_random == pytest.approx(2 / 4)
    # The two lowest scores end third and first; the two best are 0.9 and 0.8.
    assert found.anomaly_ratio_k == pytest.approx((2 / 5 + 0) / 2)
    assert found.precision_at_k == pytest.approx(1 / 2)
    assert found.regret_at_k == pytest.approx(0)
    assert select([one], "c", k=1).regret_at_k == pytest.approx(0.2)
    assert math.isnan(found.rank_low)  # one seed, all candidates: nothing else could have been
    assert found.as_dict()["regret_low"] is None


def test_losses_count_the_other_way() -> None:
    one = table([1, 2, 3, 4, 5], [0.7, 0.9, 0.5, 0.8, 0.6], higher_is_better=False)
    assert select([one], "c", k=2).precision_at_k == 0
    turned = table([1, 2, 3, 4, 5], [-0.7, -0.9, -0.5, -0.8, -0.6])
    assert select([turned], "c", k=2).percentile == select([one], "c", k=2).percentile


def test_ties_at_the_border_of_the_best_count_in_part() -> None:
    # Best k = 2: one is best, and three share the second place: a third each.
    one = table([1, 2, 3, 4], [0.8, 0.9, 0.8, 0.8])
    assert select([one], "c", k=2).precision_at_k == pytest.approx((1 + 1 / 3) / 2)
    same = table([1, 2, 3, 4], [0.5] * 4)
    found = select([same], "c", k=1)
    assert (found.percentile, found.beats_random) == (50, 0.5)
    assert found.precision_at_k == pytest.approx(1 / 4)


def test_what_one_retraining_shows_is_not_what_their_mean_shows() -> None:
    one = table([1, 2, 3], [0.5, 0.6, 0.1], [0.5, 0.1, 0.6])
    found = select([one], "c")
    assert found.percentile == 100  # on average 0.5 against 0.35 twice
    assert found.beats_random == pytest.approx(1 / 2)  # of two others, one is better each time
    assert math.isnan(found.rank_low)  # second with either seed alone: they do not scatter


def test_seeds_that_differ_widen_rank_and_regret() -> None:
    one = table([1, 2, 3], [0.9, 0.6, 0.1], [0.1, 0.5, 0.6])
    found = select([one], "c")
    assert (found.rank_low, found.rank_high) == (1, 3)
    # The best by one seed is the third by the other, and so its regret there is 0.1 - 0.9 and
    # 0.1 - 0.1: by luck it looks 0.5 better than the chosen one where it was chosen.
    assert found.held_out_regret == pytest.approx((-0.8 + 0.0) / 2)
    assert found.best_rank == pytest.approx((3 + 3) / 2)
    reach = 12.7062 * math.sqrt(0.32 / 2)  # of -0.8 and 0
    assert found.regret_high == pytest.approx(-0.4 + reach, abs=1e-3)
    assert found.regret_low == pytest.approx(-0.4 - reach, abs=1e-3)


def test_the_best_by_luck_has_no_held_out_regret() -> None:
    # Outcomes are noise: none is better than the chosen one, and the best looks 2.5 better.
    generator = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(40):
        outcomes = generator.normal(size=(50, 2))
        one = CandidateTable(outcomes, {"c": np.arange(50.0)}, higher_is_better=True)
        found.append(select([one], "c").held_out_regret)
        plain.append(one.outcome.max() - one.outcome[0])
    assert np.mean(plain) > 1
    assert abs(np.mean(found)) < 0.4


def test_examples_choose_where_there_is_one_seed() -> None:
    generator = np.random.default_rng(1)
    sums = generator.normal(size=(30, 1, 6))
    blocks = Blocks(sums, np.ones(6))
    one = CandidateTable(sums.mean(axis=2), {"c": np.arange(30.0)}, True, blocks=blocks)
    found = select([one], "c")
    even, odd = sums[:, 0, ::2].mean(axis=1), sums[:, 0, 1::2].mean(axis=1)
    by_hand = [odd[even.argmax()] - odd[0], even[odd.argmax()] - even[0]]
    assert found.held_out_regret == pytest.approx(np.mean(by_hand))
    assert found.regret_low < found.held_out_regret < found.regret_high


def test_the_lowest_few() -> None:
    assert [lowest_few(n) for n in (1, 2, 45, 60, 80, 252, 1000)] == [1, 2, 3, 3, 4, 13, 50]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_a_monotone_transform_of_the_scores_changes_nothing(rows: list[tuple[int, int]]) -> None:
    x, y = ([float(value) for value in column] for column in zip(*rows, strict=True))
    plain = select([table(x, y)], "c")
    assert select([table([math.exp(v) for v in x], y)], "c").as_dict() == plain.as_dict()
    assert 0 <= plain.precision_at_k <= 1
    assert 0 <= plain.anomaly_ratio_k < 1
    assert 0 <= plain.percentile <= 100
    best = select([table([-v for v in y], y)], "c")
    assert best.precision_at_k >= plain.precision_at_k - 1e-12
    assert best.precision_at_k == pytest.approx(1) or len(set(y)) < len(y)
    assert best.regret_at_k == 0
    assert best.percentile >= plain.percentile - 1e-9
