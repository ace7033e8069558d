"""Studies over several dense networks, as they are recorded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.cli.test_cli import call
from trueoracle.analysis.assessment import assess
from trueoracle.errors import InputError, StoreError
from trueoracle.record.networks import is_recorded, read_networks, runs_of, write_networks
from trueoracle.record.paths import DATABASE, NETWORKS
from trueoracle.record.pooled import PooledResults, open_results
from trueoracle.record.results import SHORT, Results
from trueoracle.record.runs import (
    find_arms,
    find_run,
    find_short,
    last_run,
    recorded_runs,
    recorded_studies,
)
from trueoracle.record.status import read_status
from trueoracle.record.verify import verify
from trueoracle.study import Study


def test_the_study_is_found_and_its_networks_have_runs_of_their_own(
    three_networks: PooledResults,
) -> None:
    folder, runs = three_networks.folder, three_networks.folder.parent
    assert read_networks(folder) == three_networks.spec
    assert folder.name == three_networks.spec.folder_name
    assert set(recorded_runs(runs)) == set(runs_of(folder))
    assert [Results(run).spec.dense.seed for run in runs_of(folder)] == [0, 1, 2]
    assert recorded_studies(runs) == [last_run(runs)] == [find_run("tiny", runs)] == [folder]
    assert find_run(folder.name, runs) == find_run(str(folder), runs) == folder
    one = runs_of(folder)[1]
    assert find_run(one.name, runs) == one
    assert (runs_of(one), is_recorded(one), is_recorded(folder)) == ([one], True, True)
    for settings in ({"dense.seeds": [1]}, {"dense": {"seeds": [1]}}):
        assert find_run(str(folder), runs, settings) == one
        with pytest.raises(InputError, match="which takes no --set"):
            find_run(str(one), runs, settings)
    for other in ({"dense.seeds": [3]}, {"dense.seeds": [1], "dense.epochs": 9}, {"x.y": 3}):
        with pytest.raises(InputError, match=r"chooses one recorded network \(of 0, 1, 2\)"):
            find_run(folder.name, runs, other)
    assert type(open_results(one)) is Results
    assert type(open_results(folder)) is PooledResults


def test_statistics_are_taken_within_networks_and_pooled(three_networks: PooledResults) -> None:
    results = three_networks
    assert results.finished
    assert results.criteria == ["oracle", "l1"]
    tables = [one.table("test_loss") for one in results.networks.values()]
    assert repr(results.assess("test_loss")) == repr(assess(tables))
    frame = results.correlate()
    assert set(frame["networks"]) == {3}
    assert set(frame["interval_over"]) == {"3 dense networks and 20 blocks of examples"}
    each = [one.correlate() for one in results.networks.values()]
    np.testing.assert_allclose(
        frame["kendall_tau"], np.mean([one["kendall_tau"] for one in each], axis=0)
    )
    relation = results.relation("l1", "test_loss")
    assert relation.n == 30
    assert (
        relation.kendall.value
        == frame.set_index(["criterion", "metric"]).at[("l1", "test_loss"), "kendall_tau"]
    )
    losses = [(one.dense or {})["test_loss"] for one in results.networks.values()]
    assert (results.dense or {})["test_loss"] == pytest.approx(np.mean(losses))
    assert len(set(losses)) == 3


def test_tables_have_the_rows_of_all_networks(three_networks: PooledResults) -> None:
    tables, each = three_networks.tables(), three_networks.networks
    for name in ("candidates", "scores", "outcomes", "retrainings", "dense_epochs", "blocks"):
        assert tables[name].columns[0] == "dense_seed"
        for seed, one in each.items():
            own = tables[name].loc[tables[name]["dense_seed"] == seed].drop(columns="dense_seed")
            pd.testing.assert_frame_equal(own.reset_index(drop=True), one.tables()[name])
    points = three_networks.points("l1", "test_loss")
    assert points.groupby("dense_seed").size().tolist() == [10, 10, 10]
    assert points["score"].tolist() == three_networks.score("l1").values.tolist()
    assert len(three_networks.plot("l1").axes) == 3


@pytest.mark.parametrize("method", ["table", "ranking", "replay"])
def test_what_is_of_one_network_is_asked_of_one(three_networks: PooledResults, method: str) -> None:
    with pytest.raises(InputError, match=rf"3 dense networks, and {method} is of one: results\.ne"):
        getattr(three_networks, method)()
    getattr(three_networks.networks[0], method)()


def test_a_study_that_has_not_come_to_all_networks_says_so(three_networks: PooledResults) -> None:
    folder = three_networks.folder
    shutil.rmtree(runs_of(folder)[2])
    left = PooledResults(folder)
    status = left.status()
    assert status == read_status(folder)
    assert (status["state"], status["candidates"]) == ("interrupted", 10)
    assert (status["retrained"], status["to_retrain"]) == (40, 60)
    assert (status["scored"], status["to_score"]) == (40, 60)
    assert status["dense_seeds"] == [0, 1, 2]
    assert [one["state"] for one in status["networks"]] == ["finished", "finished"]
    assert not left.finished
    # Two networks are too few to leave one out.
    assert {one.networks for one in left.assess()} == {2}
    assert "given these 2 dense networks" in left.assess()[0].interval_over
    for run in runs_of(folder):
        shutil.rmtree(run, ignore_errors=True)
    assert not is_recorded(folder)
    assert recorded_studies(folder.parent) == []
    with pytest.raises(StoreError, match="nothing is recorded of the dense networks of"):
        PooledResults(folder)


def test_a_study_of_one_network_shares_its_record(three_networks: PooledResults) -> None:
    spec, runs = three_networks.spec, three_networks.folder.parent
    before = {run: (run / DATABASE).stat().st_size for run in recorded_runs(runs)}
    alone = Study(spec, overrides={"dense.seeds": [1]}, runs=runs)
    assert alone.folder == runs_of(three_networks.folder)[1]
    assert alone.results().finished
    fewer = Study(spec, overrides={"dense.seeds": [2, 0]}, runs=runs)
    results = fewer.run(progress=False)
    assert isinstance(results, PooledResults)
    assert list(results.networks) == [2, 0]
    assert set(recorded_runs(runs)) == set(before)
    assert set(recorded_studies(runs)) == {three_networks.folder, fewer.folder}


def test_changed_seeds_in_the_file_of_networks_are_noticed(three_networks: PooledResults) -> None:
    path = three_networks.folder / NETWORKS
    assert verify(path.parent).state == "whole"
    written = json.loads(path.read_text())
    written["study"]["dense"]["seeds"] = [0, 1]
    path.write_text(json.dumps(written))
    with pytest.raises(StoreError, match=r"networks\.json: it does not have the checksum"):
        PooledResults(path.parent)
    called = call("verify", path.parent)
    assert (called.code, called.out.count("damaged  networks.json")) == (4, 1)
    assert call("verify", "--runs", path.parent.parent, "--repair").code == 4
    del written["sha256"]  # as older versions wrote it
    path.write_text(json.dumps(written))
    assert verify(path.parent).state == "unchecked"
    assert list(PooledResults(path.parent).networks) == [0, 1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "study": {}}'])
def test_a_damaged_file_of_networks_is_one_line_and_listed(
    three_networks: PooledResults, content: str
) -> None:
    folder = three_networks.folder
    (folder / NETWORKS).write_text(content)
    with pytest.raises(StoreError, match=NETWORKS) as caught:
        PooledResults(folder)
    assert "\n" not in str(caught.value)
    assert folder in recorded_studies(folder.parent)
    write_networks(folder, three_networks.spec)
    assert PooledResults(folder).finished


@pytest.mark.slow
def test_arms_and_short_retrainings_are_over_the_networks_too(
    three_networks: PooledResults,
) -> None:
    spec, runs = three_networks.spec, three_networks.folder.parent
    short = Study(
        spec.model_copy(update={"name": "tiny@short", "roles": {"short": "short"}}),
        overrides={"retraining.epochs": 1},
        runs=runs,
    ).run(progress=False)
    (arm,) = find_arms(three_networks)
    assert arm.folder == short.folder
    assert find_short(three_networks, [arm]) is arm
    assert find_short(three_networks.networks[0], [arm]) is None
    both = three_networks.with_short(arm)
    (assessed,) = both.assess("test_loss", criteria=[SHORT])
    assert (assessed.networks, assessed.relation.n) == (3, 30)
    with pytest.raises(InputError, match="prune different networks"):
        three_networks.with_short(three_networks.networks[0])
