from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.analysis.test_jackknife import every_way
from trueoracle.analysis.jackknife import jackknife
from trueoracle.analysis.permutation import label_permutation_p_values
from trueoracle.analysis.power import Assumptions, power
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError


def simulated(filters: int, count: int, known: float, number: int) -> tuple[float, float]:
    """The standard deviation of tau, and how often its interval leaves zero out.

    Of scores and outcomes that are sums over filters, with noise of as large a variance.
    """
    generator = np.random.default_rng(filters)
    pruned = every_way(filters, count)
    taus, found = [], []
    for _ in range(number):
        worth, other = generator.normal(size=(2, filters))
        score = pruned @ (known * worth + math.sqrt(1 - known**2) * other)
        sums = pruned @ worth
        outcome = sums + sums.std() * generator.normal(size=len(pruned))
        table = CandidateTable(outcome[:, None], {"c": score}, False, False, pruned, (filters,))
        made = jackknife(
            [table], lambda one: [stats.kendalltau(one.scores["c"], one.outcome).statistic]
        )
        taus.append(float(made.estimate[0]))
        around = made.tau_interval()
        found.append(around.low > 0 or around.high < 0)
    return float(np.std(taus)), float(np.mean(found))


HALF = Assumptions(sum_of_score=1.0, sum_of_outcome=1.0, repeats=0.5)
"""One retraining, of which half of the variance is noise."""


def test_chance_spreads_tau_as_far_as_the_formula_says() -> None:
    for filters, count in ((7, 3), (10, 2)):
        spread, _ = simulated(filters, count, 0.0, 150)
        assert power(filters, assumptions=HALF).null_sd == pytest.approx(spread, rel=0.2)


def test_what_is_detectable_is_found_as_often_as_said() -> None:
    plan = power(8, assumptions=HALF, chance=0.8)
    # The correlation of worths that gives this tau, halved by noise (Greiner's relation).
    known = math.sin(math.pi / 2 * plan.detectable) / math.sqrt(0.5)
    _, found = simulated(8, 4, min(known, 0.999), 80)
    assert found == pytest.approx(0.8, abs=0.2)


def test_what_helps_and_what_does_not() -> None:
    plain = power(10, seeds=3)
    # Ten filters of one dense network: about 0.14, whatever the number of candidates.
    assert plain.null_sd == pytest.approx(0.14, abs=0.01)
    assert power(20, seeds=3).detectable == pytest.approx(0.27, abs=0.03)
    many, few = (power(10, seeds=3, candidates=n) for n in (10_000, 50))
    assert many.detectable == pytest.approx(plain.detectable, abs=0.01)
    assert few.detectable > plain.detectable
    six, three, two = (power(10, seeds=3, networks=n) for n in (6, 3, 2))
    assert six.detectable < plain.detectable
    assert six.null_sd == pytest.approx(plain.null_sd / math.sqrt(6))
    # Other networks are spoken of from three on, with what that costs; two are given.
    assert six.detectable < three.detectable
    assert two.detectable < plain.detectable
    assert "3 dense networks, 10 filters of each, 3 retraining seeds; given" in three.sentence()
    assert "10 filters of each, 3 retraining seeds; given these 2 dense" in two.sentence()
    assert power(10, seeds=3, criteria=20).detectable > plain.detectable
    assert power(20, seeds=3, layers=2).detectable > power(20, seeds=3).detectable
    assert "given one dense network and the examples" in plain.sentence()
    assert f"{plain.detectable:.2f}" in plain.sentence()
    assert plain.as_dict()["filters"] == 10


@pytest.mark.parametrize(
    ("filters", "options", "message"),
    [
        (2, {}, "at least 3 filters, got 2"),
        (4, {"layers": 3}, "at least 3 filters"),
        (10, {"seeds": 0}, "at least 1 seeds, got 0"),
        (10, {"chance": 1.0}, "between 0 and 1"),
        (10, {"candidates": 2}, "at least 5 candidates"),
    ],
)
def test_a_plan_of_nothing_is_refused(filters: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        power(filters, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_is_detectable_over_networks_is_found_as_often_as_said() -> None:
    assumed = replace(HALF, between=0.0)
    plan = power(8, networks=5, assumptions=assumed)
    known = math.sin(math.pi / 2 * plan.detectable) / math.sqrt(0.5)
    generator, pruned, found = np.random.default_rng(1), every_way(8, 4), []
    for _ in range(40):
        tables = []
        for _ in range(5):
            worth, other = generator.normal(size=(2, 8))
            score = pruned @ (known * worth + math.sqrt(1 - known**2) * other)
            sums = pruned @ worth
            outcome = sums + sums.std() * generator.normal(size=len(pruned))
            tables.append(
                CandidateTable(outcome[:, None], {"c": score}, False, False, pruned, (8,))
            )
        around = jackknife(
            tables, lambda one: [stats.kendalltau(one.scores["c"], one.outcome).statistic]
        ).tau_interval()
        p_value = label_permutation_p_values(tables, permutations=200)["c"]
        found.append(p_value < 0.05 and (around.low > 0 or around.high < 0))
    assert np.mean(found) == pytest.approx(0.8, abs=0.2)


def test_noise_makes_nothing_easier_to_find() -> None:
    seeds = [power(10, seeds=one).without_noise for one in (1, 3, 10)]
    assert seeds == sorted(seeds, reverse=True)
    examples = [power(10, seeds=3, examples=one).without_noise for one in (1000, 10_000, 100_000)]
    assert examples == sorted(examples, reverse=True)
    plain = power(20, seeds=3)
    free = power(20, seeds=3, assumptions=Assumptions(repeats=1))
    assert plain.without_noise > plain.detectable
    assert free.without_noise == pytest.approx(free.detectable)


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeats": 0},
        {"repeats": -3},
        {"repeats": 5},
        {"repeats": math.nan},
        {"between": -1},
        {"between": math.nan},
        {"between": math.inf},
    ],
)
def test_assumptions_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(wrong.values()))}"):
        power(10, seeds=3, assumptions=Assumptions(**wrong))  # type: ignore[arg-type]
