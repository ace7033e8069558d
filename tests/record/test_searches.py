"""What a record says of its searches, and what is said of them where nothing else is recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trueoracle.record.paths import SEARCHES
from trueoracle.record.results import Results
from trueoracle.record.searches import is_searched, recorded_searches
from trueoracle.report.headline import MOST_WORDS
from trueoracle.study import Study
from trueoracle.tasks.metric import CLASSIFICATION


@pytest.mark.slow
def test_what_a_search_found_is_in_its_record_and_in_the_report(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    study = Study(**tiny_fields, runs=tmp_path / "runs")
    found = study.search(4, progress=False)
    results = study.results()
    (one,) = results.searches
    assert one["chosen"] == found.chosen
    assert one["pruned"] == {name: list(which) for name, which in found.pruned.items()}
    assert [one[name] for name in ("strategy", "criterion", "by", "seed")] == [
        found.strategy, found.criterion, found.by, found.seed
    ]  # fmt: skip
    assert one["outcome"] == {name: found.outcome.values[name] for name in one["outcome"]}
    assert one["networks"] == found.history["candidate"].nunique()
    assert (one["epochs"], one["complete"]) == (found.spent, True)
    assert found.latency == results.latency
    assert found.as_dict()["latency"]["batch"][0] == 1

    written = results.report(tmp_path / "report")
    text = " ".join(re.sub("<[^>]*>", " ", written.page.read_text(encoding="utf-8")).split())
    headline = re.search(r"Unclear\. Only a search has retrained networks, .*?\.", text)
    assert headline
    assert len(headline[0].split()) <= MOST_WORDS
    assert "No network has been retrained" not in text
    assert f"and chose candidate {found.chosen}, which prunes conv1" in text
    assert f"test accuracy {found.outcome.values['test_accuracy']:.4f}" in text
    assert "What the data cannot tell" not in text  # there is nothing to say
    assert written.summaries[0]["searches"][0]["chosen"] == found.chosen


def laid_down(folder: Path, text: str) -> Path:
    path = folder / SEARCHES / "guided-1" / "search.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def epochs_of(*losses: float | None) -> list[dict[str, Any]]:
    return [{"epoch": e, "validation_loss": loss} for e, loss in enumerate(losses)]


FIELDS: dict[str, Any] = {
    "settings": {
        "strategy": "guided", "criterion": None, "by": "validation_loss", "seed": 0,
        "rungs": [[3, 1], [2, 2]],
    },
    "rungs": [["a", "b", "c"], ["a", "b"]],
    "epochs": {"a": epochs_of(3.0, 2.0), "b": epochs_of(4.0, 1.0), "c": epochs_of(0.5)},
}  # fmt: skip


def test_the_best_of_the_last_rung_is_chosen(tmp_path: Path) -> None:
    laid_down(tmp_path, json.dumps(FIELDS))
    (one,) = recorded_searches(tmp_path, CLASSIFICATION)
    assert (one["chosen"], one["networks"], one["epochs"]) == ("b", 3, 5)
    assert one["outcome"]["validation_loss"] == 1.0
    assert one["outcome"]["test_loss"] is None
    for loss, chosen in ((None, "a"), (2.0, "a")):  # diverged; as good as the first one
        epochs = FIELDS["epochs"] | {"b": epochs_of(4.0, loss)}
        laid_down(tmp_path, json.dumps(FIELDS | {"epochs": epochs}))
        assert recorded_searches(tmp_path, CLASSIFICATION)[0]["chosen"] == chosen


def test_a_network_that_diverged_is_not_chosen_for_its_accuracy(tmp_path: Path) -> None:
    def last(accuracy: float, train_loss: float | None) -> list[dict[str, Any]]:
        return [{"epoch": 1, "validation_accuracy": accuracy, "train_loss": train_loss}]

    settings = FIELDS["settings"] | {"by": "validation_accuracy"}
    for diverged in (None, float("nan")):
        epochs = {"a": last(0.1, 2.0), "b": last(0.2, diverged), "c": last(0.0, 2.0)}
        laid_down(tmp_path, json.dumps(FIELDS | {"settings": settings, "epochs": epochs}))
        (one,) = recorded_searches(tmp_path, CLASSIFICATION)
        assert one["chosen"] == "a"


def test_a_search_under_way_or_without_a_network_that_converged_has_chosen_none(
    tmp_path: Path,
) -> None:
    laid_down(tmp_path, json.dumps(FIELDS | {"rungs": FIELDS["rungs"][:1]}))
    (one,) = recorded_searches(tmp_path, CLASSIFICATION)
    assert (one["complete"], one["chosen"], one["outcome"]) == (False, None, None)
    assert not is_searched(tmp_path)
    epochs = {name: epochs_of(None, None) for name in "abc"}
    laid_down(tmp_path, json.dumps(FIELDS | {"epochs": epochs}))
    (one,) = recorded_searches(tmp_path, CLASSIFICATION)
    assert (one["complete"], one["chosen"], one["outcome"]) == (True, None, None)
    assert is_searched(tmp_path)


def test_damaged_records_and_other_files_are_left_out(tmp_path: Path) -> None:
    settings: dict[str, Any] = FIELDS["settings"]
    for damage in (
        "", "[]", "{}", '{"settings": 1}', json.dumps(FIELDS | {"epochs": {}}),
        json.dumps(FIELDS | {"epochs": []}), json.dumps(FIELDS | {"rungs": None}),
        json.dumps(FIELDS | {"settings": settings | {"by": "nothing"}}),
        json.dumps(FIELDS | {"settings": settings | {"candidate": "a"}}),
        json.dumps(FIELDS | {"sha256": "0"}),
    ):  # fmt: skip
        laid_down(tmp_path, damage)
        assert recorded_searches(tmp_path, CLASSIFICATION) == [], damage


def test_a_study_without_a_search_has_none(finished: Results) -> None:
    assert finished.searches == []
    assert finished.summary()["searches"] == []
