from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trueoracle.analysis.jackknife import Interval
from trueoracle.analysis.meta import Effect, effect, meta_analysis, slope_in, textbook_error
from trueoracle.errors import InputError


def effects(*pairs: tuple[float, float]) -> list[Effect]:
    made = [effect(f"s{i}", tau, 100, error) for i, (tau, error) in enumerate(pairs)]
    assert all(made)
    return [one for one in made if one is not None]


def test_settings_that_agree_are_a_plain_weighted_mean() -> None:
    found = meta_analysis(effects((0.30, 0.1), (0.31, 0.05), (0.29, 0.2)))
    assert found.tau2 == 0
    fixed = np.array([1 / 0.01, 1 / 0.0025, 1 / 0.04])
    assert found.weights == pytest.approx(fixed / fixed.sum())
    assert found.tau == pytest.approx(float(fixed @ [0.30, 0.31, 0.29] / fixed.sum()))
    assert found.i2 == 0
    assert found.p_value > 0.9


def test_a_published_example() -> None:
    # Colditz et al. 1994, the BCG trials, log risk ratios: in every textbook of meta-analysis.
    # Paule and Mandel's tau2 0.3181, Cochran's Q 152.23, I2 92.1 % (metafor's documentation).
    log_ratios = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120,
                  -0.4694, -1.3713, -0.3394, 0.4459, -0.0173]  # fmt: skip
    variances = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040,
                 0.0564, 0.0730, 0.0124, 0.5325, 0.0714]  # fmt: skip
    found = meta_analysis(effects(*zip(log_ratios, np.sqrt(variances), strict=True)))
    assert found.q == pytest.approx(152.23, abs=0.5)
    assert found.i2 == pytest.approx(0.921, abs=0.002)
    assert found.tau2 == pytest.approx(0.3181, abs=0.002)
    assert found.tau == pytest.approx(-0.7150, abs=0.003)


def test_settings_that_differ_share_the_weight() -> None:
    found = meta_analysis(effects((0.6, 0.01), (-0.2, 0.05), (0.1, 0.02), (0.4, 0.03)))
    assert found.i2 > 0.9
    assert found.p_value < 1e-6
    assert max(found.weights) < 0.27
    assert found.prediction_low < found.low < found.tau < found.high < found.prediction_high


def test_one_or_two_settings() -> None:
    alone = meta_analysis(effects((0.5, 0.1)))
    assert alone.tau == 0.5
    assert (alone.low, alone.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert math.isnan(alone.tau2)
    two = meta_analysis(effects((0.5, 0.1), (0.3, 0.1)))
    assert math.isnan(two.prediction_low)
    fields = json.loads(json.dumps(two.as_dict(), allow_nan=False))
    assert fields["prediction_high"] is None
    assert [one["label"] for one in fields["studies"]] == ["s0", "s1"]
    with pytest.raises(InputError, match="at least one"):
        meta_analysis([])


def test_an_error_of_nothing_is_bounded() -> None:
    found = meta_analysis(effects((0.5, 0.0), (0.1, 0.05), (0.2, 0.05)))
    assert math.isfinite(found.tau)
    assert found.weights[0] < 0.6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.9, 0.9), st.floats(0.01, 0.3)), min_size=2, max_size=8))
def test_their_order_and_sign_change_nothing(pairs: list[tuple[float, float]]) -> None:
    found = meta_analysis(effects(*pairs))
    assert min(t for t, _ in pairs) - 1e-9 <= found.tau <= max(t for t, _ in pairs) + 1e-9
    assert sum(found.weights) == pytest.approx(1)
    assert 0 <= found.i2 <= 1
    turned = meta_analysis(effects(*((-tau, error) for tau, error in reversed(pairs))))
    assert turned.tau == pytest.approx(-found.tau, abs=1e-6)
    assert turned.low == pytest.approx(-found.high, abs=1e-6)


def test_where_no_error_is_known_it_is_the_textbooks() -> None:
    found = effect("s", 0.3, 104)
    assert found is not None
    assert found.standard_error == textbook_error(0.3, 104)
    assert textbook_error(0.0, 104) == pytest.approx(math.sqrt(0.437 / 100))
    known = effect("s", 0.3, 104, 0.02)
    assert known is not None
    assert (known.low, known.high) == pytest.approx(
        (0.3 - 1.96 * 0.02, 0.3 + 1.96 * 0.02), abs=1e-5
    )
    assert effect("s", 0.3, 104, 0.02, Interval(0.1, 0.5)) == Effect("s", 0.3, 0.02, 0.1, 0.5)
    assert effect("s", 0.3, 4) is None
    assert effect("s", math.nan, 100, 0.1) is None


def test_settings_that_agree_by_chance_are_not_taken_for_certain() -> None:
    found = meta_analysis(effects((0.5, 0.2), (0.5, 0.2), (0.5, 0.2)))
    # No scatter is seen; the errors alone make 0.2 / sqrt(3), and t has two degrees of freedom.
    assert found.high - found.tau == pytest.approx(4.30265 * 0.2 / math.sqrt(3), abs=1e-4)
    assert found.prediction_high - found.tau > found.high - found.tau


def test_the_slope_in_complexity() -> None:
    width = [10, 20, 30, 40, 50]
    taus = [0.5, 0.41, 0.29, 0.2, 0.11]
    found = slope_in(effects(*((tau, 0.05) for tau in taus)), width)
    assert found is not None
    assert found.slope == pytest.approx(-0.0099, abs=5e-4)
    assert found.low < found.slope < found.high < 0
    assert found.p_value < 0.01
    assert found.as_dict()["slope"] == found.slope
    assert slope_in(effects((0.1, 0.1), (0.2, 0.1)), [1, 2]) is None
    assert slope_in(effects((0.1, 0.1), (0.2, 0.1), (0.3, 0.1)), [2, 2, 2]) is None


def test_a_slope_of_three_studies_is_bounded_as_the_mean_is() -> None:
    # metafor 4.8, rma(yi, vi, mods, test="adhoc"): [-0.80, 1.00], p 0.39. Without: p 5.7e-16.
    found = slope_in(effects((0.1, 0.1), (0.2, 0.1), (0.3, 0.1)), [1, 2, 3])
    assert found is not None
    assert found.slope == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((-0.7985, 0.9985), abs=1e-3)
    assert found.p_value == pytest.approx(0.39, abs=0.005)


def test_a_perfect_tau_is_not_known_perfectly() -> None:
    perfect = effect("p", 1.0, 252, math.nan)
    assert perfect is not None
    found = meta_analysis([perfect, *effects((0.8, 0.1), (0.9, 0.15))])
    assert found.weights[0] == pytest.approx(found.weights[2])  # no more than the least certain
    assert found.i2 < 0.5
    assert math.isfinite(meta_analysis([perfect, perfect]).tau)


def clustered(taus: list[float], of: list[str]) -> list[Effect]:
    made = [
        effect(str(i), t, 100, 0.1, cluster=c)
        for i, (t, c) in enumerate(zip(taus, of, strict=True))
    ]
    return [one for one in made if one is not None]


def test_studies_of_one_network_count_as_one() -> None:
    several = meta_analysis(clustered([0.1, 0.2, 0.3, 0.5, 0.4, 0.6], ["a"] * 3 + ["b", "c", "c"]))
    alone = meta_analysis(effects((0.2, 0.1), (0.5, 0.1), (0.5, 0.1)))
    assert (several.clusters, alone.clusters) == (3, 3)
    assert (several.tau, several.low, several.high) == pytest.approx(
        (alone.tau, alone.low, alone.high)
    )
    assert sum(several.weights) == pytest.approx(1)
    assert several.weights[0] == pytest.approx(alone.weights[0] / 3)
    one = meta_analysis(clustered([0.1, 0.2, 0.3], ["a"] * 3))
    assert one.clusters == 1
    assert one.tau == pytest.approx(0.2)
    # As uncertain as each of them, and nothing of other networks.
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.1, abs=0.01)
    assert math.isnan(one.tau2)


def test_a_slope_over_ratios_of_a_few_networks_is_over_networks() -> None:
    taus = [0.1, 0.2, 0.3, 0.15, 0.22, 0.34, 0.05, 0.2, 0.25]
    of = [name for name in "abc" for _ in range(3)]
    found = slope_in(clustered(taus, of), [1, 2, 3] * 3)
    free = slope_in(clustered(taus, [str(i) for i in range(9)]), [1, 2, 3] * 3)
    assert found is not None
    assert free is not None
    assert found.slope == pytest.approx(free.slope)
    each = [(taus[3 * i + 2] - taus[3 * i]) / 2 for i in range(3)]
    assert found.slope == pytest.approx(np.mean(each))
    # No narrower than Student's t of the three networks' own slopes.
    reach = stats.t.ppf(0.975, 2) * np.std(each, ddof=1) / math.sqrt(3)
    assert found.high - found.slope >= reach - 1e-9
    assert found.high - found.low > free.high - free.low
    assert slope_in(clustered(taus[:6], of[:6]), [1, 2, 3] * 2) is None  # of two networks


def test_the_interval_of_one_network_holds_its_mean() -> None:
    three = [
        effect(name, tau, 100, 0.1, interval=Interval(low, high), cluster="one")
        for name, tau, low, high in (
            ("a", 0.9, 0.85, 0.94), ("b", 0.2, 0.12, 0.28), ("c", 0.1, 0.02, 0.18)
        )
    ]  # fmt: skip
    found = meta_analysis([one for one in three if one is not None])
    assert found.tau == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.4 - 0.21 / 3, 0.4 + 0.2 / 3))


def test_where_a_number_begins_changes_no_slope() -> None:
    studies = effects((0.1, 0.1), (0.2, 0.1), (0.3, 0.1), (0.42, 0.1))
    expected = slope_in(studies, [1, 2, 3, 4])
    assert expected is not None
    for start, unit in ((1e8, 1), (1e12, 1), (0, 1e-12), (-5, 1e6)):
        found = slope_in(studies, [start + unit * one for one in (1, 2, 3, 4)])
        assert found is not None
        assert found.p_value == pytest.approx(expected.p_value, rel=1e-3)
        assert found.slope * unit == pytest.approx(expected.slope, rel=1e-3)
