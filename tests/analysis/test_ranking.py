from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.analysis.ranking import best_of_sample, rank
from trueoracle.errors import InputError


def test_a_ranking_by_hand() -> None:
    ranking = rank(np.array([3.0, 0.8, 2.0, 1.0, np.nan]), every_way=False)
    assert (ranking.n, ranking.dropped) == (4, 1)
    assert (ranking.oracle, ranking.oracle_score) == (1, 0.8)
    assert (ranking.runner_up, ranking.runner_up_score) == (3, 1.0)
    assert ranking.margin == pytest.approx(0.2)
    assert ranking.relative_margin == pytest.approx(0.25)
    assert ranking.quantiles["0"] == 0.8
    assert ranking.quantiles["0.5"] == 1.5
    assert ranking.quantiles["1"] == 3.0
    assert ranking.sampled is None


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=9).flatmap(
        lambda scores: st.tuples(
            st.just(scores),
            st.lists(st.integers(0, len(scores) - 1), unique=True, min_size=1),
        )
    )
)
def test_sampled_oracles_against_every_sample(case: tuple[list[int], list[int]]) -> None:
    scores, drawn = np.array(case[0], dtype=float), case[1]
    ranking = rank(scores, drawn=drawn)
    found = ranking.sampled
    assert found is not None
    # Those that tie share a rank; every sample is as likely as any other.
    places = [int((scores < score).sum()) + 1 for score in scores]
    samples = list(itertools.combinations(range(len(scores)), len(drawn)))
    best = sorted(min(places[row] for row in rows) for rows in samples)
    excesses = [min(scores[list(rows)]) - scores.min() for rows in samples]
    assert found.n == len(drawn)
    assert found.mean_rank == pytest.approx(np.mean(best))
    assert found.chance == pytest.approx(best.count(1) / len(best))
    assert found.mean_excess == pytest.approx(np.mean(excesses), abs=1e-12)
    for q, value in ((0.05, found.rank_5), (0.5, found.rank_50), (0.95, found.rank_95)):
        assert value == best[math.ceil(q * len(best) - 1e-9) - 1]
    own = min(scores[drawn])
    assert found.own_rank == int((scores < own).sum()) + 1
    assert found.own_excess == own - scores.min()
    fitting = [row for row in drawn if scores[row] == own]
    assert found.own_index == (fitting[0] if len(fitting) == 1 else None)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_the_chances_of_ranks(case: tuple[int, int]) -> None:
    total, n = case
    chances = best_of_sample(total, n)
    expected = [math.comb(total - r, n - 1) / math.comb(total, n) for r in range(1, total - n + 2)]
    np.testing.assert_allclose(chances, expected, rtol=1e-12)


def test_large_numbers_stay_exact() -> None:
    chances = best_of_sample(184_756, 1000)
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    ranks = np.arange(1, len(chances) + 1)
    assert chances @ ranks == pytest.approx(184_757 / 1001, rel=1e-12)
    with pytest.raises(InputError, match="a sample holds 1 to 5 of 5, got 6"):
        best_of_sample(5, 6)


def test_ties_have_no_oracle_and_odd_scores_no_relative_margin() -> None:
    ranking = rank(np.array([1.0, 0.0, 0.0]))
    assert (ranking.tied, ranking.oracle, ranking.runner_up, ranking.margin) == (2, None, None, 0.0)
    assert ranking.sentence() == (
        "The score is lowest, 0, for 2 of all 3 ways to prune, which tie."
    )
    second = rank(np.array([1.0, 0.0, 1.0]))
    assert (second.tied, second.oracle, second.runner_up, second.margin) == (1, 1, None, 1.0)
    assert math.isnan(ranking.relative_margin)
    alone = rank(np.array([np.inf, 2.0]))
    assert (alone.oracle, alone.runner_up, alone.n, alone.dropped) == (1, None, 1, 1)
    assert not alone.every_way
    assert rank(np.array([2.0])).sentence().endswith("for one of all 1 ways to prune.")
    with pytest.raises(InputError, match="no candidate has a finite score"):
        rank(np.array([np.nan]))


def test_a_ranking_in_words_and_as_plain_values() -> None:
    ranking = rank(np.arange(1.0, 101.0), drawn=range(4, 100, 10))
    assert ranking.sentence("pruned train loss") == (
        "Pruned train loss is lowest, 1, for one of all 100 ways to prune, 1 (100.0%) below the "
        "runner-up; the lowest of 10 sampled would be number 9 on average (1 to 25 in 90% of "
        "samples), and of the sample drawn is number 5."
    )
    assert "not all ways to prune" in rank(np.arange(5.0), every_way=False).sentence()
    assert "runner-up." in rank(np.arange(5.0)).sentence()
    fields = json.loads(json.dumps(ranking.as_dict(), allow_nan=False))
    assert fields["sampled"]["own_rank"] == 5
    assert json.dumps(rank(np.array([0.0])).as_dict(), allow_nan=False)
