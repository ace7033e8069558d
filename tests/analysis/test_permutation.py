from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.test_assessment import every_way
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.permutation import (
    how_permuted,
    label_permutation_p_values,
    permuted_rows,
)
from trueoracle.analysis.table import CandidateTable


def table(
    pruned: np.ndarray, score: np.ndarray, outcome: np.ndarray, *groups: int
) -> CandidateTable:
    return CandidateTable(
        outcome[:, None], {"c": score}, False, pruned=pruned, groups=groups or (pruned.shape[1],)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.booleans())
def test_it_is_the_share_of_relabellings_with_a_tau_as_far(
    seed: int, count: int, missing: bool
) -> None:
    generator = np.random.default_rng(seed)
    pruned = every_way(4, count)
    ways = [tuple(map(int, np.flatnonzero(row))) for row in pruned]
    score = generator.integers(0, 4, size=len(ways)).astype(float)
    outcome = generator.normal(size=len(ways))
    as_far = total = 0
    for label in itertools.permutations(range(4)):
        moved = [ways.index(tuple(sorted(label[int(f)] for f in way))) for way in ways]
        total += 1
        value = kendall(score, outcome[moved]).value
        as_far += abs(value) >= abs(kendall(score, outcome).value) - 1e-12
    expected = as_far / total
    found = label_permutation_p_values(table(pruned, score, outcome))["c"]
    if math.isnan(kendall(score, outcome).value):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(expected)


def test_every_relabelling_carries_the_candidates_to_themselves() -> None:
    pruned = np.array(
        [[*a, *b] for a in every_way(5, 2).tolist() for b in every_way(3, 1).tolist()], dtype=bool
    )
    both = table(pruned, np.arange(30.0), np.arange(30.0), 5, 3)
    rows = permuted_rows(both, 50, seed=0)
    assert rows is not None
    moves = list(rows)
    assert len(moves) == 50
    assert moves[0].tolist() == list(range(30))
    for moved in moves:
        assert sorted(moved) == list(range(30))
        # Two candidates that share filters of both groups still do.
        overlap = pruned.astype(int) @ pruned.T
        assert np.array_equal(overlap[np.ix_(moved, moved)], overlap)
    assert len(list(permuted_rows(both, 720, seed=0) or ())) == math.factorial(5) * 6


@pytest.mark.slow
def test_p_values_are_uniform_where_there_is_no_relation() -> None:
    # Scores and outcomes made of filters, independently: the textbook would reject most of them.
    generator = np.random.default_rng(0)
    pruned = every_way(8, 4)
    found, textbook = [], []
    for _ in range(150):
        score, outcome = (pruned @ generator.normal(size=8) for _ in range(2))
        one = table(pruned, score, outcome)
        found.append(label_permutation_p_values(one, permutations=200)["c"])
        textbook.append(kendall(score, outcome).p_value)
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.11
    assert np.mean(np.array(textbook) <= 0.05) > 0.3


def test_a_real_relation_is_found() -> None:
    generator = np.random.default_rng(1)
    pruned = every_way(8, 4)
    weights = generator.normal(size=8)
    outcome = pruned @ weights + 0.1 * generator.normal(size=70)
    assert label_permutation_p_values(table(pruned, pruned @ weights, outcome))["c"] < 0.005


def test_where_labels_cannot_be_permuted_there_is_none() -> None:
    pruned = every_way(5, 2)
    x = np.arange(10.0)
    whole = table(pruned, x, x)
    for one in (
        CandidateTable(whole.outcomes, whole.scores, False),
        table(pruned, np.zeros(10), x),
        table(pruned, x, np.zeros(10)),
    ):
        assert math.isnan(label_permutation_p_values(one)["c"])


def test_a_candidate_without_an_outcome_is_no_hindrance() -> None:
    pruned = every_way(6, 3)
    outcome = pruned @ np.arange(6.0)
    score = outcome.copy()
    outcome[4] = math.nan
    assert label_permutation_p_values(table(pruned, score, outcome))["c"] < 0.02


def test_a_sample_has_the_p_value_that_all_ways_have() -> None:
    # All ways to prune, said to be a sample: what the fit gives for a relabelled candidate is what
    # that candidate has, where the score is a sum over filters.
    generator = np.random.default_rng(0)
    pruned = every_way(8, 4)
    weights = generator.normal(size=8)
    outcome = pruned @ weights
    for share in (0.0, 0.5):
        score = pruned @ (share * weights + generator.normal(size=8))
        whole = table(pruned, score, outcome)
        sample = CandidateTable(whole.outcomes, whole.scores, False, True, pruned, (8,))
        expected = label_permutation_p_values(whole)["c"]
        assert label_permutation_p_values(sample)["c"] == pytest.approx(expected, abs=0.05)
        assert "a sample" in how_permuted(sample)
        assert how_permuted(whole) == ""
    missing = table(pruned[:50], score[:50], outcome[:50])
    assert "not all ways to prune" in how_permuted(missing)
    assert 0 < label_permutation_p_values(missing)["c"] <= 1


@pytest.mark.parametrize(("count", "told"), [(4, False), (5, True)])
def test_of_too_few_sampled_candidates_no_p_value_is_told(count: int, told: bool) -> None:
    pruned = every_way(8, 4)[:count]
    found = label_permutation_p_values(table(pruned, np.arange(count), np.arange(count)))["c"]
    assert math.isfinite(found) is told
    assert found != 0


def test_a_null_criterion_of_samples_is_found_as_often_as_said() -> None:
    generator = np.random.default_rng(5)
    found = []
    for _ in range(60):
        order = generator.random((40, 12)).argsort(axis=1)
        pruned = order < 6
        score, outcome = (pruned @ generator.normal(size=12) for _ in range(2))
        one = CandidateTable(outcome[:, None], {"c": score}, False, True, pruned, (12,))
        found.append(label_permutation_p_values(one, permutations=120)["c"])
    assert np.mean(np.array(found) < 0.05) <= 0.12
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.17)


def test_small_p_values_are_read_from_the_shape_of_the_tail() -> None:
    # Of ten filters there are 3.6 million relabellings; 2,000 of them do not show p below 0.0005.
    generator = np.random.default_rng(0)
    pruned = every_way(10, 3)
    weights = generator.normal(size=10)
    whole = table(pruned, pruned @ weights, pruned @ weights + 0.1 * generator.normal(size=120))
    found = label_permutation_p_values(whole, permutations=300)["c"]
    assert 1 / math.factorial(10) <= found < 1e-3


def test_networks_are_relabelled_each_by_itself() -> None:
    # Of two networks with six relabellings each, the mean tau of every pair of relabellings.
    pruned, generator = every_way(3, 1), np.random.default_rng(4)
    tables = [table(pruned, *generator.normal(size=(2, 3))) for _ in range(2)]
    each = []
    for one in tables:
        moved = permuted_rows(one, 6, seed=0)
        assert moved is not None
        each.append([kendall(one.scores["c"], one.outcome[rows]).value for rows in moved])
    means = np.add.outer(*each) / 2
    expected = np.mean(np.abs(means) >= abs(means[0, 0]) - 1e-9)
    assert label_permutation_p_values(tables)["c"] == pytest.approx(expected)
    assert label_permutation_p_values(tables[:1]) == label_permutation_p_values(tables[0])
    # What one of them does not say is not known of both.
    unknown = replace(tables[1], pruned=None, groups=())
    assert math.isnan(label_permutation_p_values([tables[0], unknown])["c"])


@pytest.mark.slow
def test_p_values_over_networks_are_uniform_where_there_is_no_relation() -> None:
    generator = np.random.default_rng(3)
    pruned = every_way(6, 3)
    found = []
    for _ in range(150):
        worth = generator.normal(size=(3, 2, 6))
        tables = [table(pruned, pruned @ score, pruned @ outcome) for score, outcome in worth]
        found.append(label_permutation_p_values(tables, permutations=200)["c"])
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.11
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(("filters", "candidates"), [(12, 6), (48, 6), (48, 8)])
def test_no_p_value_is_below_that_of_the_candidates_orders(filters: int, candidates: int) -> None:
    # However many ways there are to relabel 48 filters, 6 candidates have 720 orders.
    for seed in range(5):
        generator = np.random.default_rng(seed)
        pruned = np.array(
            [generator.permutation(filters) < filters // 2 for _ in range(candidates)]
        )
        order = generator.permutation(candidates).astype(float)
        of_sample = replace(table(pruned, order, order), sampled=True)
        found = label_permutation_p_values(of_sample)["c"]
        assert 2 / math.factorial(candidates) <= found * (1 + 1e-9)
