from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.reliability import noise_ceiling


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "noise"), [(2, 0.5), (2, 2.0), (3, 1.0), (5, 3.0), (6, 1.0)])
def test_it_is_the_tau_of_the_expected_outcome(seeds: int, noise: float) -> None:
    generator = np.random.default_rng(seeds)
    true = generator.normal(size=800)
    shift = 10 * generator.normal(size=seeds)  # what a seed does to all is no noise
    outcomes = true[:, None] + shift + noise * generator.normal(size=(800, seeds))
    found = noise_ceiling(outcomes, sampled=True)
    assert noise_ceiling(outcomes).ceiling == found.ceiling
    assert math.isnan(noise_ceiling(outcomes).interval.low)  # all there are: nothing to draw
    best = kendall(true, outcomes.mean(axis=1)).value
    assert found.ceiling == pytest.approx(best, abs=0.04)
    assert found.reliability == pytest.approx(1 / (1 + noise**2 / seeds), abs=0.04)
    assert found.interval.low < found.ceiling < found.interval.high


def test_split_half_is_the_mean_tau_between_halves() -> None:
    outcomes = np.random.default_rng(0).normal(size=(30, 3)) + np.arange(30.0)[:, None] / 10
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([kendall(outcomes[:, i], outcomes[:, j]).value for i, j in pairs])
    assert noise_ceiling(outcomes).split_half == pytest.approx(expected)
    four = np.random.default_rng(1).normal(size=(30, 4)) + np.arange(30.0)[:, None] / 10
    halves = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    expected = np.mean(
        [
            kendall(four[:, list(a)].mean(axis=1), four[:, list(b)].mean(axis=1)).value
            for a, b in halves
        ]
    )
    assert noise_ceiling(four).split_half == pytest.approx(expected)


def test_perfect_and_hopeless_retraining() -> None:
    true = np.arange(20.0)
    perfect = noise_ceiling(np.column_stack([true, true + 3]))
    assert (perfect.split_half, perfect.reliability, perfect.ceiling) == pytest.approx((1, 1, 1))
    hopeless = noise_ceiling(np.column_stack([true, -true]))
    assert hopeless.ceiling == 0
    assert math.isnan(hopeless.share(0.3))


def test_one_seed_or_one_value_has_no_ceiling() -> None:
    assert math.isnan(noise_ceiling(np.arange(5.0)[:, None]).ceiling)
    assert noise_ceiling(np.arange(5.0)[:, None]).as_dict()["ceiling"] is None
    assert math.isnan(noise_ceiling(np.ones((5, 2))).ceiling)
    assert math.isnan(noise_ceiling(np.ones((1, 2))).ceiling)


def test_rows_that_diverged_count_for_nothing() -> None:
    outcomes = np.random.default_rng(0).normal(size=(20, 2)) + np.arange(20.0)[:, None] / 5
    with_nan = np.vstack([outcomes, [[math.nan, 1.0], [3.0, math.inf]]])
    assert noise_ceiling(with_nan).ceiling == noise_ceiling(outcomes).ceiling


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_monotone_transforms_of_two_seeds_change_nothing(seeds: int, start: int) -> None:
    generator = np.random.default_rng(start)
    outcomes = generator.normal(size=(15, 2)) + np.arange(15.0)[:, None] / seeds
    before, after = noise_ceiling(outcomes), noise_ceiling(np.exp(outcomes))
    assert after.ceiling == before.ceiling
    turned = noise_ceiling(outcomes[::-1])
    assert turned.split_half == pytest.approx(before.split_half)
