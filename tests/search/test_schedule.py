from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.errors import InputError
from trueoracle.search.schedule import Rung, halving, parse_budget, to_the_end

problems = st.tuples(
    st.integers(1, 500),  # candidates
    st.integers(1, 60),  # epochs
    st.floats(0, 1),  # of the way from one network to all
    st.sampled_from([1.25, 1.5, 2, 3, 4]),
    st.integers(1, 10),  # least epochs of the first rung
)


@given(problems)
def test_the_budget_is_kept_and_somebody_finishes(
    problem: tuple[int, int, float, float, int],
) -> None:
    candidates, epochs, share, eta, first = problem
    budget = epochs + int(share * (candidates - 1) * epochs)
    schedule = halving(candidates, epochs, budget, eta, first)
    assert schedule.cost <= budget
    assert schedule.rungs[-1].epochs == epochs
    assert schedule.rungs[-1].candidates >= 1
    assert schedule.rungs[0].candidates <= candidates
    for one, later in pairwise(schedule.rungs):
        assert one.epochs < later.epochs
        assert one.candidates > later.candidates
    if len(schedule.rungs) > 1:
        assert schedule.rungs[0].epochs >= min(first, epochs)


@given(problems)
def test_more_budget_never_trains_fewer(problem: tuple[int, int, float, float, int]) -> None:
    candidates, epochs, share, eta, first = problem
    budget = epochs + int(share * (candidates - 1) * epochs)
    less = halving(candidates, epochs, budget, eta, first)
    more = halving(candidates, epochs, budget + epochs, eta, first)
    assert more.rungs[0].candidates >= less.rungs[0].candidates
    assert more.rungs[-1].candidates >= less.rungs[-1].candidates
    assert more.cost >= less.cost


def test_the_rungs_by_hand() -> None:
    # 8 a rung: 8 after 1 epoch, 4 after 2, 2 after 4, 1 after 8: 8 + 4 + 4 + 4.
    schedule = halving(100, 8, 20, eta=2)
    assert schedule.rungs == (Rung(1, 8), Rung(2, 4), Rung(4, 2), Rung(8, 1))
    assert schedule.starts == (0, 1, 2, 4)
    assert schedule.cost == 20
    assert halving(100, 8, 19, eta=2).cost < 20


def test_the_whole_budget_retrains_all() -> None:
    assert halving(20, 15, 300).rungs == (Rung(15, 20),)


def test_the_least_budget_retrains_one() -> None:
    assert halving(20, 15, 15).rungs == (Rung(15, 1),)
    assert to_the_end(20, 15, 44).rungs == (Rung(15, 2),)


@pytest.mark.parametrize(
    ("budget", "rungs"),
    [
        (59, [(9, 3), (13, 2), (30, 1)]),  # 27 + 8 + 17; with rungs below, one would cost more
        (49, [(13, 2), (30, 1)]),
        (33, [(30, 1)]),
    ],
)
def test_a_small_budget_holds_the_upper_rungs(budget: int, rungs: list[tuple[int, int]]) -> None:
    assert halving(45, 30, budget).rungs == tuple(Rung(*one) for one in rungs)


def test_less_than_one_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"14 epochs finishes no network: one .* takes 15"):
        halving(20, 15, 14)
    with pytest.raises(InputError, match="no candidate"):
        halving(0, 15, 100)
    with pytest.raises(InputError, match="eta is a number above 1, got 1"):
        halving(20, 15, 100, eta=1)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("10%", 378), ("10 %", 378), ("100%", 3780), ("400", 400), (400, 400), ("0.4%", 15),
     ("9999", 3780), (None, 378)],
)  # fmt: skip
def test_budgets_are_epochs_or_shares(text: str | int | None, budget: int) -> None:
    assert parse_budget(text, 252, 15) == budget


def test_the_default_finishes_one_network_of_few() -> None:
    assert parse_budget(None, 5, 15) == 15


@pytest.mark.parametrize("text", ["ten", "-5", "0", "1.5", "120%", "nan%", "", "inf"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="such as 378, or a share of retraining all, such as 10%"):
        parse_budget(text, 252, 15)


def test_a_small_share_says_what_one_network_takes() -> None:
    with pytest.raises(InputError, match="budget of 3 epochs finishes no network"):
        parse_budget("0.1%", 252, 15)
