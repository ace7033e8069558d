from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueoracle.analysis.bootstrap import bootstrap, levels_in_words
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.table import CandidateTable


def tau(table: CandidateTable, rows: np.ndarray, outcome: np.ndarray) -> Sequence[float]:
    return [kendall(table.scores["c"][rows], outcome).value]


def mean(table: CandidateTable, rows: np.ndarray, outcome: np.ndarray) -> Sequence[float]:
    return [float(outcome.mean())]


def made(outcomes: np.ndarray, *, sampled: bool = False) -> CandidateTable:
    rows = np.arange(float(len(outcomes)))
    return CandidateTable(outcomes, {"c": rows}, higher_is_better=False, sampled=sampled)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=5))
def test_the_error_of_a_mean_over_seeds_is_the_textbooks(values: list[float]) -> None:
    # Of a mean all is known: s / sqrt(S), and Student's t with S-1 degrees of freedom.
    seeds = len(values)
    found = bootstrap([made(np.array([values]))], mean)
    error = np.std(values, ddof=1) / math.sqrt(seeds)
    if error < 1e-9:
        return  # seeds that do not scatter at all say nothing: another test
    assert found.standard_error() == pytest.approx(error, abs=1e-9)
    quantile = {2: 12.7062, 3: 4.30265, 4: 3.18245, 5: 2.77645}[seeds]
    interval = found.interval()
    assert interval.high - interval.low == pytest.approx(2 * quantile * error, rel=1e-4, abs=1e-6)


def test_many_seeds_are_drawn_at_random_and_agree() -> None:
    values = np.random.default_rng(0).normal(size=(1, 12))
    found = bootstrap([made(values)], mean, resamples=4000)
    assert len(found.drawn) == 4000
    error = np.std(values, ddof=1) / math.sqrt(12)
    assert found.standard_error() == pytest.approx(error, rel=0.05)
    again = bootstrap([made(values)], mean, resamples=4000)
    assert np.array_equal(found.drawn, again.drawn)


def test_an_exhaustive_list_with_one_seed_has_nothing_to_draw() -> None:
    table = made(np.arange(5.0)[:, None])
    found = bootstrap([table], tau)
    assert found.estimate[0] == pytest.approx(1)
    assert math.isnan(found.standard_error())
    assert math.isnan(found.interval().low)
    assert math.isnan(found.interval().high)
    assert math.isnan(found.p_value())
    assert levels_in_words([table]) == ""


def test_candidates_are_drawn_where_they_are_a_sample() -> None:
    generator = np.random.default_rng(2)
    y = np.arange(80.0) + 30 * generator.normal(size=80)
    table = made(y[:, None], sampled=True)
    found = bootstrap([table], tau)
    interval = found.interval()
    assert interval.low < found.estimate[0] < interval.high
    # Kendall's own error of tau over independent rows (1938) bounds it from above.
    bound = math.sqrt(2 / 80 * (1 - found.estimate[0] ** 2))
    assert 0.3 * bound < found.standard_error() < bound
    assert levels_in_words([table]) == (
        "80 sampled candidates, given the dense network, its filters and the examples"
    )
    few = bootstrap([made(y[:20, None], sampled=True)], tau)
    assert few.standard_error() > found.standard_error()


def test_few_seeds_beside_many_candidates_keep_their_few_degrees_of_freedom() -> None:
    generator = np.random.default_rng(4)
    true = np.arange(60.0)
    quiet = true[:, None] + 40 * generator.normal(size=(60, 1)) + generator.normal(size=(60, 2))
    by_candidates = bootstrap([made(quiet, sampled=True)], tau)
    assert by_candidates.freedom[0] > 30
    seeds_differ = np.column_stack([true + generator.normal(size=60), generator.normal(size=60)])
    by_seeds = bootstrap([made(seeds_differ, sampled=True)], tau)
    assert by_seeds.freedom[0] < by_candidates.freedom[0]


@pytest.mark.parametrize("seeds", [2, 4])
def test_the_interval_covers_what_other_seeds_would_give(seeds: int) -> None:
    # What is estimated: the mean of tau over sets of as many seeds.
    generator = np.random.default_rng(seeds)
    true, score = generator.normal(size=(2, 40))
    score = score + true

    def draw() -> np.ndarray:
        noise = generator.normal(size=(40, seeds))
        tilt = score[:, None] * 0.4 * generator.normal(size=seeds)  # a seed that favours the score
        drawn: np.ndarray = true[:, None] + noise + tilt
        return drawn

    def table(outcomes: np.ndarray) -> CandidateTable:
        return CandidateTable(outcomes, {"c": score}, higher_is_better=False)

    target = np.mean([kendall(score, draw().mean(axis=1)).value for _ in range(200)])
    intervals = [bootstrap([table(draw())], tau).interval(bounds=(-1, 1)) for _ in range(100)]
    covered = np.mean([one.low <= target <= one.high for one in intervals])
    assert 0.88 <= covered <= 1


def test_too_many_resamples_without_a_value_make_no_interval() -> None:
    def mostly_undefined(
        table: CandidateTable, rows: np.ndarray, outcome: np.ndarray
    ) -> Sequence[float]:
        return [math.nan if len(set(rows)) < 6 else 1.0]

    found = bootstrap([made(np.arange(6.0)[:, None], sampled=True)], mostly_undefined)
    assert math.isnan(found.interval().low)


def test_what_does_not_scatter_has_no_interval_and_no_p_value() -> None:
    same = bootstrap([made(np.ones((4, 3)))], lambda *_: [0.0])
    assert math.isnan(same.p_value())
    assert math.isnan(same.interval().low)
    clear = bootstrap([made(np.array([[1.0, 1.1, 0.9]]))], mean)
    assert clear.p_value() < 0.01


def test_networks_are_drawn_whole() -> None:
    # Their scatter has that of their seeds in it: drawing these too would count it twice.
    generator = np.random.default_rng(0)
    tables = [made(generator.normal(size=(1, 4))) for _ in range(6)]
    found = bootstrap(tables, mean)
    means = [table.outcome.mean() for table in tables]
    assert found.standard_error() == pytest.approx(np.std(means, ddof=1) / math.sqrt(6), rel=1e-6)
    assert found.freedom[0] == 5
    assert levels_in_words(tables) == "6 dense networks, given the examples"
