from __future__ import annotations

import numpy as np
import pytest

from trueoracle.analysis.filters import MOST_PAIRED, filter_worth
from trueoracle.analysis.table import CandidateTable, pruned_filters

WAYS = [{"a": [i, j]} for i in range(5) for j in range(i)]
WORTH = np.array([0.3, -0.1, 0.0, 0.7, -0.9])


def table(outcome: np.ndarray, ways: list[dict[str, list[int]]] = WAYS) -> CandidateTable:
    pruned, groups = pruned_filters(ways)
    return CandidateTable(
        outcomes=outcome[:, None], scores={}, higher_is_better=True, pruned=pruned, groups=groups
    )


def test_means_are_over_the_candidates_that_prune_a_filter_and_that_keep_it() -> None:
    outcome = np.array([WORTH[way["a"]].sum() for way in WAYS])
    found = filter_worth(table(outcome))
    assert found is not None
    assert found.pairs is not None
    for one in range(5):
        has = np.array([one in way["a"] for way in WAYS])
        assert found.pruned[one] == pytest.approx(outcome[has].mean())
        assert found.kept[one] == pytest.approx(outcome[~has].mean())
        for other in set(range(5)) - {one}:
            assert found.pairs[one, other] == pytest.approx(WORTH[one] + WORTH[other])
    assert np.isnan(np.diag(found.pairs)).all()


def test_a_sum_over_filters_is_found_again_up_to_the_penalty() -> None:
    outcome = np.array([WORTH[way["a"]].sum() for way in WAYS])
    found = filter_worth(table(outcome))
    assert found is not None
    assert found.additive.sum() == pytest.approx(0, abs=1e-9)
    # Ridge shrinks all by one factor, since each pair of filters is pruned as often.
    centred = WORTH - WORTH.mean()
    factor = found.additive[0] / centred[0]
    assert found.additive == pytest.approx(factor * centred)
    assert 0.7 < factor < 1


def test_what_is_missing_is_not_counted() -> None:
    outcome = np.array([WORTH[way["a"]].sum() for way in WAYS])
    outcome[0] = np.nan
    found = filter_worth(table(outcome))
    assert found is not None
    assert found.pairs is not None
    assert np.isnan(found.pairs[0, 1])  # the only candidate that prunes both
    has = np.array([0 in way["a"] for way in WAYS])[1:]
    assert found.pruned[0] == pytest.approx(outcome[1:][has].mean())
    weights = CandidateTable(outcome[:, None], {}, higher_is_better=True)
    assert filter_worth(weights) is None
    assert filter_worth(table(np.full(len(WAYS), np.nan))) is None


def test_pairs_of_very_many_filters_are_left_out() -> None:
    ways = [{"a": [i]} for i in range(MOST_PAIRED + 1)]
    found = filter_worth(table(np.arange(float(len(ways))), ways))
    assert found is not None
    assert found.pairs is None
    assert found.pruned.tolist() == list(range(MOST_PAIRED + 1))
