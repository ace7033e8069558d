from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trueoracle.analysis.correlation import discordant_ratio, kendall, pearson, spearman
from trueoracle.analysis.relation import relate
from trueoracle.errors import InputError

# Few distinct values, so that ties are common.
columns = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-6, 6), min_size=n, max_size=n),
        st.lists(st.integers(-6, 6), min_size=n, max_size=n),
    )
)
Columns = tuple[list[int], list[int]]


def array(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_a_case_counted_by_hand() -> None:
    # Scores 1 2 3 4; accuracies 8 9 7 5: of 6 pairs only (1, 2) has the higher score better.
    relation = relate(np.array([1.0, 2, 3, 4]), np.array([8.0, 9, 7, 5]), higher_is_better=True)
    assert relation.kendall.value == pytest.approx(-4 / 6)
    assert relation.agreement == pytest.approx(4 / 6)
    assert relation.discordant_ratio == pytest.approx(1 / 6)
    assert (relation.chosen, relation.rank, relation.anomalies) == (0, 2, 1)
    assert relation.anomaly_ratio == 0.25
    assert relation.regret == 1.0
    assert (relation.chosen_outcome, relation.best_outcome) == (8.0, 9.0)


def test_a_lower_outcome_can_be_the_better_one() -> None:
    relation = relate(np.array([1.0, 2, 3, 4]), np.array([8.0, 9, 7, 5]), higher_is_better=False)
    assert relation.agreement == pytest.approx(-4 / 6)
    assert (relation.rank, relation.regret, relation.best_outcome) == (3, 3.0, 5.0)
    assert relation.discordant_ratio == pytest.approx(5 / 6)


def test_an_anomaly_is_strictly_better() -> None:
    relation = relate(np.array([1.0, 2, 3]), np.array([0.9, 0.9, 0.8]), higher_is_better=True)
    assert relation.anomalies == 0
    assert relation.rank == 1
    assert relation.regret == 0


def naive_discordant(x: list[int], y: list[int], higher_is_better: bool) -> float:
    pairs = list(itertools.combinations(range(len(x)), 2))
    sign = -1 if higher_is_better else 1
    opposite = sum((x[i] - x[j]) * (y[i] - y[j]) * sign < 0 for i, j in pairs)
    return opposite / len(pairs)


@given(columns, st.booleans())
def test_discordant_pairs_are_counted_exactly(both: Columns, higher: bool) -> None:
    found = discordant_ratio(array(both[0]), array(both[1]), higher_is_better=higher)
    assert found == pytest.approx(naive_discordant(*both, higher), abs=1e-12)


def naive_tau_b(x: list[int], y: list[int]) -> float:
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs]
    untied_x = sum(x[i] != x[j] for i, j in pairs)
    untied_y = sum(y[i] != y[j] for i, j in pairs)
    return float(sum(signs) / math.sqrt(untied_x * untied_y))


@given(columns)
def test_tau_b_is_its_definition(both: Columns) -> None:
    assume(len(set(both[0])) > 1 and len(set(both[1])) > 1)
    assert kendall(array(both[0]), array(both[1])).value == pytest.approx(naive_tau_b(*both))


@given(columns, st.booleans())
def test_rank_statistics_survive_monotone_transforms(both: Columns, higher: bool) -> None:
    x, y = array(both[0]), array(both[1])
    plain = relate(x, y, higher_is_better=higher)
    bent = relate(np.exp(x / 3), y**3 + y, higher_is_better=higher)
    assert bent.kendall.value == pytest.approx(plain.kendall.value, nan_ok=True)
    assert bent.spearman.value == pytest.approx(plain.spearman.value, nan_ok=True)
    assert (bent.rank, bent.chosen) == (plain.rank, plain.chosen)
    assert bent.discordant_ratio == pytest.approx(plain.discordant_ratio)


@given(columns, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter_to_coefficients(
    both: Columns, higher: bool, generator: object
) -> None:
    x, y = array(both[0]), array(both[1])
    order = list(range(len(x)))
    generator.shuffle(order)  # type: ignore[attr-defined]
    plain = relate(x, y, higher_is_better=higher)
    mixed = relate(x[order], y[order], higher_is_better=higher)
    assert mixed.kendall.value == pytest.approx(plain.kendall.value, nan_ok=True)
    assert mixed.pearson.value == pytest.approx(plain.pearson.value, nan_ok=True)
    assert mixed.discordant_ratio == pytest.approx(plain.discordant_ratio)


@given(columns)
def test_turning_the_outcome_round_turns_the_agreement_not_the_choice(both: Columns) -> None:
    x, y = array(both[0]), array(both[1])
    up, down = relate(x, y, higher_is_better=True), relate(x, -y, higher_is_better=False)
    assert up.agreement == pytest.approx(down.agreement, nan_ok=True)
    assert (up.rank, up.regret) == (down.rank, down.regret)


@pytest.mark.parametrize("statistic", [kendall, spearman, pearson])
@pytest.mark.parametrize(("x", "y"), [([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2])])
def test_what_is_undefined_is_nan_without_a_warning(
    statistic: object, x: list[int], y: list[int]
) -> None:
    result = statistic(array(x), array(y))  # type: ignore[operator]
    assert math.isnan(result.value)
    assert math.isnan(result.p_value)


def test_rows_without_finite_values_are_dropped_and_counted() -> None:
    x = np.array([math.nan, 2.0, 1.0, 3.0, 0.0])
    y = np.array([0.9, 0.8, 0.7, math.inf, math.nan])
    relation = relate(x, y, higher_is_better=True)
    assert (relation.n, relation.dropped, relation.chosen) == (2, 3, 2)
    with pytest.raises(InputError, match="no candidate"):
        relate(np.array([math.nan]), np.array([1.0]), higher_is_better=True)
    with pytest.raises(InputError, match="one length"):
        relate(np.array([1.0]), np.array([1.0, 2.0]), higher_is_better=True)


def test_json_holds_no_nan() -> None:
    fields = relate(np.array([1.0]), np.array([1.0]), higher_is_better=True).as_dict()
    assert fields["kendall_tau"] is None
    assert fields["agreement"] is None
    assert fields["rank"] == 1


# The paper's own figures (arXiv 2412.00143, CC BY 4.0): printed tau, p-value, anomaly ratio.


def published_settings(published: Path) -> list[tuple[str, dict[str, str]]]:
    with (published / "summary.csv").open() as file:
        rows = {row["setting"]: row for row in csv.DictReader(file)}
    found = []
    for path in sorted(published.glob("*__*.csv")):
        family, _, name = path.stem.partition("__")
        for setting in (f"{family}/{name}", f"lenet5/{name}"):
            if setting in rows:
                found.append((path.name, rows[setting]))
                break
    return found


def test_every_published_point_cloud_is_matched_to_its_printed_values(published: Path) -> None:
    assert len(published_settings(published)) == len(list(published.glob("*__*.csv"))) == 13


def test_published_tau_and_anomaly_ratio_reproduce(published: Path) -> None:
    for name, printed in published_settings(published):
        with (published / name).open() as file:
            rows = list(csv.DictReader(file))
        x = np.array([float(row["x"]) for row in rows])
        y = np.array([float(row["y"]) for row in rows])
        short_against_full = name.startswith("direction")
        relation = relate(-x if short_against_full else x, y, higher_is_better=True)
        tau = relation.agreement if short_against_full else relation.kendall.value
        assert relation.n == int(printed["n"]), name
        # Printed to two digits, from points read back off a figure: the README says within 0.006.
        assert tau == pytest.approx(float(printed["kendall_tau"]), abs=0.0061), name
        if not short_against_full:
            # A point on the oracle's own line can fall to either side of it.
            drawn = sum(row["anomaly"] == "1" for row in rows)
            assert abs(relation.anomalies - drawn) <= 1, name
            ratio = float(printed["anomaly_ratio_pct"]) / 100
            assert relation.anomaly_ratio == pytest.approx(ratio, abs=1.01 / relation.n), name


def test_a_score_of_which_more_is_better_chooses_the_highest() -> None:
    short, full = np.array([0.9, 0.8, 0.7, 0.95]), np.array([0.97, 0.96, 0.98, 0.97])
    found = relate(short, full, higher_is_better=True, higher_score_is_better=True)
    turned = relate(-short, full, higher_is_better=True)
    assert (found.chosen, found.chosen_score) == (3, 0.95)
    assert found.kendall.value == -turned.kendall.value
    same = ("agreement", "anomalies", "discordant_ratio", "rank", "regret")
    assert all(getattr(found, name) == getattr(turned, name) for name in same)
    best = relate(full, full, higher_is_better=True, higher_score_is_better=True)
    assert best.kendall.value == best.agreement == pytest.approx(1)
    assert best.anomalies == 0
