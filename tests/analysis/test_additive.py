from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from trueoracle.analysis.additive import additive, predict_additive
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.table import Blocks, CandidateTable, pruned_filters


def every(filters: int, count: int) -> np.ndarray:
    ways = [{"conv": way} for way in combinations(range(filters), count)]
    return pruned_filters(ways)[0]


def test_pruned_filters_of_several_groups() -> None:
    ways = [{"a": (0, 2), "b": (1,)}, {"a": (1, 2), "b": (0,)}]
    pruned, groups = pruned_filters(ways)
    assert groups == (3, 2)
    assert pruned.tolist() == [[True, False, True, False, True], [False, True, True, True, False]]


def test_a_sum_over_filters_is_found_from_some_of_its_candidates() -> None:
    generator = np.random.default_rng(0)
    pruned = every(8, 4)
    outcome = pruned @ generator.normal(size=8)
    known = generator.permutation(len(pruned))[:40]
    predicted = predict_additive(pruned, known, outcome[known])
    held = np.setdiff1d(np.arange(len(pruned)), known)
    assert np.corrcoef(predicted[held], outcome[held])[0, 1] > 0.95
    # Only the order of the values counts; one that diverged is the worst.
    again = predict_additive(pruned, known, np.exp(outcome[known]))
    assert np.allclose(again, predicted)
    worst = outcome[known].copy()
    worst[np.argmax(worst)] = math.inf
    assert np.allclose(predict_additive(pruned, known, worst), predicted)


def test_by_the_normal_equations() -> None:
    generator = np.random.default_rng(1)
    pruned = every(6, 3)
    known = np.arange(0, 20, 2)
    values = generator.permutation(10).astype(float)
    x = pruned[known] - pruned[known].mean(axis=0)
    ranks = values + 1  # a permutation of 0 … 9 is its own ranks, from 1
    worth = np.linalg.solve(x.T @ x + np.eye(6), x.T @ (ranks - ranks.mean()))
    expected = ranks.mean() + (pruned - pruned[known].mean(axis=0)) @ worth
    assert np.allclose(predict_additive(pruned, known, values), expected)


def test_the_additive_model_is_judged_on_candidates_it_has_not_seen() -> None:
    generator = np.random.default_rng(2)
    pruned = every(9, 4)
    sums = pruned @ generator.normal(size=9)
    noise = generator.normal(size=len(pruned))
    for higher in (False, True):
        found = additive(CandidateTable(sums[:, None], {}, higher, pruned=pruned, groups=(9,)))
        assert found is not None
        assert found.agreement > 0.9
    found = additive(CandidateTable(noise[:, None], {}, False, pruned=pruned, groups=(9,)))
    assert found is not None
    assert abs(found.agreement) < 0.2
    flat = CandidateTable(np.zeros((len(pruned), 1)), {}, False, pruned=pruned, groups=(9,))
    made = additive(flat)
    assert made is not None
    assert made.as_dict() == {"agreement": None, "folds": 5, "other_examples": False}


@pytest.mark.parametrize(
    ("filters", "count", "fitted"), [(5, 2, False), (6, 3, False), (7, 3, True)]
)
def test_it_needs_filters_and_candidates(filters: int, count: int, fitted: bool) -> None:
    """10, 20 and 35 candidates: four a filter, and four a fold."""
    pruned = every(filters, count)
    outcome = np.arange(len(pruned), dtype=float)[:, None]
    assert additive(CandidateTable(outcome, {}, False)) is None
    made = additive(CandidateTable(outcome, {}, False, pruned=pruned, groups=(filters,)))
    assert (made is not None) == fitted


def test_what_is_learnt_of_the_examples_does_not_count_on_others() -> None:
    # Each filter has a worth on each half of the examples, and none that they share.
    generator = np.random.default_rng(3)
    pruned = every(9, 4)
    by_block = (pruned @ generator.normal(size=(9, 10)))[:, None, :]
    outcomes = by_block.mean(axis=2)
    plain = CandidateTable(outcomes, {}, False, pruned=pruned, groups=(9,))
    blocks = Blocks(3 * by_block, np.full(10, 3))
    other = CandidateTable(outcomes, {}, False, pruned=pruned, groups=(9,), blocks=blocks)
    same, found = additive(plain), additive(other)
    assert same is not None
    assert found is not None
    assert (same.other_examples, found.other_examples) == (False, True)
    assert same.agreement > 0.8
    even, odd = (by_block[:, 0, start::2].mean(axis=1) for start in (0, 1))
    assert found.agreement == pytest.approx(kendall(even, odd).value, abs=0.15)


def test_ratios_of_a_layer_are_fitted_together() -> None:
    """What a filter is worth is the same whatever the number of filters that are pruned."""
    generator = np.random.default_rng(4)
    worth = generator.normal(size=8)
    tables = []
    for count in (2, 5):
        pruned = every(8, count)[generator.permutation(20)]
        # Another ratio has another level, which says nothing of its candidates.
        outcome = (10 * count + pruned @ worth)[:, None]
        tables.append(CandidateTable(outcome, {}, False, pruned=pruned, groups=(8,)))
    assert additive(tables[0]) is None  # 20 candidates of 8 filters are too few
    found = additive(tables)
    assert found is not None
    assert found.agreement > 0.9
    opposite = [tables[0], replace(tables[1], outcomes=-tables[1].outcomes)]
    against = additive(opposite)
    assert against is not None
    assert against.agreement < found.agreement - 0.5
    whole = CandidateTable(np.arange(56.0)[:, None], {}, False, pruned=every(8, 3), groups=(8,))
    assert additive([whole]) == additive(whole)
