"""What docs/bench.md and docs/statistics.md say of the shipped table, computed again.

Where a figure has changed because the table has grown, the failing line shows what to write.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_cli import call
from trueoracle.analysis.additive import additive
from trueoracle.analysis.correlation import kendall
from trueoracle.analysis.numbers import interval
from trueoracle.analysis.reliability import noise_ceiling
from trueoracle.analysis.table import Blocks, CandidateTable
from trueoracle.bench.findings import SUM, Finding, findings
from trueoracle.bench.leaderboard import Place, by_layer, leaderboard
from trueoracle.bench.places import COLUMNS
from trueoracle.bench.table import FAMILIES, Bench, BenchStudy, grid_of, read_bench
from trueoracle.spec.grid import variants

pytestmark = pytest.mark.xdist_group("claims")  # all of one reading of the table
ROOT = Path(__file__).parents[2]
LOSS, ACCURACY = COLUMNS


def text_of(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def shipped() -> Bench:
    return read_bench()


@pytest.fixture(scope="module")
def said() -> str:
    return text_of("docs/bench.md")


@pytest.fixture(scope="module")
def places(shipped: Bench) -> dict[str, list[Place]]:
    return {metric: leaderboard(shipped, metric) for metric in COLUMNS}


@pytest.fixture(scope="module")
def found(shipped: Bench) -> list[Finding]:
    return findings(shipped, COLUMNS)


def place_of(places: list[Place], criterion: str) -> Place:
    (one,) = (place for place in places if place.criterion == criterion)
    return one


@pytest.mark.slow
def test_the_page_shows_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"## Findings\n.*?\n```\n(.*?)\n```\n", page, flags=re.DOTALL)
    printed = call("bench", "--findings").out.strip()
    assert shown.splitlines() == [line.rstrip() for line in printed.splitlines()]


def test_the_data_card_is_the_tables(shipped: Bench, said: str) -> None:
    families = shipped.card["families"]
    for family in FAMILIES:
        whole = len({point.spec.dense.seed for point in variants(grid_of(family))})
        held = families.get(family, {"dense": {}})["dense"].values()
        assert re.search(rf"\| `{family}` \|[^|]*\|[^|]*\| {len(held)} of {whole} \|", said)
        if held:
            losses = [one["test_loss"] for one in held]
            shares = [100 * one["test_accuracy"] for one in held]
            expected = (
                f"{min(losses):.2f} to {max(losses):.2f} | {min(shares):.0f} to {max(shares):.0f} %"
            )
            assert expected in said
    card = shipped.card
    count, seeds = card["pruned_networks"], card["seeds"]
    assert f"{count:,} pruned networks × {seeds} seeds = {count * seeds:,}" in said
    assert f"{card['retraining_seconds']:,} s of retraining" in said
    assert set(families) == set(FAMILIES)
    assert "It holds all five families" in said
    for family in ("glyphs-62", "glyphs-62-underfit"):
        shares = [
            [100 * one[f"{part}_accuracy"] for one in families[family]["dense"].values()]
            for part in ("train", "validation")
        ]
        train, validation = (f"{min(some):.0f} to {max(some):.0f} %" for some in shares)
        assert re.search(rf"`{family}` (knows )?{train} (of its .*?)?and {validation}", said)


@pytest.mark.slow
def test_what_is_said_of_the_pruned_train_loss(
    places: dict[str, list[Place]], found: list[Finding], said: str
) -> None:
    loss, accuracy = (place_of(places[metric], "oracle") for metric in COLUMNS)
    assert (
        f"{loss.agreement:.2f} with test loss and {accuracy.agreement:.2f} with test accuracy, "
        f"where noise would allow {loss.ceiling:.2f} and {accuracy.ceiling:.2f}"
    ) in said
    assert f"It is number {loss.rank} and {accuracy.rank} of {loss.of} criteria" in said
    answers = {(one.families, one.metric): one for one in found if one.question == "oracle"}
    assert "with test loss it is certainly below 0.2 (No)" in said
    no = [place for place, one in answers.items() if one.answer == "No"]
    assert no == [("all", LOSS), ("digits", LOSS)]
    yes = {place: one.value for place, one in answers.items() if one.answer == "Yes"}
    assert [*yes] == [("glyphs-62", LOSS), ("glyphs-62", ACCURACY)]
    values = " and ".join(f"{one:.2f}" for one in yes.values())
    assert f"By themselves `glyphs-62` ({values}) are a Yes, and `digits` are certainly" in said
    own = [one for one in found if one.question == "oracle"]
    assert "Its agreement is certainly above zero" in said
    over_all = [one for one in own if one.families == "all"]
    assert len(over_all) == len(COLUMNS)
    assert all(one.p_value < 0.05 and one.value > 0 for one in over_all)
    assert f"{loss.ceiling:.2f} for test loss, {accuracy.ceiling:.2f} for test accuracy" in said


@pytest.mark.slow
def test_what_is_said_of_the_criteria(
    places: dict[str, list[Place]], found: list[Finding], said: str
) -> None:
    ranked = {m: [one for one in own if one.rank is not None] for m, own in places.items()}
    certain = {m: [one for one in own if one.adjusted_p_value < 0.05] for m, own in ranked.items()}
    assert (
        f"{len(certain[LOSS])} of {len(ranked[LOSS])} differ from chance in test loss after Holm, "
        f"{len(certain[ACCURACY])} in test accuracy"
    ) in said
    wrong = {m: [one.criterion for one in own if one.agreement < 0] for m, own in certain.items()}
    assert wrong == {LOSS: ["gradient-norm"], ACCURACY: ["gradient-norm"]}
    assert "all of them in the right direction but `gradient-norm`; `random` does not" in said
    highest = " and ".join(f"{own[0].agreement:.2f}" for own in ranked.values())
    assert f"The highest agreements are {highest}" in said
    few = {}
    for metric, own in certain.items():
        assert "random" not in [one.criterion for one in own]
        few[metric] = " and ".join(f"{place_of(own, name).agreement:.2f}" for name in ("l1", "l2"))
    assert (
        f"l1 and l2 are among them, with {few[LOSS]} in test loss, {few[ACCURACY]} in test accuracy"
    ) in said
    best = {one.metric: one for one in found if (one.question, one.families) == ("best", "all")}
    assert (
        f"In test loss `{best[LOSS].what}` stands first, and {best[LOSS].could_be_best} of "
        f"{len(ranked[LOSS])} criteria could; in test accuracy `{best[ACCURACY].what}` does, and "
        f"{best[ACCURACY].could_be_best} could"
    ) in said
    most = []
    for metric in COLUMNS:
        bests = [one for one in found if one.question == "best" and one.metric == metric]
        first = Counter(one.what for one in bests if one.families != "all")
        most.append(max(first.values()))
    assert max(most) == 3
    assert "No criterion is first in more than three families" in said
    assert f"With thirty dense networks, {len(certain[LOSS])} of {len(ranked[LOSS])} differ" in said


@pytest.mark.slow
def test_what_is_said_of_sums_over_filters(shipped: Bench, found: list[Finding], said: str) -> None:
    own = [one for one in found if one.question == "sum" and one.metric == LOSS]
    whole, gain = own[:2]
    assert f"has {whole.value:.2f} with the test loss on the other half" in said
    layers = [[across_fonts(shipped, one) for one in some] for some in by_layer(shipped.studies)]
    sums = [made.agreement for tables in layers if (made := additive(tables))]
    assert f"whose images are of other fonts or writers, it has {np.mean(sums):.2f}." in said
    by_itself = [one for one in own if one.families != "all" and one.p_value < 0.05]
    certain = {one.families: one.value for one in by_itself if not one.less}
    assert (
        "By themselves all families but `digits` are certain: "
        f"`glyphs-62` ({certain.pop('glyphs-62'):.2f}), "
        f"`glyphs-62-underfit` ({certain.pop('glyphs-62-underfit'):.2f}), "
        f"the MLPs ({certain.pop('glyphs-mlp'):.2f}), `glyphs-10` ({certain.pop('glyphs-10'):.2f})."
    ) in said
    assert not certain
    (more,) = (one for one in by_itself if one.less)
    assert f"but for `{more.families}`, where it is {more.value:.2f} more" in said
    assert f"Against `{gain.less}` it is {gain.value:.2f} more" in said
    assert f"is not shown (p {gain.p_value:.2g})" in said
    assert gain.answer == "Unclear"
    statistics = text_of("docs/statistics.md")
    assert f"{whole.value:.2f} {interval(whole.low, whole.high)} on other images" in statistics


@pytest.mark.slow
def test_what_is_said_of_other_tasks_and_recipes(
    shipped: Bench, found: list[Finding], said: str
) -> None:
    fit = [one for one in found if one.question == "fit"]
    assert {(one.families, one.less) for one in fit} == {("glyphs-62-underfit", "glyphs-62")}
    harder = [one for one in found if one.question == "classes"]
    pairs = {("digits", "glyphs-10"), ("glyphs-10", "glyphs-62")}
    assert {(one.families, one.less) for one in harder} == pairs
    assert all(one.answer == "Unclear" for one in (*fit, *harder))
    assert f"one of {max(one.at_most for one in fit):.2f} is not excluded" in said
    less = [one.value for one in fit if one.what != SUM]
    assert "agree by about 0.16 less in the underfitted ones" in said
    assert less == pytest.approx([-0.16] * 4, abs=0.05)
    assert f"one of {max(one.at_most for one in harder):.2f} is not excluded" in said
    assert "all twelve have the other sign" in said
    assert len(harder) == 12
    assert all(one.value < 0 for one in harder)
    many, few = (ceiling(shipped, family) for family in ("glyphs-62", "glyphs-10"))
    assert f"(ceiling {many:.2f} of 62 classes, {few:.2f} of ten)" in said


def ceiling(shipped: Bench, family: str) -> float:
    own = [one for one in shipped.studies if one.family == family]
    return float(np.mean([noise_ceiling(shipped.table(one, LOSS)).ceiling for one in own]))


def across_fonts(shipped: Bench, study: BenchStudy) -> CandidateTable:
    """Validation and test loss as two blocks, each fitted to and judged by the other."""
    losses = [shipped.outcomes[f"{part}_loss"][study.rows] for part in ("validation", "test")]
    blocks = Blocks(np.stack(losses, axis=2), np.ones(2))
    return replace(shipped.table(study, LOSS), outcomes=blocks.means([0, 1]), blocks=blocks)


@pytest.mark.slow
def test_what_the_statistics_page_says_of_images(
    shipped: Bench, places: dict[str, list[Place]], said: str
) -> None:
    page = text_of("docs/statistics.md")
    validation, test = (
        shipped.outcomes[f"{part}_loss"].mean(axis=1) for part in ("validation", "test")
    )
    taus = [kendall(validation[one.rows], test[one.rows]).value for one in shipped.studies]
    tables = [shipped.table(one, LOSS) for one in shipped.studies]
    seeds = np.mean([noise_ceiling(replace(table, blocks=None)).ceiling for table in tables])
    assert (
        f"ceiling is {places[LOSS][0].ceiling:.2f}, and {seeds:.2f} without blocks; validation and "
        f"test loss of the same networks have τ {np.mean(taus):.2f}"
    ) in page
    ceiling = places[LOSS][0].ceiling
    assert f"have τ {np.mean(taus):.2f}, where the ceiling is {ceiling:.2f}" in said
