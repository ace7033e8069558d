from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from trueoracle.analysis.assessment import MATTERS, assess, judged_together
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError


def table(
    outcomes: np.ndarray,
    *,
    higher_is_better: bool = True,
    sampled: bool = False,
    pruned: np.ndarray | None = None,
    **scores: np.ndarray,
) -> CandidateTable:
    columns = outcomes if outcomes.ndim == 2 else outcomes[:, None]
    groups = () if pruned is None else (pruned.shape[1],)
    return CandidateTable(columns, scores, higher_is_better, sampled, pruned, groups)


def every_way(filters: int, count: int) -> np.ndarray:
    """bool ``[P, filters]``: all ways to prune ``count`` of them."""
    ways = list(itertools.combinations(range(filters), count))
    pruned = np.zeros((len(ways), filters), dtype=bool)
    for row, way in enumerate(ways):
        pruned[row, list(way)] = True
    return pruned


def test_the_verdict_says_what_the_numbers_say() -> None:
    pruned = every_way(7, 3)
    x = pruned @ 2.0 ** np.arange(7)  # no two alike
    (good,) = assess(table(-x, pruned=pruned, loss=x))
    assert good.sentence("the loss", "accuracy") == (
        "Yes: the loss predicts accuracy after retraining (agreement 1.00 [1.00, 1.00]); "
        "none of 35 candidates end better than the one it would choose."
    )
    (bad,) = assess(table(x, pruned=pruned, loss=x))
    assert bad.sentence().startswith("No: the score is misleading about")
    assert "34 of 35 candidates (97.1%) end better" in bad.sentence()
    (flat,) = assess(table(np.zeros(35), loss=x))
    assert flat.sentence().startswith("Unclear: nothing can be said")
    (noise,) = assess(table(np.array([2.0, 1, 3]), loss=np.array([1.0, 2, 3])))
    assert "says nothing certain" in noise.sentence()
    for one in (good, bad, flat, noise):
        assert one.sentence().split(":")[0] == one.answer == one.as_dict()["answer"]


def test_small_is_an_answer_and_not_the_lack_of_one() -> None:
    # p is large for both; only of many filters is it certain that tau is small.
    generator = np.random.default_rng(0)
    answers = []
    for filters, count in ((6, 3), (24, 2)):
        pruned = every_way(filters, count)
        score, worth = (pruned @ generator.normal(size=filters) for _ in range(2))
        if filters > 6:  # nothing that filters share, so that little can come of chance
            score, worth = generator.normal(size=(2, len(pruned)))
        (found,) = assess(table(worth, higher_is_better=False, pruned=pruned, score=score))
        assert found.permutation_p_value > 0.05
        answers.append(found.answer)
    assert answers == ["Unclear", "No"]
    assert found.at_most < MATTERS
    assert f"of size {found.at_most:.2f} at most with 95%" in found.sentence()
    assert "says little about" in found.sentence()


def test_what_is_certain_but_small_is_no_yes() -> None:
    generator = np.random.default_rng(1)
    pruned = every_way(30, 2)
    score = generator.normal(size=len(pruned))
    outcome = 0.25 * score + generator.normal(size=len(pruned))
    (found,) = assess(table(outcome, higher_is_better=False, pruned=pruned, score=score))
    assert 0.1 < found.relation.agreement < MATTERS
    assert found.is_certain
    assert found.answer != "Yes"


def test_a_chosen_candidate_that_diverged_is_said() -> None:
    pruned = every_way(7, 3)
    x = pruned @ 2.0 ** np.arange(7)
    outcomes = np.column_stack([x, x + 0.1])
    outcomes[int(x.argmin()), 1] = math.inf
    (found,) = assess(table(outcomes, higher_is_better=False, pruned=pruned, loss=x))
    assert (found.relation.n, found.relation.dropped, found.relation.diverged) == (35, 0, 1)
    assert found.relation.chosen == int(x.argmin())
    assert found.relation.chosen_diverged
    assert "the candidate it would choose diverged in retraining" in found.sentence()
    assert found.relation.rank > 10


def test_what_is_shown_together_is_judged_together() -> None:
    pruned = every_way(8, 4)
    generator = np.random.default_rng(3)
    weights = generator.normal(size=8)
    groups = [
        assess(table(pruned @ weights, higher_is_better=False, pruned=pruned,
                     good=pruned @ weights, none=pruned @ generator.normal(size=8)))
        for _ in range(3)
    ]  # fmt: skip
    together = judged_together(groups)
    assert [[one.criterion for one in group] for group in together] == [["good", "none"]] * 3
    before, after = groups[0][0], together[0][0]
    assert before.adjusted_p_value == pytest.approx(2 * before.permutation_p_value)
    assert after.adjusted_p_value == pytest.approx(6 * before.permutation_p_value)
    raw = [one.permutation_p_value for group in groups for one in group]
    holm = multipletests(raw, method="holm")[1]
    flat = [one.adjusted_p_value for group in together for one in group]
    np.testing.assert_allclose(flat, holm)


@pytest.mark.parametrize("sampled", [False, True])
def test_nothing_is_certain_where_labels_cannot_be_permuted(sampled: bool) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=200)
    outcomes = x[:, None] + 0.01 * generator.normal(size=(200, 3))
    (found,) = assess(table(outcomes, higher_is_better=False, sampled=sampled, loss=x))
    assert found.relation.kendall.p_value < 1e-20
    assert found.interval.low > 0.9
    assert not found.is_certain
    assert found.as_dict()["certain"] is False
    assert found.answer == "Unclear"
    assert "says nothing certain about" in found.sentence()
    assert "that other filters would give another τ is not counted" in found.sentence()


def test_certainty_is_by_holm() -> None:
    # One of forty criteria that say nothing has a small p by itself, and none by Holm.
    pruned = every_way(8, 4)
    generator = np.random.default_rng(4)
    outcome = pruned @ generator.normal(size=8)
    scores = {f"c{i}": pruned @ generator.normal(size=8) for i in range(40)}
    one = CandidateTable(outcome[:, None], scores, False, False, pruned, (8,))
    found = assess(one)
    assert min(one.permutation_p_value for one in found) < 0.05
    assert not any(one.is_certain for one in found)


def test_the_verdict_goes_by_permuted_labels_where_it_can() -> None:
    # Two filters make all of the score, and one of them the outcome: 252 candidates, yet hardly
    # two that are independent, so that the textbook finds certain what labels do by chance.
    pruned = every_way(10, 5)
    generator = np.random.default_rng(1)
    weights = generator.normal(size=10)
    outcome = pruned @ weights
    score = pruned @ (0.45 * weights + generator.normal(size=10))
    (found,) = assess(table(outcome, higher_is_better=False, pruned=pruned, score=score))
    assert found.relation.kendall.p_value < 1e-4
    assert found.permutation_p_value > 0.05
    assert "says nothing certain" in found.sentence()


def test_without_noise_it_is_as_good_as_it_is() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=300)
    outcomes = true[:, None] + generator.normal(size=(300, 4))
    (found,) = assess(table(outcomes, higher_is_better=False, expected=true))
    ceiling = found.reliability.ceiling
    assert 0.5 < ceiling < 0.85
    assert found.relation.kendall.value == pytest.approx(ceiling, abs=0.05)
    assert found.disattenuated > 0.85
    assert found.interval_over == (
        "4 retraining seeds, given the dense network, its filters and the examples"
    )
    assert found.interval.low < found.relation.kendall.value < found.interval.high
    # More noise lowers tau and the ceiling, and not what the criterion is worth.
    half = true + generator.normal(size=300)
    values = []
    for noise in (0.3, 3.0):
        of_noise = []
        for _ in range(6):  # of one table alone it is off by 0.1 and more where noise is large
            noisy = true[:, None] + noise * generator.normal(size=(300, 4))
            (one,) = assess(table(noisy, higher_is_better=False, half=half))
            of_noise.append((one.relation.agreement, one.disattenuated))
        values.append(np.mean(of_noise, axis=0))
    assert values[0][0] > values[1][0] + 0.1
    assert values[0][1] == pytest.approx(values[1][1], abs=0.1)


def test_what_is_not_told_from_zero_both_ways_is_not_certain() -> None:
    # Labels would call it certain, but with either seed it is another tau.
    pruned = every_way(8, 4)
    weights = np.random.default_rng(1).normal(size=8)
    score = pruned @ weights
    other = 0.3 * score + np.random.default_rng(2).normal(size=70) * score.std()
    table_ = table(np.column_stack([score, other]), higher_is_better=False, pruned=pruned, c=score)
    (found,) = assess(table_)
    assert found.permutation_p_value < 0.05
    assert found.interval.low < 0
    assert not found.is_certain
    assert "says nothing certain" in found.sentence()


def test_retraining_that_does_not_repeat_itself_says_nothing() -> None:
    x = np.arange(30.0)
    (found,) = assess(table(np.column_stack([x, -x + 0.01 * x**2]), c=x))
    assert found.reliability.ceiling == 0
    assert found.sentence("the loss", "accuracy").startswith(
        "Unclear: nothing can be said, since accuracy orders"
    )
    # Where the data suffice to say that tau is small, the first word is that of tables: No.
    generator = np.random.default_rng(1)
    pruned = np.array([generator.permutation(60) < 30 for _ in range(400)])
    noise, scores = generator.normal(size=(400, 3)), generator.normal(size=400)
    of_filters = CandidateTable(noise, {"c": scores}, False, True, pruned, (60,))
    (found,) = assess(of_filters)
    assert (found.reliability.ceiling, found.answer) == (0, "No")
    assert found.sentence().startswith("No: the score says little about the outcome")
    (single,) = assess(table(np.array([0.5]), c=np.array([1.0])))
    assert single.sentence() == "Unclear: nothing can be said of a single candidate."


def test_an_accuracy_turns_the_signs_too() -> None:
    pruned = every_way(8, 4)
    generator = np.random.default_rng(0)
    true = pruned @ generator.normal(size=8)
    outcomes = true[:, None] + generator.normal(size=(70, 2))
    (found,) = assess(table(outcomes, pruned=pruned, expected=-true))
    (turned,) = assess(table(-outcomes, higher_is_better=False, pruned=pruned, expected=-true))
    assert found.relation.kendall.value < 0 < found.disattenuated
    assert found.disattenuated == pytest.approx(turned.disattenuated)
    for one in ("agreement_interval", "disattenuated_interval"):
        mine, theirs = getattr(found, one), getattr(turned, one)
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert found.disattenuated_interval.low < found.disattenuated
    assert f"(agreement {found.relation.agreement:.2f} [" in found.sentence()
    assert f"without noise of retraining {found.disattenuated:.2f}" in found.sentence()


def test_holm_is_over_all_criteria_of_the_table() -> None:
    pruned = every_way(6, 3)
    generator = np.random.default_rng(3)
    weights = generator.normal(size=6)
    scores = {f"c{i}": pruned @ generator.normal(size=6) for i in range(4)}
    scores["good"] = pruned @ weights
    found = assess(CandidateTable((pruned @ weights)[:, None], scores, False, False, pruned, (6,)))
    by_name = {one.criterion: one for one in found}
    assert list(by_name) == list(scores)
    good = by_name["good"]
    assert good.permutation_p_value < 0.01
    assert good.adjusted_p_value == pytest.approx(min(1, 5 * good.permutation_p_value))


def test_what_has_no_value_is_left_out() -> None:
    x = np.arange(12.0)
    nan = np.full(12, math.nan)
    found = assess(table(x, none=nan, some=np.where(x < 3, math.nan, x)))
    assert [one.criterion for one in found] == ["some"]
    assert (found[0].relation.n, found[0].relation.dropped) == (9, 3)
    assert assess(table(nan, some=x)) == []
    alone = assess(table(np.array([0.5]), some=np.array([1.0])))[0]
    text = json.dumps(alone.as_dict(), allow_nan=False)
    assert json.loads(text)["ceiling"] is None
    assert alone.selection.percentile == 100


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="one per candidate"):
        table(np.zeros(3), c=np.zeros(2))
    with pytest.raises(InputError, match="candidates × seeds"):
        CandidateTable(np.zeros((0, 2)), {}, higher_is_better=True)
    with pytest.raises(InputError, match="filters of all groups"):
        CandidateTable(np.zeros((2, 1)), {}, True, pruned=np.zeros((2, 3), bool), groups=(2,))


def test_dense_networks_are_pooled() -> None:
    generator = np.random.default_rng(5)
    tables = []
    for shift in (0.2, 0.5, 1.0):
        x = generator.normal(size=60)
        y = shift * x + generator.normal(size=60)
        tables.append(table(y[:, None] + 0.1 * generator.normal(size=(60, 2)), c=x))
    (pooled,) = assess(tables)
    each = [kendall(one.scores["c"], one.outcome).value for one in tables]
    assert pooled.relation.kendall.value == pytest.approx(np.mean(each))
    assert pooled.interval_over == "3 dense networks, given the examples"
    # Student's t of three networks' taus, on the scale of atanh.
    reach = stats.t.ppf(0.975, 2) * np.std(each, ddof=1) / math.sqrt(3) / (1 - np.mean(each) ** 2)
    assert pooled.interval.low == pytest.approx(math.tanh(math.atanh(np.mean(each)) - reach))
    assert pooled.interval.high == pytest.approx(math.tanh(math.atanh(np.mean(each)) + reach))
    assert (pooled.networks, pooled.as_dict()["networks"]) == (3, 3)
    alone = [assess(one)[0] for one in tables]
    assert pooled.relation.n == 180
    assert pooled.relation.anomalies == sum(one.relation.anomalies for one in alone)
    assert pooled.relation.rank == pytest.approx(np.mean([one.relation.rank for one in alone]))
    assert pooled.reliability.ceiling == pytest.approx(
        np.mean([one.reliability.ceiling for one in alone])
    )
    assert "after retraining over 3 dense networks (agreement " in pooled.sentence()
    share = np.mean([one.relation.anomaly_ratio for one in alone])
    assert f"on average {share:.1%} of a network's candidates end better" in pooled.sentence()
    # Candidates of different networks are not compared: a network may end better as a whole.
    better = [replace(t, outcomes=t.outcomes + 9 * i) for i, t in enumerate(tables)]
    assert assess(better)[0].relation.kendall == pooled.relation.kendall
    assert repr(assess(tables[:1])) == repr(alone[:1])


def test_many_networks_answer_what_one_cannot() -> None:
    generator = np.random.default_rng(8)
    pruned = every_way(5, 2)
    tables = []
    for _ in range(6):
        worth = generator.normal(size=5)
        noise = generator.normal(size=5)
        outcome = pruned @ (worth + 0.3 * noise)
        tables.append(
            table(outcome, higher_is_better=False, pruned=pruned, good=pruned @ worth,
                  chance=pruned @ generator.normal(size=5))
        )  # fmt: skip
    good, chance = assess(tables)
    assert good.answer == "Yes"
    assert chance.answer == "Unclear"
    assert good.permutation_p_value < min(assess(t)[0].permutation_p_value for t in tables)
    assert good.interval_over == "6 dense networks, given the examples"
    # Of two, none can be left out: they are given, with the seeds and filters of both.
    two = assess(tables[:2])[0]
    assert two.interval_over == (
        "10 filters, given these 2 dense networks, the retraining seed and the examples"
    )
    assert two.counts_filters
    # Criteria that one of the networks lacks are left out.
    lacking = [replace(tables[0], scores={"good": tables[0].scores["good"]}), *tables[1:]]
    assert [one.criterion for one in assess(lacking)] == ["good"]


def test_candidates_without_an_outcome_are_as_if_they_were_not_listed() -> None:
    draw = np.random.default_rng(0)
    pruned = every_way(8, 3)
    outcomes = (pruned @ draw.normal(size=8))[:, None] + 0.3 * draw.normal(size=(len(pruned), 3))
    known = draw.permutation(len(pruned)) < 20
    some = np.where(known[:, None], outcomes, np.nan)
    some[np.flatnonzero(~known)[0], :2] = 0.5  # one seed is missing still
    scores = draw.normal(size=len(pruned))
    whole = CandidateTable(some, {"c": scores}, False, True, pruned, (8,))
    (found,), (alone,) = assess(whole), assess(whole.take(np.flatnonzero(known)))
    assert found.selection == alone.selection
    assert found.selection.k == 3
    assert (found.interval, found.interval_over) == (alone.interval, alone.interval_over)
    assert found.reliability == alone.reliability


def test_where_what_is_pruned_is_not_known_no_answer_is_certain() -> None:
    draw = np.random.default_rng(0)
    nothing = [table(draw.normal(size=(80, 2)), c=draw.normal(size=80)) for _ in range(8)]
    (found,) = assess(nothing)
    assert found.answer == "Unclear"
    assert math.isnan(found.equivalence_p_value)
