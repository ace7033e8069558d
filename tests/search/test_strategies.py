from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.errors import InputError
from trueoracle.search.schedule import Rung, Schedule
from trueoracle.search.strategies import STRATEGIES, begin, choose, find_strategy, survivors


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf]), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_survivors_are_the_best_in_the_order_given(values: list[float], count: int) -> None:
    names = list(range(100, 100 + len(values)))
    kept = survivors(names, values, count)
    assert kept == sorted(kept)
    assert len(kept) == min(count, len(values))
    dropped = [values[n - 100] for n in names if n not in kept]
    worst = max((values[n - 100] for n in kept), key=lambda v: v if math.isfinite(v) else math.inf)
    for value in dropped:
        assert not math.isfinite(value) or value >= worst


def test_of_equal_ones_the_first_goes_on() -> None:
    assert survivors([7, 3, 5], [1.0, 0.5, 0.5], 1) == [3]
    assert survivors([7, 3], [math.nan, math.inf], 1) == [7]


def test_rungs_are_nested_and_the_best_is_chosen() -> None:
    rng = np.random.default_rng(0)
    curves = rng.random((30, 6))
    asked: list[tuple[list[int], int]] = []

    def values(candidates: Sequence[int], epochs: int) -> list[float]:
        asked.append((list(candidates), epochs))
        return [float(curves[c, epochs - 1]) for c in candidates]

    schedule = Schedule((Rung(1, 20), Rung(3, 8), Rung(6, 3)))
    course = choose(range(30), schedule, values)
    assert [len(rung) for rung in course.candidates] == [20, 8, 3]
    assert set(course.candidates[2]) < set(course.candidates[1]) < set(course.candidates[0])
    assert [epochs for _, epochs in asked] == [1, 3, 6]
    assert course.candidates[0] == tuple(range(20))
    assert course.chosen == min(course.candidates[2], key=lambda c: curves[c, 5])
    best = sorted(range(20), key=lambda c: curves[c, 0])[:8]
    assert set(course.candidates[1]) == set(best)


def test_what_each_strategy_spends() -> None:
    spent = {name: one.plan(252, 15, 378, 2) for name, one in STRATEGIES.items()}
    assert spent["criterion"].rungs == (Rung(15, 1),)
    assert spent["full"].rungs == (Rung(15, 252),)
    assert spent["top"].rungs == spent["random"].rungs == (Rung(15, 25),)
    assert spent["random-halving"] == spent["halving"]
    assert spent["halving"].rungs[0].epochs == 1
    assert spent["guided"].rungs[0].epochs == 4  # the first of 1, 2, 4, 8, 15 from a fifth of 15 on
    assert all(one.cost <= 378 for name, one in spent.items() if name != "full")


def test_orders() -> None:
    scores = [2.0, math.nan, 0.5, 1.0]
    assert STRATEGIES["halving"].ordered(scores, "abcd") == [2, 3, 0, 1]
    assert STRATEGIES["full"].ordered(scores, "dbca") == [3, 1, 2, 0]
    ids = list(range(50))
    drawn = STRATEGIES["random"].ordered([0.0] * 50, ids, seed=3)
    assert sorted(drawn) == ids
    assert drawn == STRATEGIES["random"].ordered([1.0] * 50, ids, seed=3)
    assert drawn != STRATEGIES["random"].ordered([0.0] * 50, ids, seed=4)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12).flatmap(
        lambda scores: st.tuples(st.just(scores), st.permutations(range(len(scores))))
    )
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_of_listing_decides_no_tie(name: str, case: tuple[list[int], list[int]]) -> None:
    scores, rows = case
    names = [f"{7 * i % 13:02d}" for i in range(len(scores))]
    plain = STRATEGIES[name].ordered(scores, names, seed=1)
    moved = STRATEGIES[name].ordered(
        [scores[row] for row in rows], [names[row] for row in rows], seed=1
    )
    assert [rows[place] for place in moved] == plain


def ways(filters: int, count: int) -> np.ndarray:
    pruned = [[i in way for i in range(filters)] for way in combinations(range(filters), count)]
    return np.array(pruned)


def test_a_strategy_that_learns_finds_what_the_order_would_not() -> None:
    pruned = ways(8, 4)
    worth = np.array([0.0, 0.1, 0.2, 0.3, 3.0, 3.1, 3.2, 3.3])
    outcome = pruned @ worth
    best = int(np.argmin(outcome))
    order = list(np.argsort(-outcome))  # the worst first: a criterion that is misled
    asked: list[list[int]] = []

    def values(some: Sequence[int]) -> list[float]:
        asked.append(list(some))
        return [float(outcome[i]) for i in some]

    going, found = begin(order, 24, values, pruned)
    assert [len(batch) for batch in asked] == [6, 6, 6, 6]
    assert asked[0] == order[:6]
    assert [one for batch in asked for one in batch] == going
    assert len(set(going)) == 24
    assert found == [outcome[i] for i in going]
    assert best in going
    assert best not in begin(order, 24, values)[0]
    assert begin(order, 24, values)[0] == order[:24]
    # Too few for four batches: fewer of them; and what diverged is no good filter's doing.
    asked.clear()
    begin(order, 9, lambda some: [math.nan for _ in values(some)], pruned)
    assert [len(batch) for batch in asked] == [5, 4]


def test_equal_expectations_keep_the_order() -> None:
    pruned = ways(6, 2)
    order = list(range(14, -1, -1))
    going, _ = begin(order, 8, lambda some: [1.0] * len(some), pruned)
    assert going == order[:8]


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'halving'"):
        find_strategy("halfing")
