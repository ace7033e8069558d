from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from trueoracle.analysis.comparison import (
    adjusted_p_values,
    combine,
    compare,
    differences,
    partial_kendall,
    rank_agreement,
)
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.table import Blocks, CandidateTable
from trueoracle.errors import InputError


def made(seeds: int = 3, candidates: int = 80, seed: int = 0) -> CandidateTable:
    generator = np.random.default_rng(seed)
    true = generator.normal(size=candidates)
    outcomes = true[:, None] + 0.3 * generator.normal(size=(candidates, seeds))
    scores = {
        "first": true + 2 * generator.normal(size=candidates),
        "good": true + 0.3 * generator.normal(size=candidates),
        "none": generator.normal(size=candidates),
    }
    return CandidateTable(outcomes, scores, higher_is_better=False)


def test_differences_are_of_agreement_on_the_same_draws() -> None:
    table = made()
    good, none = differences([table], "first")
    taus = {name: kendall(x, table.outcome).value for name, x in table.scores.items()}
    assert (good.first, good.second, none.first) == ("good", "first", "none")
    assert good.difference == pytest.approx(taus["good"] - taus["first"])
    assert good.low < good.difference < good.high
    assert good.low > 0 > none.high
    assert good.p_value < 0.05
    assert good.adjusted_p_value >= good.p_value
    # For an accuracy low scores should end high: the sign of the difference stays.
    turned = CandidateTable(-table.outcomes, table.scores, higher_is_better=True)
    assert differences([turned], "first")[0].difference == pytest.approx(good.difference)
    assert math.isnan(differences([made(seeds=1)], "first")[0].p_value)
    alone = CandidateTable(table.outcomes, {"first": table.scores["first"]}, False)
    assert differences([alone], "first") == []


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    p_values = [0.01, 0.04, math.nan, 0.03]
    holm = adjusted_p_values(p_values)
    assert holm[0] == pytest.approx(0.03)
    assert holm[1] == pytest.approx(0.06)
    assert math.isnan(holm[2])
    assert holm[3] == pytest.approx(0.06)
    found = adjusted_p_values(p_values, "fdr_bh")
    assert [found[i] for i in (0, 1, 3)] == pytest.approx([0.03, 0.04, 0.04])
    assert adjusted_p_values([]) == []
    generator = np.random.default_rng(0)
    for method in ("holm", "fdr_bh"):
        raw = generator.random(40) ** 3
        expected = multipletests(raw, method=method)[1]
        np.testing.assert_allclose(adjusted_p_values(list(raw), method), expected)


def test_partial_tau_of_kendalls_own_formula() -> None:
    generator = np.random.default_rng(3)
    z = generator.normal(size=60)
    x, y = z + generator.normal(size=(2, 60))
    xy, xz, yz = (stats.kendalltau(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_kendall(x, y, z) == pytest.approx(expected)
    assert abs(partial_kendall(x, y, z)) < abs(xy)
    assert math.isnan(partial_kendall(x, y, x))
    assert math.isnan(partial_kendall(x, y, np.zeros(60)))


def test_criteria_that_order_alike_stand_together() -> None:
    x = np.random.default_rng(0).normal(size=(2, 30))
    scores = {"a": x[0], "b": x[1], "a2": np.exp(x[0]), "b2": x[1] ** 3}
    found = rank_agreement([scores])
    order = [found.criteria[place] for place in found.order]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {
        frozenset({"a", "a2"}),
        frozenset({"b", "b2"}),
    }
    tau = np.array(found.tau)
    assert np.allclose(tau, tau.T)
    assert tau[0, 2] == pytest.approx(1)
    assert tau[0, 1] == pytest.approx(kendall(x[0], x[1]).value)
    assert len(found.linkage) == 3
    constant = rank_agreement([{"a": x[0], "flat": np.zeros(30)}])
    assert constant.as_dict()["tau"][0][1] is None
    assert rank_agreement([{"a": x[0]}]).linkage == ()


def test_a_combination_gains_where_each_has_a_part() -> None:
    generator = np.random.default_rng(1)
    parts = generator.normal(size=(2, 200))
    outcome = parts.sum(axis=0) + 0.2 * generator.normal(size=200)
    scores = {"a": parts[0], "b": parts[1], "noise": generator.normal(size=200)}
    found = combine(CandidateTable(outcome[:, None], scores, higher_is_better=False))
    assert found is not None
    assert found.agreement > found.single_agreement + 0.2
    assert found.gain == pytest.approx(found.agreement - found.single_agreement)
    assert abs(found.weights["noise"]) < 0.1 < min(found.weights["a"], found.weights["b"])
    turned = combine(CandidateTable(-outcome[:, None], scores, higher_is_better=True))
    assert turned is not None
    assert turned.agreement == pytest.approx(found.agreement)


def test_what_a_combination_learns_of_the_examples_does_not_count_on_others() -> None:
    # What each criterion is worth differs from block to block, and has no mean.
    generator = np.random.default_rng(2)
    scores = {name: generator.normal(size=200) for name in "abcd"}
    worth = generator.normal(size=(4, 10))
    worth -= worth.mean(axis=1, keepdims=True)
    by_block = np.einsum("cp,cb->pb", np.array(list(scores.values())), worth)[:, None]
    outcomes = by_block.mean(axis=2) + 1e-3 * generator.normal(size=(200, 1))
    blocks = Blocks(3 * by_block, np.full(10, 3))
    same = combine(CandidateTable(outcomes, scores, False))
    found = combine(CandidateTable(outcomes, scores, False, blocks=blocks))
    assert same is not None
    assert found is not None
    assert (same.other_examples, found.other_examples) == (False, True)
    # The halves are each other's opposite: what fits the one is wrong of the other.
    assert found.agreement < -0.9
    assert found.weights == same.weights


def test_a_combination_of_noise_does_not_gain() -> None:
    gains = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        scores = {name: generator.normal(size=60) for name in "abcdef"}
        found = combine(CandidateTable(generator.normal(size=(60, 1)), scores, False))
        assert found is not None
        gains.append(found.agreement)
    assert abs(np.mean(gains)) < 0.1  # in sample it would be far above


def test_a_combination_needs_criteria_and_candidates() -> None:
    x = np.arange(30.0)
    nan = np.where(x < 1, math.nan, x)
    for scores in ({"a": x}, {"a": x, "part": nan}, {"a": x, "flat": np.zeros(30)}):
        assert combine(CandidateTable(x[:, None], scores, False)) is None
    assert combine(CandidateTable(x[:10, None], {"a": x[:10], "b": -x[:10]}, False)) is None
    with pytest.raises(InputError, match="2 folds"):
        combine(CandidateTable(x[:, None], {"a": x, "b": -x}, False), folds=1)


def test_all_of_it_survives_json() -> None:
    table = made()
    fields = json.loads(json.dumps(compare(table), allow_nan=False))
    assert [one["first"] for one in fields["differences"]] == ["good", "none"]
    assert [one["criterion"] for one in fields["partial"]] == ["good", "none"]
    assert fields["combination"]["single"] == "good"
    assert fields["additive"] is None  # the table does not say what candidates prune
    assert compare(table, "good")["differences"][0]["second"] == "good"


def test_several_networks_are_compared_on_average() -> None:
    tables = [made(seed=seed) for seed in range(3)]
    each, over = [compare(one) for one in tables], compare(tables)
    for place, found in enumerate(over["differences"]):
        own = [one["differences"][place]["difference"] for one in each]
        assert found["difference"] == pytest.approx(np.mean(own))
        assert found["over"].startswith("3 dense networks")
        assert found["low"] < min(own) <= max(own) < found["high"]
    for place, partial in enumerate(over["partial"]):
        own = [one["partial"][place]["kendall_tau"] for one in each]
        assert partial["kendall_tau"] == pytest.approx(np.mean(own))
    taus = [one["agreement"]["tau"] for one in each]
    np.testing.assert_allclose(over["agreement"]["tau"], np.mean(taus, axis=0))
    assert (over["combination"], over["additive"]) == (None, None)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 100))
def test_the_order_of_the_candidates_changes_nothing(order: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    outcomes = generator.normal(size=(12, 3))
    scores = {name: generator.normal(size=12) for name in "ab"}
    plain = differences([CandidateTable(outcomes, scores, False)], "a")[0]
    moved = CandidateTable(outcomes[order], {n: x[order] for n, x in scores.items()}, False)
    shuffled = differences([moved], "a")[0]
    assert shuffled.difference == pytest.approx(plain.difference)
    assert (shuffled.low, shuffled.high) == pytest.approx((plain.low, plain.high))
    for one, other in itertools.combinations("ab", 2):
        assert rank_agreement([moved.scores]).tau == rank_agreement([scores]).tau, (one, other)
