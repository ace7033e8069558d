"""One rule and one sign in all that a page says, and no number that contradicts another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.record.records import synthetic
from tests.report.test_report import read
from trueoracle.analysis.numbers import number
from trueoracle.record.results import Results
from trueoracle.record.runs import find_arms
from trueoracle.report.drawings import Folder
from trueoracle.report.page import study_page
from trueoracle.tasks.metric import CLASSIFICATION


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("honest")
    synthetic(folder, "classification", CLASSIFICATION, name="made-up@short", epochs=2)
    results = Results(synthetic(folder, "classification", CLASSIFICATION))
    text, summaries = study_page(results, find_arms(results), Folder(None))
    (folder / "page.html").write_text(text, encoding="utf-8")
    return text, summaries, folder / "page.html"


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    made: dict[str, Any] = json.loads(found[1])
    return made


@pytest.mark.slow
def test_verdicts_tables_and_plots_have_one_sign_and_one_rule(
    page: tuple[str, list[dict[str, Any]], Path],
) -> None:
    text, summaries, _ = page
    drawn = data_of(text)
    for study, summary in zip(drawn["studies"], summaries, strict=True):
        for relation in summary["relations"]:
            one = study["relations"][relation["criterion"]][relation["metric"]]
            shown = number(relation["agreement"], 2)
            assert one["agreement"] == pytest.approx(relation["agreement"], abs=1e-5)
            assert f"(agreement {shown}" in relation["verdict"]
            assert one["facts"].startswith(f"Agreement {shown}")
            assert f"<td><b>{shown}</b></td>" in text
            # Filled dots, and answers but for Unclear, go by the same rule.
            assert one["certain"] == relation["certain"]
            assert one["answer"] == relation["answer"] == relation["verdict"].partition(":")[0]
            if relation["answer"] == "Yes":
                assert relation["certain"]
            if relation["certain"]:
                assert relation["adjusted_p_value"] < 0.05
                assert relation["agreement_low"] * relation["agreement_high"] > 0
                assert relation["answer"] != "Unclear" or abs(relation["agreement"]) < 0.2


@pytest.mark.slow
def test_what_is_drawn_is_what_is_recorded(page: tuple[str, list[dict[str, Any]], Path]) -> None:
    text, _, path = page
    results = Results(next(path.parent.glob("made-up-0*")))
    (network,) = data_of(text)["studies"][0]["networks"]
    for column in results.default_outcomes:
        points = results.points("oracle", column)
        assert network["outcomes"][column]["mean"] == pytest.approx(
            points["outcome"].tolist(), rel=1e-5
        )
        assert network["scores"]["oracle"] == pytest.approx(points["score"].tolist(), rel=1e-5)
        relation = results.relation("oracle", column)
        drawn = network["relations"]["oracle"][column]["mean"]
        assert drawn["chosen"] == [relation.chosen]
        assert drawn["outcome"] == pytest.approx(relation.chosen_outcome)
        last = results.outcomes[results.outcomes["epoch"] == 2]
        first = last[last["candidate"] == results.candidates["candidate"].iloc[0]]
        by_seed = [network["outcomes"][column][seed][0] for seed in network["seeds"]]
        assert by_seed == pytest.approx(first.sort_values("seed")[column].tolist(), rel=1e-5)
    assert network["prunes"][0] == results.candidates["pruned"].iloc[0]["conv1"]
    assert network["filters"] == [f"conv1 {one}" for one in range(10)]


@pytest.mark.slow
def test_no_share_is_above_all(page: tuple[str, list[dict[str, Any]], Path]) -> None:
    _, summaries, path = page
    words = " ".join([*read(path).text, json.dumps(summaries)])
    shares = [float(one) for one in re.findall(r"(\d+(?:\.\d+)?)%", words)]
    assert len(shares) > 20
    assert max(shares) <= 100


@pytest.mark.slow
def test_a_changed_arm_wears_its_badge_wherever_it_is_named(
    page: tuple[str, list[dict[str, Any]], Path],
) -> None:
    text, _, path = page
    words = "retraining.epochs 2, not 3"
    rows = re.findall(r'<tr data-study="@short".*?</tr>', text, re.S)
    assert len(rows) >= 12
    assert all(words in row for row in rows)
    main, short = data_of(text)["studies"]
    assert (main["badge"], short["badge"]) == ("", words)
    assert " ".join(read(path).text).count(words) > len(rows)
