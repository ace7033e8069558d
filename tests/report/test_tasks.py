"""Reports of any task say what it measures, and nothing of images and classes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.record.records import synthetic
from tests.record.test_results import TASKS
from tests.report.test_report import read
from trueoracle.record.results import Results
from trueoracle.record.runs import find_arms
from trueoracle.report.grid import write_grid_report
from trueoracle.report.page import write_report
from trueoracle.report.sections import dense_facts, headline_in_words
from trueoracle.report.summary import summarise
from trueoracle.spec.grid import Variant
from trueoracle.tasks.metric import CLASSIFICATION, LOSS, Metric

TOKENS = (
    Metric("loss", "loss", unit="nats", exponential="perplexity"),
    Metric("token_accuracy", "token accuracy", better="higher", low=0, high=1),
)
FOREIGN = re.compile(r"accurac|\bclass(es)?\b|\bimages?\b", re.I)


def text_of(page: Path) -> str:
    return " ".join(" ".join(read(page).text).split())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["denoising", "segmentation"])
def test_a_page_speaks_of_the_tasks_own_metrics(task: str, tmp_path: Path) -> None:
    metrics = TASKS[task]
    results = Results(synthetic(tmp_path / "runs", task, metrics))
    synthetic(tmp_path / "runs", task, metrics, name="made-up@short", epochs=2)
    written = write_report(results, find_arms(results), tmp_path / "out")
    page = read(written.page)
    text = text_of(written.page)
    assert not FOREIGN.search(text), FOREIGN.search(text)
    assert not any(FOREIGN.search(alt) for alt in page.alts)
    assert not FOREIGN.search(written.summary.read_text().replace("validation_images", ""))
    summary = written.summaries[0]
    columns = list(results.default_outcomes)
    assert list(dict.fromkeys(r["metric"] for r in summary["relations"])) == columns
    assert [m["name"] for m in summary["metrics"]] == [metric.name for metric in metrics]
    assert summary["task"] == task
    names = {path.name for path in written.figures}
    for column in columns:
        assert results.outcome(column).name in text
        assert f"made-up-oracle-{column}.svg" in names
        assert f"made-up-short-retraining-{column}.svg" in names
    for relation in [*summary["relations"], *summary["short_retraining"]["relations"]]:
        assert relation["verdict"] in text
        low, high = relation["agreement_low"], relation["agreement_high"]
        raw = relation["kendall_low"], relation["kendall_high"]
        assert (low, high) == (raw if relation["sign"] == 1 else (-raw[1], -raw[0]))
        assert relation["agreement"] == relation["sign"] * relation["kendall_tau"]


@pytest.mark.slow
def test_the_dense_network_is_shown_in_each_metrics_own_unit(tmp_path: Path) -> None:
    facts = {
        task: dense_facts(summarise(Results(synthetic(tmp_path / task, task, metrics))))
        for task, metrics in {
            **TASKS,
            "next-token": TOKENS,
            "classification": CLASSIFICATION,
        }.items()
    }
    # Quality 0.9 of losses from 0 to 4, and of what else they lie between.
    assert facts["classification"] == [
        ("0.400 / 0.400", "train / test loss"),
        ("90.0%", "test accuracy"),
    ]
    assert facts["segmentation"][1] == ("90.0%", "test mean IoU")
    assert facts["denoising"] == [("0.400 / 0.400", "train / test squared error")]
    assert facts["forecast"][1:] == [("0.400 K", "test absolute error"), ("0.900", "test R²")]
    assert facts["next-token"][1] == (f"{math.exp(0.4):.1f}", "test perplexity")
    assert facts["next-token"][2] == ("90.0%", "test token accuracy")


def test_perplexity_is_no_finding(tmp_path: Path) -> None:
    summary = summarise(Results(synthetic(tmp_path, "next-token", TOKENS)))
    assert {r["metric"] for r in summary["relations"]} == {"test_token_accuracy", "test_loss"}
    assert not any("perplexity" in r["verdict"] for r in summary["relations"])


@pytest.mark.slow
def test_chance_is_that_of_the_headline(tmp_path: Path) -> None:
    metrics = (LOSS, Metric("r2", "R²", better="higher", high=1.0))
    for chance, warns in ((0.0, False), (0.85, True), (None, False)):
        folder = synthetic(tmp_path / str(chance), "regression", metrics, chance=chance)
        warning = summarise(Results(folder))["warning"]
        assert ("hardly better than chance: test R² 0.9, and guessing gives" in warning) == warns


@pytest.mark.slow
def test_a_grid_speaks_of_the_tasks_own_metrics(tmp_path: Path) -> None:
    task, metrics = "forecast", TASKS["forecast"]
    recorded, points = {}, []
    for width in (1, 2, 3):
        name = f"mine+width-{width}"
        results = Results(synthetic(tmp_path, task, metrics, name=name, epochs=width + 1))
        label = f"width-{width}"
        points.append(Variant(results.spec, "mine", label, {"width": width}))
        recorded[label] = results
    written = write_grid_report(points, recorded, tmp_path / "out")
    text = text_of(written.page)
    assert not FOREIGN.search(text), FOREIGN.search(text)
    assert not any(FOREIGN.search(alt) for alt in read(written.page).alts)
    for column in results.default_outcomes:
        assert f"mine-tau-{column}.svg" in {path.name for path in written.figures}
    slopes = {slope["by"] for meta in written.summary["meta"] for slope in meta["slopes"]}
    assert slopes == set()  # one dense network says nothing of a slope
    headline = headline_in_words(written.summary["points"][0]["summary"])
    assert f"dense network: {headline}" in text


def test_the_chance_of_an_older_page_is_read_from_its_classes(tmp_path: Path) -> None:
    from tests.record.records import older_record

    summary = summarise(Results(older_record(tmp_path, 3)))
    assert summary["provenance"][0]["chance"] == 0.1
    assert "chance" not in summary["warning"] or "guessing gives 0.1;" in summary["warning"]
