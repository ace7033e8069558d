from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.test_assessment import every_way
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.permutation import label_permutation_p_values, permuted_rows
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
        CandidateTable(whole.outcomes, whole.scores, False, True, pruned, (5,)),
        table(pruned[:9], x[:9], x[:9]),
        table(pruned[[0, 0, *range(2, 10)]], x, x),
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
