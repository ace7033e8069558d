"""The order in which candidates are listed decides nothing: ties have no first one."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trueoracle.analysis
from trueoracle.analysis.additive import additive, predict_additive
from trueoracle.analysis.assessment import assess
from trueoracle.analysis.comparison import (
    combine,
    compare,
    differences,
    partial_kendall,
    rank_agreement,
)
from trueoracle.analysis.correlation import (
    discordant_ratio,
    kendall,
    kendall_of_finite,
    kendalls,
    kendalls_of_each,
    pearson,
    spearman,
    top_weighted,
)
from trueoracle.analysis.curves import spread
from trueoracle.analysis.filters import filter_worth
from trueoracle.analysis.interactions import interaction_variance, standardised_ranks
from trueoracle.analysis.jackknife import in_words, jackknife, leave_out
from trueoracle.analysis.outcomes import (
    RULES,
    final_outcomes,
    find_outcome,
    seed_outcomes,
    shared_outcomes,
)
from trueoracle.analysis.own import read_tables
from trueoracle.analysis.permutation import (
    how_permuted,
    label_permutation_p_values,
    permuted_rows,
    why_not_permuted,
)
from trueoracle.analysis.ranking import rank
from trueoracle.analysis.relation import relate
from trueoracle.analysis.reliability import noise_ceiling, without_noise
from trueoracle.analysis.selection import held_out_regrets, select
from trueoracle.analysis.table import CandidateTable, pruned_filters
from trueoracle.analysis.ties import chances_of_lowest, count_above, lowest
from trueoracle.tasks.metric import CLASSIFICATION, columns_of

WAYS = list(itertools.combinations(range(7), 2))
PRUNED = np.array([[f in way for f in range(7)] for way in WAYS])

Columns = list[tuple[int, int, int, int]]


def columns(values: st.SearchStrategy[int]) -> st.SearchStrategy[Columns]:
    """Two scores and the outcomes of two seeds, of few distinct values, for every candidate."""
    rows = st.tuples(values, values, values, values)
    return st.lists(rows, min_size=len(WAYS), max_size=len(WAYS))


CASES = given(
    columns(st.integers(0, 3)), st.permutations(range(len(WAYS))), st.booleans(), st.booleans()
)


def table(rows: Columns, *, higher: bool, sampled: bool) -> CandidateTable:
    a, b, *seeds = np.array(rows, dtype=np.float64).T
    outcomes = np.column_stack(seeds) / 8  # means of which are exact
    outcomes[0, 0] = math.nan  # one network diverged
    return CandidateTable(outcomes, {"a": a, "b": b}, higher, sampled, PRUNED, (7,))


def shuffled(one: CandidateTable, order: Sequence[int]) -> CandidateTable:
    rows = np.array(order)
    assert one.pruned is not None
    return replace(
        one,
        outcomes=one.outcomes[rows],
        scores={name: column[rows] for name, column in one.scores.items()},
        pruned=one.pruned[rows],
    )


def same(found: Any, expected: Any) -> None:
    """Equal to rounding, whatever the nesting."""
    if isinstance(expected, Mapping):
        assert list(found) == list(expected)
        for name in expected:
            same(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float | np.ndarray | pd.Series | pd.DataFrame):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    else:
        assert found == expected


def assessed(*tables: CandidateTable) -> list[dict[str, Any]]:
    """Everything but the number of the chosen row; its sentence among it."""
    return [
        {k: v for k, v in made.as_dict().items() if k != "chosen"}
        | {"said": made.sentence(), "known": made.relation.chosen is None}
        for made in assess(tables)
    ]


def taus(one: CandidateTable) -> np.ndarray:
    return kendalls(np.stack(list(one.scores.values())), one.outcome)


OF_TABLES: dict[str, Callable[[CandidateTable], Any]] = {
    "additive": lambda one: (made := additive(one)) and made.as_dict(),
    "held_out_regrets": lambda one: held_out_regrets(one, np.stack(list(one.scores.values()))),
    "assess": lambda one: [assessed(one), assessed(one, one)],
    "jackknife": lambda one: jackknife([one], taus).standard_error(),
    "leave_out": lambda one: leave_out(one, taus).seeds,
    "filter_worth": lambda one: (made := filter_worth(one)) and vars(made),
    "in_words": lambda one: in_words([one]),
    "interaction_variance": lambda one: interaction_variance(
        one, standardised_ranks(np.stack(list(one.scores.values()))), one.outcome
    ),
    "noise_ceiling": lambda one: noise_ceiling(one).as_dict(),
    "without_noise": lambda one: (
        without_noise([one], taus, [standardised_ranks(np.stack(list(one.scores.values())))])[
            1
        ].high
    ),
    "how_permuted": how_permuted,
    "combine": lambda one: (made := combine(one)) and made.as_dict(),
    "compare": compare,
    "differences": lambda one: [made.as_dict() for made in differences([one], "a")],
    "label_permutation_p_values": label_permutation_p_values,
    "permuted_rows": lambda one: (rows := permuted_rows(one, 9, 0)) and len(list(rows)),
    "why_not_permuted": why_not_permuted,
    "select": lambda one: [select([one], "a", k=k).as_dict() for k in (None, 1, 5, len(one))],
}

OF_COLUMNS: dict[str, Callable[..., Any]] = {
    "discordant_ratio": lambda a, b, y: discordant_ratio(a, y, higher_is_better=True),
    "kendall": lambda a, b, y: kendall(a, y).value,
    "kendall_of_finite": lambda a, b, y: kendall_of_finite(a, y),
    "pearson": lambda a, b, y: pearson(a, y).value,
    "spearman": lambda a, b, y: spearman(a, y).value,
    "spread": lambda a, b, y: spread(np.stack([a, y], axis=1)),
    "top_weighted": lambda a, b, y: top_weighted(a, y, higher_is_better=False),
    "partial_kendall": partial_kendall,
    "rank_agreement": lambda a, b, y: rank_agreement([{"a": a, "b": b, "y": y}]).as_dict(),
    "relate": lambda a, b, y: [
        {k: v for k, v in relate(a, y, **cast(Any, which)).as_dict().items() if k != "chosen"}
        for which in (
            {"higher_is_better": True},
            {"higher_is_better": False, "higher_score_is_better": True},
        )
    ],
    "kendalls_of_each": lambda a, b, y: kendalls_of_each(np.stack([a, b]), np.stack([y, -y])),
    "kendalls": lambda a, b, y: kendalls(np.stack([a, b]), y),
    "standardised_ranks": lambda a, b, y: np.sort(standardised_ranks(np.stack([a, b])), axis=1),
    "lowest": lambda a, b, y: int(lowest(a).sum()),
    "chances_of_lowest": lambda a, b, y: np.sort(chances_of_lowest(a, 4)),
    "count_above": lambda a, b, y: np.sort(count_above(a, y)),
}

TESTED_BELOW = {
    "rank", "predict_additive", "pruned_filters", "seed_outcomes", "final_outcomes",
    "shared_outcomes", "read_tables", "means", "learning_curves", "shown_cells", "plain_cells",
}  # fmt: skip


def takes_rows(function: Callable[..., Any]) -> bool:
    """Whether a function takes what has a row a candidate."""
    kinds = ("CandidateTable", "np.ndarray", "pd.DataFrame", "Mapping[str, Sequence[int]]")
    parameters = inspect.signature(function).parameters.values()
    return any(kind in str(one.annotation) for one in parameters for kind in kinds)


def test_every_public_function_that_takes_rows_is_tried() -> None:
    found = {"read_tables"}
    for module in pkgutil.iter_modules(trueoracle.analysis.__path__):
        read = importlib.import_module(f"trueoracle.analysis.{module.name}")
        public = {name: getattr(read, name) for name in read.__all__}
        found |= {name for name, f in public.items() if inspect.isfunction(f) and takes_rows(f)}
    assert found == {*OF_TABLES, *OF_COLUMNS, *TESTED_BELOW}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TABLES)
@settings(max_examples=3, deadline=None)  # each a thousand relabellings
@CASES
def test_a_table_in_another_order_is_the_same_table(
    name: str, rows: Columns, order: list[int], higher: bool, sampled: bool
) -> None:
    one = table(rows, higher=higher, sampled=sampled)
    same(OF_TABLES[name](shuffled(one, order)), OF_TABLES[name](one))


@pytest.mark.parametrize("name", OF_COLUMNS)
@settings(max_examples=10, deadline=None)
@CASES
def test_columns_in_another_order_are_the_same_columns(
    name: str, rows: Columns, order: list[int], higher: bool, sampled: bool
) -> None:
    given_ = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)][:3]
    moved = [column[order] for column in given_]
    same(OF_COLUMNS[name](*moved), OF_COLUMNS[name](*given_))


@settings(max_examples=25, deadline=None)
@CASES
def test_a_ranking_in_another_order_is_the_same_ranking(
    rows: Columns, order: list[int], higher: bool, sampled: bool
) -> None:
    scores = np.array([row[0] + 4 * row[1] for row in rows], dtype=np.float64)
    drawn = [4, 7, 11]
    plain, moved = (
        rank(scores, drawn=drawn),
        rank(scores[order], drawn=[order.index(row) for row in drawn]),
    )
    for name in ("oracle", "runner_up"):
        one, other = getattr(moved, name), getattr(plain, name)
        assert (None if one is None else order[one]) == other
    assert moved.sentence() == plain.sentence()
    told, other = (
        {k: v for k, v in made.as_dict().items() if k not in ("oracle", "runner_up", "sampled")}
        for made in (moved, plain)
    )
    same(told, other)
    assert moved.sampled is not None
    assert plain.sampled is not None
    index = moved.sampled.own_index
    assert plain.sampled.own_index == (None if index is None else order[index])
    assert replace(moved.sampled, own_index=plain.sampled.own_index) == plain.sampled


@settings(max_examples=10, deadline=None)
@CASES
def test_the_chosen_row_is_the_same_candidate(
    rows: Columns, order: list[int], higher: bool, sampled: bool
) -> None:
    x, _, y, _ = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    plain = relate(x, y, higher_is_better=higher)
    moved = relate(x[order], y[order], higher_is_better=higher)
    assert plain.tied == moved.tied == list(x).count(x.min())
    assert (plain.chosen is None) == (plain.tied > 1)
    assert plain.chosen == (None if moved.chosen is None else order[moved.chosen])


@settings(max_examples=6, deadline=None)
@CASES
def test_other_functions_of_rows_follow_them(
    rows: Columns, order: list[int], higher: bool, sampled: bool
) -> None:
    moved = [order.index(row) for row in range(len(WAYS))]
    values = [float(row[0]) for row in rows]
    expected = predict_additive(PRUNED, range(len(WAYS)), values)
    found = predict_additive(PRUNED[order], moved, values)
    np.testing.assert_allclose(found[moved], expected, atol=1e-9)
    pruned, groups = pruned_filters([{"c": WAYS[row]} for row in order])
    assert groups == (7,)
    assert (pruned == PRUNED[order]).all()


@settings(max_examples=6, deadline=None)
@CASES
def test_epochs_in_another_order_come_to_the_same_outcomes(
    rows: Columns, order: list[int], higher: bool, sampled: bool
) -> None:
    epochs = pd.DataFrame(
        [
            {"candidate": str(i // 2), "seed": i % 2, "epoch": e}
            | dict.fromkeys(columns_of(CLASSIFICATION), row[e])
            for i, row in enumerate(rows[:20])
            for e in range(3)
        ]
    )
    places = np.argsort(np.random.default_rng(order[0]).random(len(epochs)))
    for rule in RULES:
        outcome = find_outcome(CLASSIFICATION, "test_accuracy", rule)
        for read in (seed_outcomes, final_outcomes, shared_outcomes):
            same(read(epochs.iloc[places], outcome), read(epochs, outcome))


@pytest.mark.slow
def test_a_file_in_another_order_is_the_same_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "x": generator.integers(0, 3, 40),
            "y": generator.integers(0, 3, 40),
            "net": np.repeat([2, 10, 1, 7], 10),
        }
    )
    said = []
    for place, rows in enumerate((np.arange(40), generator.permutation(40))):
        path = tmp_path / f"{place}.csv"
        frame.iloc[rows].to_csv(path, index=False)
        found = read_tables(path, ["x"], ["y"], higher_is_better=True, network="net")
        each = {name: assessed(one) for name, one in found.items()}
        said.append([each, assessed(*found.values())])
    same(said[1], said[0])
    assert list(said[0][0]) == ["1", "2", "7", "10"]


def test_equal_means_are_equal_however_seeds_are_added() -> None:
    three = [0.939, 0.921, 0.95]
    outcomes = np.array([*itertools.permutations(three), [0.93, 0.93, 0.95]])
    one = CandidateTable(outcomes, {}, True)
    assert len({*outcomes.mean(axis=1)}) > 1  # as they are added
    assert len({*one.outcome}) == 1
    assert len({*CandidateTable(-1e-9 * outcomes, {}, False).outcome}) == 1
    closer = CandidateTable(outcomes + 1e-9 * np.arange(7)[:, None], {}, True)
    assert len({*closer.outcome}) == 7
    # One network that exploded leaves all others their order.
    exploded = np.vstack([closer.outcomes, [1e14, 0.9, 0.9]])
    assert len({*CandidateTable(exploded, {}, True).outcome}) == 8


def test_ties_by_hand() -> None:
    # Three share the lowest score and end first, second and last of five.
    x, y = np.array([1.0, 1, 1, 2, 3]), np.array([0.9, 0.8, 0.1, 0.7, 0.6])
    found = relate(x, y, higher_is_better=True)
    assert (found.tied, found.chosen) == (3, None)
    assert found.anomalies == pytest.approx((0 + 1 + 4) / 3)
    assert found.anomaly_ratio == pytest.approx(5 / 3 / 5)
    assert found.rank == pytest.approx((1 + 2 + 5) / 3)
    assert found.regret == pytest.approx((0 + 0.1 + 0.8) / 3)
    assert found.chosen_outcome == pytest.approx(0.6)
    one = CandidateTable(y[:, None], {"c": x}, higher_is_better=True)
    chosen = select([one], "c", k=2)
    assert chosen.percentile == pytest.approx(100 * (4 + 3 + 0) / 4 / 3)
    assert chosen.beats_random == pytest.approx((4 + 3 + 0) / 4 / 3)
    assert chosen.anomaly_ratio_k == pytest.approx(5 / 3 / 5)
    assert chosen.precision_at_k == pytest.approx(2 / 3)  # of each pair, 2, 1 and 1 of the best two
    assert chosen.regret_at_k == pytest.approx((0 + 0 + 0.1) / 3)
    assert (
        assess(one)[0]
        .sentence("the score", "the accuracy")
        .endswith(
            "on average 1.7 of 5 candidates (33.3%) end better than the one it would choose, which "
            "is one of 3 that share the lowest score."
        )
    )
    assert json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=2, max_size=5),
    st.integers(1, 6),
)
def test_ties_are_the_mean_over_all_ways_to_break_them(rows: list[tuple[int, int]], k: int) -> None:
    k = min(k, len(rows))
    x, y = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found = select([CandidateTable(y[:, None], {"c": x}, higher_is_better=False)], "c", k=k)
    relation = relate(x, y, higher_is_better=False)
    broken = []
    for order in itertools.permutations(range(len(rows))):
        # Scores without ties, in an order that the permutation decides among equals.
        strict = np.empty(len(rows))
        strict[sorted(range(len(rows)), key=lambda i: (x[i], order[i]))] = np.arange(len(rows))
        one = CandidateTable(y[:, None], {"c": strict}, higher_is_better=False)
        by_hand = relate(strict, y, higher_is_better=False)
        broken.append([*_numbers(select([one], "c", k=k)), by_hand.rank, by_hand.regret])
    means = np.mean(broken, axis=0)
    np.testing.assert_allclose(
        [*_numbers(found), relation.rank, relation.regret], means, atol=1e-12
    )


def _numbers(found: Any) -> list[float]:
    names = ("percentile", "beats_random", "anomaly_ratio_k", "precision_at_k", "regret_at_k")
    return [getattr(found, name) for name in names]
