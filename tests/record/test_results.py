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


@pytest.mark.parametrize("version", [2, 3])
def test_records_before_metrics_are_of_classification(version: int, tmp_path: Path) -> None:
    results = Results(older_record(tmp_path, version))
    assert (results.task, results.metrics) == ("classification", CLASSIFICATION)
    assert results.default_outcomes == ("test_accuracy", "test_loss")
    assert results.score("oracle").label == "pruned train loss"
    assert results.score("l1").label == "score by l1"
    assert results.provenance[-1]["chance"] == 0.1
    assert results.relation("l1").n > 0
    assert len(results.export(tmp_path / "out")) == 8
    assert set(results.replay()["outcome"]) >= {"test_accuracy", "test_loss"}


@pytest.mark.slow
def test_a_classification_record_of_each_format_says_the_same(tmp_path: Path) -> None:
    for version in (2, 3, 4, 5):
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
    # Its l1 is of an earlier version.
    assert [stage[0] for stage in progress.stages] == ["score by l1", "retrain"]
    assert len(after.retrainings) == 20 > done
    kept = after.outcomes.merge(before.outcomes, on=["candidate", "seed", "epoch"])
    assert len(kept) == len(before.outcomes)
    for column in columns_of(CLASSIFICATION):
        assert (kept[f"{column}_x"] == kept[f"{column}_y"]).all()
    assert after.score("l1").label == "L1 norm of the pruned filters"
    assert verify(after.folder).state == "whole"
    assert write_report(after, [], tmp_path / "report").page.is_file()


def test_a_record_before_blocks_says_that_it_has_none_and_gets_what_can_be_had(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    before = Results(older_record(tmp_path, 4))
    assert before.table().blocks is None
    assert before.tables()["blocks"].empty
    assert verify(before.folder).state == "whole"
    assert {one.interval_over for one in before.assess()} == {
        "10 filters, given the dense network, the retraining seed and the examples"
    }
    progress = Recorder()
    after = Study(**tiny_fields, runs=tmp_path).run(progress=progress)
    assert after.folder == before.folder
    # Its l1 is of an earlier version.
    assert [stage[0] for stage in progress.stages] == ["score by l1", "retrain"]
    # The second seed has blocks, and the dense network; the first seed's networks are gone.
    recorded = after.tables()["blocks"]
    assert recorded["seed"].dropna().unique().tolist() == [1]
    assert recorded["candidate"].isna().sum() == 2 * 2 * 20
    assert after.table().blocks is None
    assert after.assess()[0].interval_over.endswith("given the dense network and the examples")
    kept = after.outcomes.merge(before.outcomes, on=["candidate", "seed", "epoch"])
    assert (kept["test_loss_x"] == kept["test_loss_y"]).all()
    assert verify(after.folder).state == "whole"


def test_tables_have_the_last_epoch_by_blocks_of_examples(finished: Results) -> None:
    for column in ("test_loss", "test_accuracy", "validation_loss"):
        table = finished.table(column)
        blocks = table.blocks
        assert blocks is not None
        assert blocks.sums.shape == (10, 2, 20)
        assert blocks.counts.tolist() == [5] * 20
        np.testing.assert_allclose(blocks.means(range(20)), table.outcomes, rtol=1e-6)
    whole = finished.table("test_accuracy").blocks
    assert whole is not None
    assert (whole.sums == np.round(whole.sums)).all()  # right answers
    # Epochs before the last are recorded of all examples alone, as is training.
    assert finished.table("test_loss", "last-5").blocks is None
    assert finished.table("train_loss").blocks is None
    over = "2 retraining seeds, 20 blocks of examples and 10 filters, given the dense network"
    assert {one.interval_over for one in finished.assess("test_loss")} == {over}
    assert finished.assess("test_loss")[0].reliability.over == "retraining and examples"


def test_blocks_are_exported_by_network_column_and_block(finished: Results) -> None:
    made = finished.tables()["blocks"]
    assert len(made) == (10 * 2 + 1) * 4 * 20
    blocks = finished.table("test_loss").blocks
    assert blocks is not None
    of_one = made["candidate"] == finished.candidates["candidate"][3]
    own = made[of_one & (made["seed"] == 1) & (made["metric"] == "test_loss")]
    assert own["block"].tolist() == list(range(20))
    np.testing.assert_array_equal(own["sum"], blocks.sums[3, 1])
    of_dense = made[made["candidate"].isna() & (made["metric"] == "test_accuracy")]
    assert finished.dense is not None
    share = of_dense["sum"].sum() / of_dense["examples"].sum()
    assert share == pytest.approx(finished.dense["test_accuracy"], rel=1e-12)


def test_a_network_that_diverged_has_no_blocks_and_spoils_none(finished: Results) -> None:
    first = finished.candidates["candidate"][0]
    with Store(finished.folder) as store, store._transaction():
        change = "UPDATE retrainings SET diverged = 1, blocks = NULL WHERE candidate = ?"
        store._db.execute(change, (first,))
        for (one,) in store._db.execute("SELECT DISTINCT chunk FROM retrainings").fetchall():
            store._seal("retrainings", one)
    table = Results(finished.folder).table("test_loss")
    assert table.blocks is not None
    half = table.take(blocks=np.arange(10))
    assert half.diverged[0].all()
    assert half.outcome[0] == pytest.approx(half.finished.max(), rel=1e-11)
    assert np.isfinite(half.outcome).all()


def test_a_network_without_blocks_leaves_all_without(finished: Results) -> None:
    with Store(finished.folder) as store, store._transaction():
        store._db.execute("UPDATE retrainings SET blocks = NULL WHERE seed = 1")
        for (one,) in store._db.execute("SELECT DISTINCT chunk FROM retrainings").fetchall():
            store._seal("retrainings", one)
    assert Results(finished.folder).table("test_loss").blocks is None
