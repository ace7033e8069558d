from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trueoracle.analysis.interactions import interaction_variance, standardised_ranks
from trueoracle.analysis.jackknife import combine_leaves, in_words, jackknife, leave_out
from trueoracle.analysis.table import Blocks, CandidateTable
from trueoracle.errors import InputError


def mean(table: CandidateTable) -> list[float]:
    return [float(table.outcome.mean())]


def tau(table: CandidateTable) -> list[float]:
    return [float(stats.kendalltau(table.scores["c"], table.outcome).statistic)]


def made(outcomes: np.ndarray, *, sampled: bool = False) -> CandidateTable:
    rows = np.arange(float(len(outcomes)))
    return CandidateTable(outcomes, {"c": rows}, higher_is_better=False, sampled=sampled)


def every_way(filters: int, count: int) -> np.ndarray:
    ways = list(itertools.combinations(range(filters), count))
    pruned = np.zeros((len(ways), filters), dtype=bool)
    for row, way in enumerate(ways):
        pruned[row, list(way)] = True
    return pruned


def of_filters(filters: int = 6, count: int = 3, seed: int = 0, seeds: int = 1) -> CandidateTable:
    generator = np.random.default_rng(seed)
    pruned = every_way(filters, count)
    outcomes = (pruned @ generator.normal(size=filters))[:, None]
    outcomes = outcomes + 0.5 * generator.normal(size=(len(pruned), seeds))
    scores = {"c": pruned @ generator.normal(size=filters)}
    return CandidateTable(outcomes, scores, False, False, pruned, (filters,))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6))
def test_the_error_of_a_mean_over_seeds_is_the_textbooks(values: list[float]) -> None:
    # Of a mean all is known: s / sqrt(S), and Student's t with S-1 degrees of freedom.
    found = jackknife([made(np.array([values]))], mean)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    if error < 1e-9:
        return  # seeds that do not scatter at all say nothing: another test
    assert found.standard_error() == pytest.approx(error, abs=1e-9)
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    interval = found.interval()
    assert interval.high - interval.low == pytest.approx(2 * reach, rel=1e-6, abs=1e-9)


def test_blocks_of_examples_are_left_out_by_their_size() -> None:
    generator = np.random.default_rng(1)
    counts = np.array([10, 20, 30, 40])
    sums = generator.normal(size=(1, 1, 4)) * counts
    table = CandidateTable(sums.sum(axis=2) / counts.sum(), {}, False, blocks=Blocks(sums, counts))
    found = jackknife([table], mean)
    left = [(sums.sum() - sums[0, 0, b]) / (100 - counts[b]) for b in range(4)]
    assert found.standard_error() == pytest.approx(math.sqrt(3 * np.var(left)))
    assert in_words([table]) == (
        "4 blocks of examples, given the dense network, its filters and the retraining seed"
    )


def test_a_filter_is_left_out_by_hand() -> None:
    # Pairs of candidates that do the same with the filter: both prune it, or both keep it.
    table = of_filters()
    assert table.pruned is not None
    x, y = table.scores["c"], table.outcome
    left = []
    for column in range(6):
        signs = [
            np.sign((x[i] - x[j]) * (y[i] - y[j]))
            for i, j in itertools.combinations(range(len(x)), 2)
            if table.pruned[i, column] == table.pruned[j, column]
        ]
        left.append(np.mean(signs))
    found = jackknife([table], tau)
    assert list(found.parts) == ["filters"]
    assert found.standard_error() == pytest.approx(math.sqrt(5 * np.var(left)))
    assert in_words([table]) == (
        "6 filters, given the dense network, the retraining seed and the examples"
    )


def test_parts_add_up_and_share_their_degrees_of_freedom() -> None:
    table = of_filters(seeds=3)
    found = jackknife([table], tau)
    parts = {name: float(part.variance[0]) for name, part in found.parts.items()}
    assert list(parts) == ["seeds", "filters"]
    assert found.standard_error() == pytest.approx(math.sqrt(sum(parts.values())))
    free = sum(parts.values()) ** 2 / (parts["seeds"] ** 2 / 2 + parts["filters"] ** 2 / 5)
    assert found.freedom() == pytest.approx(free)
    given_ = jackknife([table], tau, filters=False)
    assert not given_.counts_filters
    assert given_.standard_error() == pytest.approx(math.sqrt(parts["seeds"]))
    assert in_words([table]) == (
        "3 retraining seeds and 6 filters, given the dense network and the examples"
    )


def test_an_exhaustive_list_with_one_seed_and_no_filters_leaves_nothing_out() -> None:
    table = made(np.arange(5.0)[:, None])
    found = jackknife([table], tau)
    assert found.estimate[0] == pytest.approx(1)
    for value in (found.standard_error(), found.interval().low, found.tau_interval().high,
                  found.p_value(), found.at_most()):  # fmt: skip
        assert math.isnan(value)
    assert in_words([table]) == ""


def test_only_candidates_that_count_are_named() -> None:
    y = np.append(np.arange(40.0), [math.nan, math.inf])  # one missing, one diverged: the worst
    assert in_words([made(y[:, None], sampled=True)]).startswith("41 sampled candidates")


def test_candidates_are_left_out_where_they_are_a_sample() -> None:
    generator = np.random.default_rng(2)
    y = np.arange(80.0) + 30 * generator.normal(size=80)
    found = jackknife([made(y[:, None], sampled=True)], tau)
    # Kendall's own error of tau over independent rows (1938) bounds it from above.
    bound = math.sqrt(2 / 80 * (1 - found.estimate[0] ** 2))
    assert 0.3 * bound < found.standard_error() < bound
    few = jackknife([made(y[:20, None], sampled=True)], tau)
    assert few.standard_error() > found.standard_error()


def test_networks_are_left_out_whole_and_those_of_one_together() -> None:
    generator = np.random.default_rng(0)
    tables = [made(generator.normal(size=(1, 4))) for _ in range(6)]
    found = jackknife(tables, mean)
    means = [table.outcome.mean() for table in tables]
    assert found.standard_error() == pytest.approx(np.std(means, ddof=1) / math.sqrt(6), rel=1e-6)
    assert found.freedom() == 5
    assert in_words(tables) == "6 dense networks, given the examples"
    # Two ratios of each of three networks are three networks.
    leaves = [leave_out(table, mean) for table in tables]
    paired = combine_leaves(leaves, networks=["a", "a", "b", "b", "c", "c"])
    by_network = [np.mean(means[i : i + 2]) for i in (0, 2, 4)]
    assert paired.freedom() == 2
    assert paired.standard_error() == pytest.approx(np.std(by_network, ddof=1) / math.sqrt(3))


def test_networks_are_left_out_within_their_families() -> None:
    """The mean over two families has the error of Welch's test, and so has their difference."""
    generator = np.random.default_rng(5)
    tables = [made(generator.normal(size=(1, 4)) + 100 * (i > 3)) for i in range(7)]
    leaves = [leave_out(table, mean) for table in tables]
    means = np.array([table.outcome.mean() for table in tables])
    one, other = means[:4], means[4:]
    families = ["a"] * 4 + ["b"] * 3
    variance = one.var(ddof=1) / 4 + other.var(ddof=1) / 3
    welch = stats.ttest_ind(one, other, equal_var=False)
    weights = [1 / 4] * 4 + [-1 / 3] * 3
    apart = combine_leaves(leaves, weights=weights, families=families)
    assert apart.estimate[0] == pytest.approx(one.mean() - other.mean())
    assert apart.standard_error() == pytest.approx(math.sqrt(variance))
    assert apart.freedom() == pytest.approx(welch.df)
    assert apart.p_value() == pytest.approx(welch.pvalue)
    halves = [1 / 8] * 4 + [1 / 6] * 3
    both = combine_leaves(leaves, weights=halves, families=families)
    assert both.standard_error() == pytest.approx(math.sqrt(variance) / 2)
    # Of a family with one network nothing is known: all networks count as one family.
    alone = combine_leaves(leaves[:5], families=["a"] * 4 + ["b"])
    assert alone.standard_error() == pytest.approx(combine_leaves(leaves[:5]).standard_error())


def test_ratios_of_one_network_share_their_filters() -> None:
    # The same study twice says no more than once; of two networks it is half the variance.
    table = of_filters()
    leaves = [leave_out(table, tau)] * 2
    once = combine_leaves(leaves[:1]).standard_error()
    same = combine_leaves(leaves, networks=["a", "a"], layers=["conv", "conv"])
    assert same.standard_error() == pytest.approx(once)
    apart = combine_leaves(leaves, networks=["a", "a"], layers=["conv1", "conv2"])
    assert apart.standard_error() == pytest.approx(once / math.sqrt(2))


def test_intervals_and_bounds_agree_with_each_other() -> None:
    found = jackknife([of_filters(seeds=3)], tau)
    whole, narrower = found.tau_interval(), found.tau_interval(confidence=0.9)
    assert -1 < whole.low < narrower.low < found.estimate[0] < narrower.high < whole.high < 1
    bound = found.at_most()
    assert bound == max(abs(narrower.low), abs(narrower.high))
    # Two one-sided tests at 5 % find equivalence within what is just the bound.
    assert found.equivalence_p_value(bound) == pytest.approx(0.05)
    assert found.equivalence_p_value(0.99) < 0.05 < found.equivalence_p_value(bound - 0.05)
    # The scale is Fisher's: half of the width in atanh is t times the error by the delta method.
    wide = (math.atanh(whole.high) - math.atanh(whole.low)) / 2
    reach = stats.t.ppf(0.975, found.freedom()) * found.standard_error()
    assert wide == pytest.approx(reach / (1 - found.estimate[0] ** 2))


def test_what_does_not_scatter_has_no_interval_and_no_p_value() -> None:
    same = jackknife([made(np.ones((4, 3)))], lambda _: [0.0])
    assert math.isnan(same.p_value())
    assert math.isnan(same.interval().low)
    clear = jackknife([made(np.array([[1.0, 1.1, 0.9]]))], mean)
    assert clear.p_value() < 0.01


def test_too_many_units_without_a_value_make_no_interval() -> None:
    def mostly_undefined(table: CandidateTable) -> list[float]:
        return [1.0 if len(table) == 40 else math.nan]

    found = jackknife([made(np.arange(40.0)[:, None], sampled=True)], mostly_undefined)
    assert math.isnan(found.interval().low)


def test_what_filters_do_in_twos_has_the_variance_of_its_dimensions() -> None:
    # Columns of nothing but twos: their correlation, over filters drawn anew, has variance 1/D.
    generator = np.random.default_rng(0)
    pruned = every_way(7, 3)
    pairs = list(itertools.combinations(range(7), 2))
    twos = np.column_stack([pruned[:, i] & pruned[:, j] for i, j in pairs]).astype(float)
    single = np.column_stack([np.ones(35), pruned])
    twos -= single @ np.linalg.lstsq(single, twos, rcond=None)[0]
    taus, said = [], []
    for _ in range(300):
        x, y = (twos @ generator.normal(size=21) for _ in range(2))
        table = CandidateTable(y[:, None], {"c": x}, False, False, pruned, (7,))
        taus.append(tau(table)[0])
        said.append(interaction_variance(table, standardised_ranks(x[None]), y)[0])
    assert math.sqrt(np.mean(said)) == pytest.approx(np.std(taus), rel=0.15)
    # A score that is a sum over filters has none of it.
    sums = pruned @ generator.normal(size=7)
    none = interaction_variance(table, standardised_ranks(sums[None]), y)
    assert none[0] < 0.2 * said[-1]


def test_blocks_that_do_not_fit_are_refused() -> None:
    sums = np.zeros((3, 2, 4))
    with pytest.raises(InputError, match="candidates × seeds × blocks"):
        CandidateTable(np.zeros((3, 1)), {}, False, blocks=Blocks(sums, np.ones(4)))
    with pytest.raises(InputError, match="each of some examples"):
        CandidateTable(np.zeros((3, 2)), {}, False, blocks=Blocks(sums, np.zeros(4)))


@pytest.mark.parametrize("higher", [False, True])
def test_networks_that_diverged_count_as_the_worst(higher: bool) -> None:
    outcomes = np.array([[1.0, 2.0], [math.inf, 3.0], [5.0, -math.inf], [0.0, 7.0]])
    table = CandidateTable(outcomes, {}, higher)
    worst = 0.0 if higher else 7.0
    assert table.outcome.tolist() == [1.5, (worst + 3) / 2, (worst + 5) / 2, 3.5]
    assert table.diverged.any(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(CandidateTable(np.array([[1.0, math.nan]]), {}, higher).outcome[0])


def test_what_tables_do_not_share_is_not_counted() -> None:
    draw = np.random.default_rng(0)

    def one(seeds: int, blocks: int) -> CandidateTable:
        sums = draw.normal(size=(20, seeds, max(blocks, 1)))
        parts = Blocks(sums, np.ones(blocks)) if blocks else None
        return CandidateTable(sums.mean(axis=2), {}, False, blocks=parts)

    for tables in ([one(2, 5), one(2, 0), one(2, 5)], [one(3, 5), one(2, 5)]):
        found, words = jackknife(tables, lambda table: [table.outcome.mean()]), in_words(tables)
        assert ("examples" in found.parts) == ("5 blocks of examples" in words)
        assert ("seeds" in found.parts) == ("retraining seeds and" in words)
    assert in_words([one(2, 5), one(2, 0), one(2, 5)]) == "3 dense networks, given the examples"
    assert "the retraining seeds" in in_words([one(3, 5), one(2, 5)]).partition("given")[2]
