from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.bench.made import made_bench
from trueoracle.analysis.additive import additive
from trueoracle.analysis.correlation import kendall
from trueoracle.bench.findings import Finding, findings
from trueoracle.bench.leaderboard import by_layer, leaderboard
from trueoracle.bench.table import Bench
from trueoracle.errors import InputError

HARDER = {"glyphs-10": 0.2, "glyphs-62": 3.0}
"""Families in which the criterion ``good`` is good, and is not."""


@pytest.fixture(scope="module")
def bench() -> Bench:
    return made_bench(HARDER)


@pytest.fixture(scope="module")
def found(bench: Bench) -> list[Finding]:
    return findings(bench, ["test_loss", "test_accuracy"])


def one_of(found: list[Finding], **named: str) -> Finding:
    (one,) = (f for f in found if all(getattr(f, name) == v for name, v in named.items()))
    return one


def test_agreements_are_means_over_studies(bench: Bench, found: list[Finding]) -> None:
    for family, some in (
        ("all", bench.studies),
        ("glyphs-62", [s for s in bench.studies if s.family == "glyphs-62"]),
    ):
        taus = []
        for study in some:
            table = bench.table(study, "test_accuracy")
            taus.append(-kendall(table.scores["oracle"], table.outcome).value)
        one = one_of(found, question="oracle", metric="test_accuracy", families=family)
        assert one.value == pytest.approx(np.mean(taus))
        assert one.networks == len({s.dense for s in some})
        (place,) = (p for p in leaderboard(bench, "test_accuracy", some) if p.criterion == "oracle")
        assert (one.low, one.high) == pytest.approx((place.low, place.high))
        assert one.at_most == pytest.approx(place.at_most)
        assert one.over == place.interval_over


def test_the_best_criterion_is_the_leaderboards_first(bench: Bench, found: list[Finding]) -> None:
    one = one_of(found, question="best", metric="test_loss", families="glyphs-10")
    places = leaderboard(bench, "test_loss", [s for s in bench.studies if s.family == "glyphs-10"])
    assert one.what == places[0].criterion == "good"
    assert one.value == places[0].agreement
    assert one.could_be_best == sum(place.rank_low == 1 for place in places)
    assert one.answer == ("Yes" if one.could_be_best == 1 else "Unclear")


def test_a_sum_over_filters_is_judged_on_other_images(bench: Bench, found: list[Finding]) -> None:
    one = one_of(found, question="sum", metric="test_loss", families="all", less="")
    layers = [[bench.table(s, "test_loss") for s in some] for some in by_layer(bench.studies)]
    sums = [additive(tables) for tables in layers]
    assert all(made is not None and made.other_examples for made in sums)
    assert one.value == pytest.approx(np.mean([made.agreement for made in sums if made]))
    best = one_of(found, question="best", metric="test_loss", families="all")
    gain = one_of(found, question="sum", metric="test_loss", families="all", less=best.what)
    assert gain.value == pytest.approx(one.value - best.value)
    # Filters are worth sums by construction, and no criterion has seen these.
    assert (one.answer, gain.answer) == ("Yes", "Yes")


def test_families_are_compared_by_their_own_networks(bench: Bench, found: list[Finding]) -> None:
    one = one_of(found, question="classes", metric="test_loss", what="good")
    assert (one.families, one.less, one.networks) == ("glyphs-10", "glyphs-62", 8)
    assert one.answer == "Yes"
    assert one.low < one.value < one.high
    assert not [f for f in found if f.question == "fit"]  # these families are not there
    # Without blocks the error is Welch's, of four networks' means each.
    bare = replace(bench, blocks={})
    alone = one_of(
        findings(bare, ["test_loss"]), question="classes", metric="test_loss", what="good"
    )
    means: dict[str, list[float]] = {"glyphs-10": [], "glyphs-62": []}
    for family, own in means.items():
        for network in range(4):
            some = [s for s in bare.studies if s.dense == (family, network)]
            tables = [bare.table(s, "test_loss") for s in some]
            taus = [kendall(t.scores["good"], t.outcome).value for t in tables]
            own.append(sum(taus) / len(taus))
    of_means = [np.array(own) for own in means.values()]
    expected = stats.ttest_ind(*of_means, equal_var=False).pvalue
    assert alone.value == pytest.approx(of_means[0].mean() - of_means[1].mean())
    assert alone.p_value >= expected  # it is Holm's, over all findings


def test_p_values_are_holms_over_all_findings(bench: Bench, found: list[Finding]) -> None:
    single = findings(bench, ["test_loss"])
    for one in single:
        both = one_of(
            found,
            **{n: getattr(one, n) for n in ("question", "metric", "families", "what", "less")},
        )
        assert both.value == one.value
        if one.could_be_best is None:
            assert both.p_value >= one.p_value


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"value": 0.3, "p_value": 0.01}, "Yes"),
        ({"value": 0.3, "p_value": 0.06}, "Unclear"),
        ({"value": 0.1, "p_value": 0.01}, "Unclear"),
        ({"value": 0.1, "p_value": 0.01, "less": "l1"}, "Yes"),
        ({"value": 0.1, "p_value": 0.01, "equivalence_p_value": 0.01}, "No"),
        ({"value": -0.3, "p_value": 0.01}, "No"),
        ({"value": -0.1, "p_value": 0.5, "less": "l1"}, "Unclear"),
        ({"could_be_best": 1}, "Yes"),
        ({"could_be_best": 2, "p_value": 0.01, "value": 0.5}, "Unclear"),
    ],
)
def test_the_rule_of_answers(changes: dict[str, object], answer: str) -> None:
    one = Finding(
        question="oracle", metric="test_loss", families="all", what="l1", less="", value=0.0,
        low=-0.1, high=0.1, at_most=0.1, p_value=1.0, equivalence_p_value=1.0, networks=6,
        over="6 dense networks",
    )  # fmt: skip
    changed = replace(one, **changes)  # type: ignore[arg-type]
    assert changed.answer == answer
    assert changed.as_dict()["answer"] == answer


def test_two_networks_say_nothing_of_others() -> None:
    with pytest.raises(InputError, match="no family with 3 dense networks or more"):
        findings(made_bench(networks=2), ["test_loss"])
    mixed = findings(made_bench(networks=3), ["test_loss"])
    assert {one.families for one in mixed} == {"glyphs-10"}
