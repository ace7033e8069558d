"""What docs/bench.md says of the shipped table, computed from it again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from trueoracle.analysis.additive import predict_additive
from trueoracle.analysis.comparison import adjusted_p_values
from trueoracle.analysis.correlation import kendall
from trueoracle.bench.leaderboard import additive_agreement, leaderboard
from trueoracle.bench.table import Bench, BenchStudy, read_bench

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"
FILTERS, RELABELLINGS = 10, 100
Draws = dict[tuple[int, str], np.ndarray]


@pytest.fixture(scope="module")
def shipped() -> Bench:
    return read_bench()


@pytest.fixture(scope="module")
def said() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").replace("−", "-").split())


def mean_outcome(shipped: Bench, metric: str) -> np.ndarray:
    outcome: np.ndarray = shipped.outcomes(metric).mean(axis=1)
    return outcome


def weighted(studies: Sequence[BenchStudy], values: Sequence[float]) -> float:
    known = np.isfinite(values)
    sizes = np.array([len(one.rows) for one in studies])
    return float(np.average(np.array(values)[known], weights=sizes[known]))


@pytest.mark.slow
def test_images_limit_more_than_seeds(shipped: Bench, said: str) -> None:
    validation, test = (mean_outcome(shipped, f"{part}_loss") for part in ("validation", "test"))

    def agreement(studies: Sequence[BenchStudy]) -> float:
        taus = [kendall(validation[one.rows], test[one.rows]).value for one in studies]
        return weighted(studies, taus)

    each = [agreement([s for s in shipped.studies if s.network == n]) for n in (0, 1)]
    assert f"τ {agreement(shipped.studies):.2f} with each other" in said
    assert f"({each[0]:.2f} for dense network 0, {each[1]:.2f} for dense network 1)" in said
    ceilings = [leaderboard(shipped, m)[0].ceiling for m in ("test_loss", "test_accuracy")]
    assert f"{ceilings[0]:.2f} for test loss, {ceilings[1]:.2f} for test accuracy" in said


def test_a_sum_over_filters_is_of_the_images_that_it_was_fitted_on(
    shipped: Bench, said: str
) -> None:
    fitted_on, judged_by = (
        mean_outcome(shipped, f"{part}_loss") for part in ("validation", "test")
    )
    taus = []
    for study in shipped.studies:
        table, rows = shipped.table(study, "test_loss"), study.rows
        assert table.pruned is not None
        if len(rows) < 4 * FILTERS:
            taus.append(float("nan"))
            continue
        fold = np.random.default_rng(0).permutation(len(rows)) % 5
        held = []
        for one in range(5):
            seen = np.flatnonzero(fold != one)
            predicted = predict_additive(table.pruned, seen, fitted_on[rows][seen])
            held.append(kendall(predicted[fold == one], judged_by[rows][fold == one]).value)
        taus.append(float(np.mean(held)))
    assert f"judged by test outcomes, it has {weighted(shipped.studies, taus):.2f}." in said
    assert f"τ {additive_agreement(shipped, 'test_loss'):.2f} with the loss on the same" in said


def mean_taus(
    shipped: Bench, outcome: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, str], np.ndarray]]:
    """Mean tau of the criteria ``[C]``, with relabelled filters ``[R, C]``, and by layer.

    One relabelling for each layer of each dense network, for all of its ratios at once.
    """
    generator = np.random.default_rng(0)
    layers = sorted({(one.network, one.layer) for one in shipped.studies})
    labels: list[Draws] = [{key: np.arange(FILTERS) for key in layers}]
    labels += [{k: generator.permutation(FILTERS) for k in layers} for _ in range(RELABELLINGS)]
    sums = {key: np.zeros((len(labels), len(names))) for key in layers}
    sizes = dict.fromkeys(layers, 0)
    for study in shipped.studies:
        key, rows = (study.network, study.layer), study.rows
        masks = shipped.keys["pruned"].to_numpy()[rows]
        bits = masks[:, None] >> np.arange(FILTERS) & 1
        place = np.zeros(1 << FILTERS, dtype=int)
        place[masks] = np.arange(len(masks))
        one, other = np.tril_indices(len(rows), -1)  # each pair of candidates once
        order = np.sign(outcome[rows][:, None] - outcome[rows]).astype(np.float32)
        columns = np.stack([shipped.scores[name][rows] for name in names])
        pairs = np.sign(columns[:, one] - columns[:, other]).astype(np.float32)
        known = (order[one, other] != 0).sum()
        untied = np.sqrt(np.maximum((pairs != 0).sum(axis=1), 1) * known)
        for number, drawn in enumerate(labels):
            moved = place[bits[:, drawn[key]] @ (1 << np.arange(FILTERS))]
            taus = pairs @ order[moved[one], moved[other]] / untied
            sums[key][number] += len(rows) * taus
        sizes[key] += len(rows)
    whole = np.sum(list(sums.values()), axis=0) / sum(sizes.values())
    by_layer = {key: (sums[key][1:] / sizes[key]).std(axis=0) for key in layers}
    return whole[0], whole[1:], by_layer


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["test_loss", "test_accuracy"])
def test_no_criterion_differs_from_chance(shipped: Bench, said: str, metric: str) -> None:
    names = [name for name, column in shipped.scores.items() if np.isfinite(column).all()]
    assert f"none of the {len(names)} criteria" in said
    outcome = mean_outcome(shipped, metric) * (-1 if metric == "test_accuracy" else 1)
    found, relabelled, by_layer = mean_taus(shipped, outcome, names)
    places = {place.criterion: place.agreement for place in leaderboard(shipped, metric)}
    np.testing.assert_allclose(found, [places[name] for name in names], atol=1e-6)
    as_far = (np.abs(relabelled) >= np.abs(found) - 1e-9).sum(axis=0)
    p_values = (1 + as_far) / (1 + RELABELLINGS)
    least = min(adjusted_p_values(list(p_values)))
    stated = re.search(r"adjusted p is ([\d.]+) or more\) or in test accuracy \(([\d.]+) or", said)
    assert stated is not None
    assert least >= float(stated[1 if metric == "test_loss" else 2]) > 0.05
    if metric == "test_loss":
        l1 = names.index("l1")  # a sum of importances, as most are
        whole = re.findall(r"spreads by ([\d.]+) \(its", said)[0]
        # A hundred relabellings tell a standard deviation to 7 %.
        assert relabelled[:, l1].std() == pytest.approx(float(whole), abs=0.015)
        spread = [float(one[l1]) for one in by_layer.values()]
        low, high = re.findall(r"by ([\d.]+) to ([\d.]+) within one layer", said)[0]
        assert min(spread) == pytest.approx(float(low), abs=0.03)
        assert max(spread) == pytest.approx(float(high), abs=0.03)


@pytest.mark.slow
def test_the_places_that_the_page_names(shipped: Bench, said: str) -> None:
    by_network = []
    for network in (0, 1):
        some = [s for s in shipped.studies if (s.network, s.layer) == (network, "conv1")]
        places = {place.criterion: place for place in leaderboard(shipped, "test_loss", some)}
        by_network.append(places["oracle"].agreement)
    one, other = by_network
    assert f"`oracle` has τ {one:.2f} for network 0 and {other:.2f} for network 1" in said
    places = {place.criterion: place for place in leaderboard(shipped, "test_loss")}
    random = places["random"]
    assert f"it is [{random.low:.2f}, {random.high:.2f}]" in said
    assert random.low < 0 < random.high
    # No place is told from another: nothing but luck orders the criteria.
    assert all((one.rank_low, one.rank_high) == (1, one.of) for one in places.values() if one.rank)
