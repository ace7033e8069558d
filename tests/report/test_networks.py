"""Reports of studies over several dense networks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.report.test_report import read
from trueoracle.record.pooled import PooledResults
from trueoracle.report.grid import summarise_grid, write_grid_report
from trueoracle.report.page import write_report
from trueoracle.report.summary import summarise
from trueoracle.report.table import networks_table
from trueoracle.spec.grid import Variant


def test_a_summary_is_over_the_networks_and_has_each(three_networks: PooledResults) -> None:
    summary = json.loads(json.dumps(summarise(three_networks), allow_nan=False))
    assert (summary["state"], summary["candidates"]) == ("finished", 10)
    assert (summary["retrained"], summary["to_retrain"]) == (60, 60)
    assert summary["dense_seeds"] == [0, 1, 2]
    assert [one["dense_seeds"] for one in summary["networks"]] == [[0], [1], [2]]
    assert len({one["dense"]["sha256"] for one in summary["networks"]}) == 3
    for place, relation in enumerate(summary["relations"]):
        own = [one["relations"][place] for one in summary["networks"]]
        assert relation["networks"] == 3
        assert relation["kendall_tau"] == pytest.approx(sum(r["kendall_tau"] for r in own) / 3)
        assert relation["interval_over"].startswith("3 dense networks")
        assert " over 3 dense networks (" in relation["verdict"]
        assert all("given the dense network" in one["interval_over"] for one in own)
    assert summary["comparison"]["test_loss"]["differences"][0]["over"].startswith("3 dense")
    assert summary["comparison"]["test_loss"]["combination"] is None
    rows = networks_table(summary).rows
    assert len(rows) == 12
    assert [row[1] for row in rows[:3]] == ["0", "1", "2"]
    alone = summarise(three_networks.networks[1])
    assert (alone["networks"], alone["dense_seeds"]) == ([], [1])


@pytest.mark.slow
def test_a_page_has_one_verdict_over_all_and_a_row_for_each(three_networks: PooledResults) -> None:
    written = write_report(three_networks, [], three_networks.folder / "report")
    names = {path.name for path in written.figures}
    for column in ("test_accuracy", "test_loss"):
        for criterion in ("oracle", "l1"):
            assert f"tiny-{criterion}-{column}.svg" in names
            assert f"tiny-{criterion}-{column}-forest.svg" in names
    text = " ".join(" ".join(read(written.page).text).split())
    verdict = written.summaries[0]["relations"][0]["verdict"]
    assert text.count(verdict) == 1
    assert "3 dense networks, seeds 0, 1, 2" in text
    assert "10 candidates of each: every way to prune" in text
    assert "each dense network" in text
    assert "dense network 2, 20" in text  # provenance


@pytest.mark.slow
def test_networks_of_a_grid_are_clusters(three_networks: PooledResults) -> None:
    # The same networks at another point, as if another ratio had come to the same.
    points = [
        Variant(three_networks.spec, "grid", f"ratio-{ratio}", {"ratio": ratio})
        for ratio in (0.1, 0.2)
    ]
    recorded = {point.label: three_networks for point in points}
    summary = summarise_grid(points, recorded)
    for meta in summary["meta"]:
        assert (len(meta["studies"]), meta["clusters"]) == (6, 3)
        by = {slope["by"]: slope for slope in meta["slopes"]}
        assert by["ratio"]["slope"] == pytest.approx(0, abs=1e-9)
        assert "dense test loss" in by
        labels = [one["label"] for one in meta["studies"]]
        assert labels[:2] == ["ratio-0.1, network 0", "ratio-0.1, network 1"]
    # Six studies of three networks say no more than three do.
    alone = summarise_grid(points[:1], {points[0].label: three_networks})["meta"]
    for one, other in zip(alone, summary["meta"], strict=True):
        assert (one["tau"], one["low"], one["high"]) == pytest.approx(
            (other["tau"], other["low"], other["high"])
        )
    written = write_grid_report(points, recorded, three_networks.folder / "grid")
    text = " ".join(read(written.page).text)
    assert "Over 6 studies of 3 dense networks" in text
    # A point of which a network is missing is reported as far as it has come.
    partial = [replace(points[0], label="ratio-0.1"), points[1]]
    assert summarise_grid(partial, {"ratio-0.1": three_networks})["points"][1]["summary"] is None
