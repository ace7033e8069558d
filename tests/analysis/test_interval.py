from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.interval import kendall_interval


def test_it_is_the_percentiles_of_resampled_taus() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=40)
    y = x + generator.normal(size=40)
    low, high = kendall_interval(x, y, resamples=200, seed=5)
    drawn = np.random.Generator(np.random.PCG64(5)).integers(40, size=(200, 40))
    taus = [kendall(x[rows], y[rows]).value for rows in drawn]
    assert np.allclose((low, high), np.quantile(taus, [0.025, 0.975]))
    assert low < kendall(x, y).value < high
    assert kendall_interval(x, y, resamples=200, seed=5) == (low, high)
    narrow = kendall_interval(x, y, resamples=200, seed=5, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_more_candidates_narrow_it() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=400)
    y = x + generator.normal(size=400)
    few = kendall_interval(x[:30], y[:30], resamples=200)
    many = kendall_interval(x, y, resamples=200)
    assert many[1] - many[0] < few[1] - few[0]


def test_what_is_undefined_has_none() -> None:
    for x, y in ((np.zeros(4), np.arange(4.0)), (np.array([1.0]), np.array([2.0]))):
        assert all(map(math.isnan, kendall_interval(x, y)))
    x = np.array([1.0, 2.0, math.nan, 3.0, *range(4, 9)])
    y = np.array([1.0, 3.0, 2.0, math.inf, *range(4, 9)])
    assert np.allclose(kendall_interval(x, y), (1, 1))


def test_there_is_none_where_too_many_samples_have_no_tau() -> None:
    x = np.arange(20.0)
    # A sample without the one that is not 0 has no tau: about a third of them.
    one = np.eye(20)[7]
    assert all(map(math.isnan, kendall_interval(x, one, resamples=200)))
    few = (x >= 14).astype(float)  # six in twenty: one sample in a thousand
    low, high = kendall_interval(x, few, resamples=200)
    assert low <= kendall(x, few).value <= high


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_it_lies_within_one_and_turns_with_the_sign(rows: list[tuple[int, int]]) -> None:
    x, y = np.array(rows, dtype=float).T
    low, high = kendall_interval(x, y, resamples=30)
    turned = kendall_interval(x, -y, resamples=30)
    if math.isnan(low):
        assert math.isnan(turned[0])
    else:
        assert -1 <= low <= high <= 1
        assert np.allclose(turned, (-high, -low))
