"""Studies under way, and studies whose networks diverged: all that is shown of them agrees."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.record.records import synthetic, synthetic_networks, with_diverged, with_few
from tests.report.test_honesty import data_of
from trueoracle.analysis.assessment import assess
from trueoracle.errors import InputError
from trueoracle.record.networks import read_networks
from trueoracle.record.pooled import PooledResults, open_results
from trueoracle.record.results import Results
from trueoracle.record.runs import find_run
from trueoracle.record.status import read_status
from trueoracle.record.store import Failed, Store
from trueoracle.report.drawings import Folder, scatter_values
from trueoracle.report.page import study_page
from trueoracle.tasks.metric import CLASSIFICATION

KEPT = Path(__file__).parents[2] / "examples" / "reports"


def made(folder: Path, **how: Any) -> Path:
    return synthetic(folder, "classification", CLASSIFICATION, **how)


@pytest.mark.parametrize("candidates", [1, 2, 9])
def test_a_few_candidates_of_all(candidates: int, tmp_path: Path) -> None:
    # Of nine ways to prune two of ten filters, all prune the first one: without it none is left.
    run = made(tmp_path)
    with_few(run, candidates)
    results = Results(run)
    text, (summary, *_) = study_page(results, [], Folder(None))
    assert f"{3 * candidates} of 135 networks are retrained" in text
    assert {one["n"] for one in summary["relations"]} == {candidates}
    assert results.best["outcome"] == pytest.approx(results.by_seed().mean(axis=1).max())


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [1, 3, 10])
def test_a_few_candidates_of_a_study_with_blocks(candidates: int, tmp_path: Path) -> None:
    with tarfile.open(KEPT / "two-wirings.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = find_run(str(KEPT / "two-wirings.toml"), tmp_path)
    with_few(run, candidates, seeds=1)
    text, (summary, *_) = study_page(Results(run), [], Folder(None))
    assert f"{candidates} of 90 networks are retrained" in text
    assert {one["n"] for one in summary["relations"]} == {candidates}


def shown(run: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The summary of a study, what its page draws of its first network, and the page."""
    text, (summary, *_) = study_page(Results(run), [], Folder(run.parent / "figures"))
    return summary, data_of(text)["studies"][0]["networks"][0], text


def test_what_diverged_is_the_worst_in_numbers_figures_and_page_alike(tmp_path: Path) -> None:
    run = made(tmp_path)
    chosen = int(np.argmin(Results(run).score("oracle").values))
    with_diverged(
        run, lambda place, seed: (place, seed) == (chosen, 0) or (seed == 1 and place % 4 == 0)
    )
    summary, drawn, _ = shown(run)
    results = Results(run)
    for relation in summary["relations"]:
        points = results.points(relation["criterion"], relation["metric"])
        assert relation["n"] == points["outcome"].notna().sum() == 45
        own = drawn["relations"][relation["criterion"]][relation["metric"]]
        assert own["mean"]["chosen"] == [int(points["score"].argmin())]
        assert len(own["mean"]["better"]) == relation["anomalies"]
        for seed in ("0", "1", "2"):
            assert own[seed]["chosen"] == own["mean"]["chosen"]
            assert f"of 45; anomalies: {len(own[seed]['better']) / 45:.1%}" in own[seed]["facts"]
            assert None not in drawn["outcomes"][relation["metric"]][seed]
        drawing = scatter_values(results, relation, "last", points, "")
        assert f"anomaly ratio {relation['anomaly_ratio']:.1%} of 45" in drawing.note
    assert results.by_seed("test_accuracy").iloc[chosen, 0] == results.by_seed().min().min()
    assert results.by_seed("test_loss").iloc[chosen, 0] == results.by_seed("test_loss").max().max()


def test_a_study_of_which_every_candidate_diverged_with_some_seed(tmp_path: Path) -> None:
    run = made(tmp_path, pruned=(2, 5))
    with_diverged(run, lambda place, seed: place % 3 == seed)
    summary, _, _ = shown(run)
    assert {(one["n"], one["diverged"]) for one in summary["relations"]} == {(10, 10)}
    results = Results(run)
    assert results._repr_html_()
    assert results.plot("oracle", "test_loss")
    assert results.figures(tmp_path / "drawn", ["svg"])


def test_a_study_of_which_every_network_diverged(tmp_path: Path) -> None:
    run = made(tmp_path, pruned=(2, 5))
    with_diverged(run, lambda place, seed: True)
    text, (summary, *_) = study_page(Results(run), [], Folder(None))
    assert "Unclear. Every network that was retrained diverged." in re.sub("<[^>]+>", "", text)
    assert summary["relations"] == []
    with pytest.raises(InputError, match="every network that was retrained diverged"):
        _ = Results(run).best
    with pytest.raises(InputError, match="Every network that was retrained diverged"):
        Results(run).figures(tmp_path / "figures")


def of_network(folder: Path, seed: int) -> Path:
    """The run of one dense network of a study over several."""
    whole = read_networks(folder)
    return folder.parent / next(o.folder_name for o in whole.networks if o.dense.seed == seed)


def test_a_study_whose_next_network_is_begun(tmp_path: Path) -> None:
    folder = synthetic_networks(tmp_path, "classification", CLASSIFICATION)
    run = of_network(folder, 2)
    with Store(run) as store, store._transaction():
        for table in ("scores", "criteria", "retrainings", "outcomes"):
            store._drop(table)
    results = open_results(folder)
    assert results.criteria == ["oracle", "l1", "random"]
    text, (summary, *_) = study_page(results, [], Folder(None))
    assert {one["n"] for one in summary["relations"]} == {90}
    assert {one["networks"] for one in summary["relations"]} == {2}
    assert "270 of 405 networks are retrained" in text


def test_a_network_of_which_one_candidate_is_retrained_is_not_compared_yet(tmp_path: Path) -> None:
    folder = synthetic_networks(tmp_path, "classification", CLASSIFICATION, seeds=(0, 1))
    with_few(of_network(folder, 1), 1)
    results = open_results(folder)
    assert isinstance(results, PooledResults)
    _, (summary, *_) = study_page(results, [], Folder(None))
    alone = results.networks[0].summary()
    for over, one in zip(summary["relations"], alone["relations"], strict=True):
        assert (over["n"], over["agreement"]) == (one["n"], one["agreement"])
        assert "the same for" not in over["verdict"]


def test_a_network_that_cannot_be_compared_leaves_the_others_theirs(tmp_path: Path) -> None:
    folder = synthetic_networks(tmp_path, "classification", CLASSIFICATION)
    with_diverged(of_network(folder, 2), lambda place, seed: True)
    results = open_results(folder)
    text, (summary,) = study_page(results, [], Folder(tmp_path / "figures"))
    relation = summary["relations"][0]
    assert (relation["networks"], relation["n"]) == (2, 90)
    assert [one["label"] for one in data_of(text)["studies"][0]["networks"]] == ["0", "1"]
    assert results._repr_html_()
    assert results.figures(tmp_path / "drawn", ["svg"])
    own = [results.networks[seed].relation("oracle").agreement for seed in (0, 1)]
    assert relation["agreement"] == pytest.approx(np.mean(own))


def test_a_candidate_that_failed_counts_nowhere(tmp_path: Path) -> None:
    run = made(tmp_path)
    lowest = int(np.argmin(Results(run).score("oracle").values))
    with_diverged(run, lambda place, seed: (place, seed) == (lowest, 0))
    name = Results(run).candidates["candidate"][lowest]
    with Store(run) as store:
        store.record_failed([Failed(str(name), 1, "ValueError: no")])
    results = Results(run)
    assert results.by_seed().loc[name].isna().all()
    rest = results.table("test_loss")
    (found, *_) = assess(rest)
    (alone, *_) = assess(rest.take(np.delete(np.arange(45), lowest)))
    assert (found.relation.n, found.selection) == (44, alone.selection)


def test_networks_of_unequal_numbers_of_candidates_are_told_by_shares(tmp_path: Path) -> None:
    folder = synthetic_networks(tmp_path, "classification", CLASSIFICATION, seeds=(0, 1))
    with_few(of_network(folder, 1), 8)
    relations = open_results(folder).summary()["relations"]
    relation = next(one for one in relations if one["criterion"] == "random")
    share = f"on average {relation['anomaly_ratio']:.1%} of a network's candidates end better"
    assert share in relation["verdict"]


@pytest.mark.parametrize("behind", ["made-up", "made-up@short"])
def test_a_short_retraining_beside_networks_that_one_of_both_lacks(
    behind: str, tmp_path: Path
) -> None:
    both = {
        name: synthetic_networks(
            tmp_path, "classification", CLASSIFICATION, seeds=(0, 1), name=name, epochs=epochs
        )
        for name, epochs in (("made-up@short", 2), ("made-up", 3))
    }
    with Store(of_network(both[behind], 1)) as store, store._transaction():
        for table in ("retrainings", "outcomes"):
            store._drop(table)
    full, short = (open_results(both[name]) for name in ("made-up", "made-up@short"))
    shared = full.with_short(short).networks
    assert [seed for seed, one in shared.items() if one.short is not None] == [0]
    text, (summary, _) = study_page(full, [short], Folder(None))
    assert summary["short_retraining"]["relations"]
    expected = [1, 2] if behind == "made-up" else [2, 1]
    assert [len(one["networks"]) for one in data_of(text)["studies"]] == expected


def test_scores_of_a_criterion_that_was_skipped_later_do_not_count(tmp_path: Path) -> None:
    run = made(tmp_path)
    with Store(run) as store:
        facts = {
            "skipped": {"l1": "it failed on the last candidate"},
            "device": "cpu",
            "threads": 1,
        }
        sitting = store.begin("2026-01-02T00:00:00+00:00", store.spec() or {}, facts)
        store.end(sitting, "2026-01-02T00:01:00+00:00")
    for status in (read_status(run), Results(run).status()):
        assert (status["scored"], status["to_score"], status["state"]) == (90, 90, "finished")


@pytest.mark.slow
def test_ties_are_no_anomalies(tmp_path: Path) -> None:
    # Outcomes of the page have six digits; what ends better is told by all of them.
    with tarfile.open(KEPT / "two-wirings.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for arm in ("", "@as-released"):
        run = find_run(f"{KEPT}/two-wirings.toml{arm}", tmp_path)
        summary, drawn, _ = shown(run)
        for one in summary["relations"]:
            own = drawn["relations"][one["criterion"]][one["metric"]]["mean"]
            if one["tied"] == 1:
                assert len(own["better"]) == one["anomalies"], (arm, one["criterion"])
