"""Results of any task: outcomes by the metrics that the record names."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.record.records import older_record, synthetic
from tests.run.test_runner import Recorder
from trueoracle.analysis.relation import relate
from trueoracle.errors import InputError
from trueoracle.record.results import SHORT, Results
from trueoracle.record.runs import find_arms, find_short
from trueoracle.record.store import Store
from trueoracle.record.verify import verify
from trueoracle.report.page import write_report
from trueoracle.study import Study
from trueoracle.tasks.metric import CLASSIFICATION, LOSS, Metric, columns_of

MIOU = Metric("mean_iou", "mean IoU", better="higher", low=0.0, high=1.0)
TASKS: dict[str, tuple[Metric, ...]] = {
    "segmentation": (LOSS, MIOU),
    "denoising": (Metric("mse", "squared error"),),
    "forecast": (
        Metric("nll", "negative log-likelihood", unit="nats"),
        Metric("mae", "absolute error", unit="K"),
        Metric("r2", "R²", better="higher", high=1.0),
    ),
}


@pytest.fixture(params=sorted(TASKS))
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Results:
    return Results(synthetic(tmp_path, request.param, TASKS[request.param]))


def test_outcomes_are_those_of_the_tasks_metrics(results: Results) -> None:
    metrics = TASKS[results.task]
    assert results.metrics == metrics
    columns = list(columns_of(metrics))
    assert [str(name) for name in results.outcomes][4:] == (columns)
    headline = (*metrics, *metrics)[1] if len(metrics) > 1 else metrics[0]
    expected = tuple(dict.fromkeys((f"test_{headline.name}", f"test_{metrics[0].name}")))
    assert results.default_outcomes == expected
    assert results.outcome().column == expected[0]
    with pytest.raises(InputError, match="unknown metric 'test_accuracy'"):
        results.points("oracle", "test_accuracy")


def test_directions_are_those_of_the_metrics(results: Results) -> None:
    for metric in results.metrics:
        column = f"test_{metric.name}"
        relation = results.relation("oracle", column)
        assert relation.higher_is_better == metric.higher_is_better
        points = results.points("oracle", column)
        by_hand = relate(
            points["score"].to_numpy(),
            points["outcome"].to_numpy(),
            higher_is_better=metric.higher_is_better,
        )
        assert relation == by_hand
        # Low scores are good here, whichever way the outcome is better.
        assert relation.agreement > 0.5
        assert relation.kendall.value * (-1 if metric.higher_is_better else 1) > 0.5
        best = points["outcome"].max() if metric.higher_is_better else points["outcome"].min()
        assert relation.best_outcome == best
    agreements = {
        one.relation.agreement
        for column in results.default_outcomes
        for one in results.assess(column, criteria=["oracle"])
    }
    assert len({round(value, 9) for value in agreements}) == 1


def test_every_door_of_the_results_opens(results: Results, tmp_path: Path) -> None:
    table = results.correlate()
    assert list(table["metric"].unique()) == list(results.default_outcomes)
    assert set(table["criterion"]) == {"oracle", "l1", "random"}
    assert results.plot().axes[0].get_ylabel() == results.outcome().axis
    replayed = results.replay()
    assert set(results.default_outcomes) < set(replayed["outcome"])
    assert results.ranking("oracle").n == 45
    for form in ("csv", "parquet"):
        written = results.export(tmp_path / "out", form)
        assert "metrics" in {path.stem for path in written}
    read = pd.read_csv(tmp_path / "out" / "metrics.csv", keep_default_na=False)
    assert read["name"].tolist() == [metric.name for metric in results.metrics]
    assert set(read["task"]) == {results.task}
    for rule in ("last", "last-5", "best-on-validation", "best-on-test"):
        assert results.relation("l1", rule=rule).n == 45


def test_labels_are_those_that_the_record_holds(results: Results) -> None:
    labels = [results.score(name).label for name in ("oracle", "l1", "random")]
    assert labels == ["pruned train loss", "L1 norm of the pruned filters", "score by random"]


def test_a_short_retraining_is_a_score_in_the_direction_of_the_outcome(tmp_path: Path) -> None:
    for task, metrics in TASKS.items():
        full = Results(synthetic(tmp_path / task, task, metrics))
        short = Results(synthetic(tmp_path / task, task, metrics, name="made-up@short", epochs=2))
        assert find_short(full, find_arms(full)) is not None
        both = full.with_short(short)
        for metric in metrics:
            column = f"test_{metric.name}"
            relation = both.relation(SHORT, column)
            assert relation.higher_score_is_better == metric.higher_is_better
            assert relation.agreement == relation.kendall.value > 0.5
            values = both.points(SHORT, column)["score"]
            best = values.max() if metric.higher_is_better else values.min()
            assert relation.chosen_score == best


def test_a_short_retraining_of_fewer_candidates_is_compared_where_both_are(tmp_path: Path) -> None:
    full = Results(synthetic(tmp_path, "segmentation", TASKS["segmentation"]))
    short = Results(
        synthetic(tmp_path, "segmentation", TASKS["segmentation"], name="made-up@short", epochs=2)
    )
    some = short.candidates["candidate"][:30]
    short.outcomes = short.outcomes[short.outcomes["candidate"].isin(some)]
    both = full.with_short(short)
    assert both.relation(SHORT).n == 30
    assert np.isnan(both.points(SHORT)["score"]).sum() == 15
    (found,) = both.assess(criteria=[SHORT])
    assert found.relation == both.relation(SHORT)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_records_before_metrics_are_of_classification(version: int, tmp_path: Path) -> None:
    results = Results(older_record(tmp_path, version))
    assert (results.task, results.metrics) == ("classification", CLASSIFICATION)
    assert results.default_outcomes == ("test_accuracy", "test_loss")
    assert results.score("oracle").label == "pruned train loss"
    assert results.score("l1").label == "score by l1"
    assert results.provenance[-1]["chance"] == 0.1
    assert results.relation("l1").n > 0
    assert len(results.export(tmp_path / "out")) == 7
    assert set(results.replay()["outcome"]) >= {"test_accuracy", "test_loss"}


@pytest.mark.slow
def test_a_classification_record_of_each_format_says_the_same(tmp_path: Path) -> None:
    for version in (2, 3):
        folder = older_record(tmp_path / str(version), version)
        before = Results(folder)
        with Store(folder) as store:
            store.check()
        after = Results(folder)
        for name, table in before.tables().items():
            pd.testing.assert_frame_equal(after.tables()[name], table)
        said: list[Any] = [
            [one.as_dict() for one in results.assess(column)]
            for results, column in itertools.product((before, after), before.default_outcomes)
        ]
        assert said[:2] == said[2:]


@pytest.mark.slow
def test_a_record_before_metrics_is_reported_and_exported(tmp_path: Path) -> None:
    before = Results(older_record(tmp_path, 3))
    assert before.outcomes.columns.tolist()[-6:] == list(columns_of(CLASSIFICATION))
    assert before.score("l1").label == "score by l1"
    assert verify(before.folder).state == "whole"
    assert write_report(before, [], tmp_path / "report").page.is_file()
    assert all(path.is_file() for path in before.export(tmp_path / "tables"))


def test_a_record_before_metrics_goes_on_and_is_reported(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    before = Results(older_record(tmp_path, 3))
    done = len(before.retrainings)
    progress = Recorder()
    after = Study(**tiny_fields, runs=tmp_path).run(progress=progress)
    assert after.folder == before.folder
    assert [stage[0] for stage in progress.stages] == ["retrain"]  # what it had not done
    assert len(after.retrainings) == 20 > done
    kept = after.outcomes.merge(before.outcomes, on=["candidate", "seed", "epoch"])
    assert len(kept) == len(before.outcomes)
    for column in columns_of(CLASSIFICATION):
        assert (kept[f"{column}_x"] == kept[f"{column}_y"]).all()
    assert after.score("l1").label == "L1 norm of the pruned filters"
    assert verify(after.folder).state == "whole"
    assert write_report(after, [], tmp_path / "report").page.is_file()
