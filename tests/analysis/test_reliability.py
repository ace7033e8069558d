from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.interactions import standardised_ranks
from trueoracle.analysis.reliability import disattenuated, noise_ceiling, without_noise
from trueoracle.analysis.table import Blocks, CandidateTable


def of(
    outcomes: np.ndarray, blocks: Blocks | None = None, *, sampled: bool = False
) -> CandidateTable:
    return CandidateTable(outcomes, {}, False, sampled, blocks=blocks)


@pytest.mark.parametrize(("seeds", "noise"), [(2, 0.5), (2, 2.0), (3, 1.0), (5, 3.0), (6, 1.0)])
def test_it_is_the_tau_of_the_expected_outcome(seeds: int, noise: float) -> None:
    generator = np.random.default_rng(seeds)
    true = generator.normal(size=800)
    shift = 10 * generator.normal(size=seeds)  # what a seed does to all is no noise
    outcomes = true[:, None] + shift + noise * generator.normal(size=(800, seeds))
    found = noise_ceiling(of(outcomes))
    best = kendall(true, outcomes.mean(axis=1)).value
    assert found.ceiling == pytest.approx(best, abs=0.04)
    assert found.reliability == pytest.approx(1 / (1 + noise**2 / seeds), abs=0.04)
    assert (found.blocks, found.over) == (0, "retraining")


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noise", ["collapse", "heavy tails", "ties"])
def test_noise_that_is_not_normal_does_not_lift_it(seeds: int, noise: str) -> None:
    generator = np.random.default_rng(seeds)
    true = generator.normal(size=800)
    drawn = 0.5 * generator.normal(size=(800, seeds))
    if noise == "heavy tails":
        drawn = 0.5 * generator.standard_t(2, size=(800, seeds))
    if noise == "collapse":
        drawn += np.where(generator.random((800, seeds)) < 0.05, 20, 0)
    outcomes = true[:, None] + drawn
    if noise == "ties":
        outcomes = np.round(outcomes / 0.5) * 0.5
    best = kendall(true, outcomes.mean(axis=1)).value
    # By Spearman and Brown's formula, which takes noise for normal, 0.03 to 0.2 too high.
    assert noise_ceiling(of(outcomes)).ceiling == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_examples_count_where_there_are_blocks_of_them(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    true = generator.normal(size=600)
    by_seed = true[:, None] + 0.5 * generator.normal(size=(600, seeds))
    sums = 7 * (by_seed[:, :, None] + 4 * generator.normal(size=(600, 1, 20)))
    counts = np.full(20, 7)
    outcomes = sums.sum(axis=2) / counts.sum()
    found = noise_ceiling(of(outcomes, Blocks(sums, counts)))
    # One retraining is what it is: then the best criterion knows it.
    best = kendall(true if seeds > 1 else by_seed[:, 0], outcomes.mean(axis=1)).value
    assert found.ceiling == pytest.approx(best, abs=0.05)
    assert found.over == ("examples" if seeds == 1 else "retraining and examples")
    if seeds > 1:
        assert noise_ceiling(of(outcomes)).ceiling > best + 0.15


def test_without_noise_a_criterion_is_what_it_is() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=400)
    score = true + generator.normal(size=400)
    expected = kendall(score, true).value
    outcomes = true[:, None] + generator.normal(size=(400, 3))
    table = CandidateTable(outcomes, {"c": score}, False, sampled=True)
    ceiling = noise_ceiling(table).ceiling
    tau = kendall(score, table.outcome).value
    assert tau < expected - 0.08
    assert disattenuated(tau, ceiling) == pytest.approx(expected, abs=0.05)
    by_hand = 2 / math.pi * math.asin(math.sin(math.pi * tau / 2) / math.sin(math.pi * ceiling / 2))
    assert disattenuated(tau, ceiling) == pytest.approx(by_hand)
    assert disattenuated(-tau, ceiling) == pytest.approx(-by_hand)
    assert disattenuated(0.7, 0.6) == 1  # never more
    assert math.isnan(disattenuated(0.1, 0.19))  # too low to tell

    def taus(one: CandidateTable) -> np.ndarray:
        return np.array([kendall(one.scores["c"], one.outcome).value])

    (around,), of_ceiling = without_noise([table], taus, [standardised_ranks(score[None])])
    assert around.low < expected < around.high
    assert of_ceiling.low < ceiling < of_ceiling.high


def test_split_half_is_the_mean_tau_between_halves() -> None:
    outcomes = np.random.default_rng(0).normal(size=(30, 3)) + np.arange(30.0)[:, None] / 10
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([kendall(outcomes[:, i], outcomes[:, j]).value for i, j in pairs])
    assert noise_ceiling(of(outcomes)).split_half == pytest.approx(expected)
    four = np.random.default_rng(1).normal(size=(30, 4)) + np.arange(30.0)[:, None] / 10
    halves = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    expected = np.mean(
        [
            kendall(four[:, list(a)].mean(axis=1), four[:, list(b)].mean(axis=1)).value
            for a, b in halves
        ]
    )
    assert noise_ceiling(of(four)).split_half == pytest.approx(expected)


def test_perfect_and_hopeless_retraining() -> None:
    true = np.arange(20.0)
    perfect = noise_ceiling(of(np.column_stack([true, true + 3])))
    assert (perfect.split_half, perfect.reliability, perfect.ceiling) == pytest.approx((1, 1, 1))
    hopeless = noise_ceiling(of(np.column_stack([true, -true])))
    assert hopeless.ceiling == 0
    assert math.isnan(disattenuated(0.3, hopeless.ceiling))


def test_one_seed_or_one_value_has_no_ceiling() -> None:
    assert math.isnan(noise_ceiling(of(np.arange(5.0)[:, None])).ceiling)
    assert noise_ceiling(of(np.arange(5.0)[:, None])).as_dict()["ceiling"] is None
    assert math.isnan(noise_ceiling(of(np.ones((5, 2)))).ceiling)
    assert math.isnan(noise_ceiling(of(np.ones((1, 2)))).ceiling)


def test_what_is_missing_counts_for_nothing_and_what_diverged_as_the_worst() -> None:
    outcomes = np.random.default_rng(0).normal(size=(20, 2)) + np.arange(20.0)[:, None] / 5
    missing = np.vstack([outcomes, [[math.nan, 1.0]]])
    assert noise_ceiling(of(missing)).ceiling == noise_ceiling(of(outcomes)).ceiling
    diverged = np.vstack([outcomes, [[3.0, math.inf]]])
    worst = np.vstack([outcomes, [[3.0, outcomes.max()]]])
    assert noise_ceiling(of(diverged)).ceiling == noise_ceiling(of(worst)).ceiling


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_other_units_change_nothing(seeds: int, start: int) -> None:
    generator = np.random.default_rng(start)
    outcomes = generator.normal(size=(15, 2)) + np.arange(15.0)[:, None] / seeds
    before, after = noise_ceiling(of(outcomes)), noise_ceiling(of(8 * outcomes - 2))
    assert after.ceiling == pytest.approx(before.ceiling)
    bent = noise_ceiling(of(np.exp(outcomes)))
    assert bent.split_half == pytest.approx(before.split_half)
    turned = noise_ceiling(of(outcomes[::-1]))
    assert turned.split_half == pytest.approx(before.split_half)
