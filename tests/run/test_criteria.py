"""Criteria in a study: those that do not apply, and those that know how it retrains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import trueoracle
from tests.conftest import kept_criteria
from trueoracle.criteria.base import CRITERIA
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, NotApplicableError
from trueoracle.pruning.candidates import Candidates
from trueoracle.record.results import Results
from trueoracle.record.status import read_status
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study
from trueoracle.training.recipe import Retraining

NO_NORM = "criterion 'bn-scale': no batch norm with a scale follows conv1"


class Listener(SilentProgress):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.stages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.stages.append(name)


def test_a_criterion_that_does_not_apply_is_skipped(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {"criteria": ["bn-scale", "l1", "oracle-bn"]}
    study, progress = Study(**fields, runs=tmp_path), Listener()
    results = study.score(progress=progress)
    reasons = {
        "bn-scale": NO_NORM,
        "oracle-bn": "criterion 'oracle-bn': the network has no batch norm",
    }
    assert results.skipped == reasons
    assert [m for m in progress.messages if m.startswith("skipped")] == [
        f"skipped: {reason}" for reason in reasons.values()
    ]
    assert progress.stages == ["dense network", "score by l1"]
    assert results.criteria == ["l1"]
    with pytest.raises(InputError, match=f"tiny: {NO_NORM}"):
        results.ranking("bn-scale")
    status = read_status(study.folder)
    assert status["skipped"] == reasons
    assert (status["scored"], status["to_score"], status["state"]) == (10, 10, "scored")
    again = Listener()
    finished = study.run(progress=again)
    assert finished.finished
    assert not any(message.startswith("skipped") for message in again.messages)
    assert finished.skipped == reasons
    assert "skipped" not in finished.provenance[-1]


def test_a_study_needs_a_criterion_that_applies(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    study = Study(**(tiny_fields | {"criteria": ["bn-scale", "oracle-bn"]}), runs=tmp_path)
    with pytest.raises(InputError, match=f"no criterion of the study applies: {NO_NORM}"):
        study.prepare()
    single = {"kind": "unstructured", "layers": {"conv1": 0.5}, "candidates": 4}
    fields = tiny_fields | {"criteria": ["fpgm", "l1"], "pruning": single}
    assert Study(**fields, runs=tmp_path).prepare().skipped == {
        "fpgm": "criterion 'fpgm': it is of filters, and single weights are pruned"
    }


def test_without_validation_images_that_criterion_is_skipped(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {"criteria": ["oracle", "oracle-validation"]}
    assert not Study(**fields, runs=tmp_path).prepare().skipped
    fields["data"] = {"name": "tiny", "validation_images": 0}
    assert list(Study(**fields, runs=tmp_path).prepare().skipped) == ["oracle-validation"]


@pytest.mark.slow
def test_a_reason_that_only_all_images_show_is_taken_too(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_criteria(monkeypatch)

    @trueoracle.criterion("choosy")
    def choosy(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        if len(data.train) > 64:
            raise NotApplicableError("there are many images")
        return [0.0] * len(candidates)

    fields = tiny_fields | {"criteria": ["choosy", "l1"]}
    results = Study(**fields, runs=tmp_path).run(progress=False)
    assert results.finished
    assert results.skipped == {"choosy": "criterion 'choosy': there are many images"}
    # Where that leaves none, nothing is retrained.
    alone = Study(**tiny_fields | {"criteria": ["choosy"]}, runs=tmp_path / "alone")
    with pytest.raises(InputError, match="no criterion of the study applies: criterion 'choosy'"):
        alone.run(progress=False)
    assert alone.results().counts["retrainings"] == 0


def test_a_reason_found_in_a_few_images_is_none(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_criteria(monkeypatch)

    @trueoracle.criterion("rare")
    def rare(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        if len(data.train) <= 64:
            raise NotApplicableError("no image has one", of_images=True)
        return [0.0] * len(candidates)

    study = Study(**tiny_fields | {"criteria": ["rare"]}, runs=tmp_path)
    assert not study.prepare().skipped
    assert study.score(progress=False).scores["rare"].notna().all()


def test_one_that_fails_halfway_is_not_judged_by_its_half(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_criteria(monkeypatch)

    @trueoracle.criterion("halfway", separable=True)
    def halfway(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        if candidates.ways[0][0][0] > 0:
            raise NotApplicableError("not of these")
        return [0.0] * len(candidates)

    fields = tiny_fields | {"criteria": ["halfway", "l1"], "pruning": {"layers": {"conv1": 0.2}}}
    results = Study(**fields, runs=tmp_path).score(progress=False)
    assert results.scores["halfway"].notna().sum() == 32  # a chunk
    assert results.criteria == ["l1"]
    with pytest.raises(InputError, match="not of these"):
        results.points("halfway")


def test_a_criterion_is_told_how_candidates_are_retrained(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_criteria(monkeypatch)

    @trueoracle.criterion("rate", uses_recipe=True)
    def rate(
        dense: nn.Module, candidates: Candidates, data: Splits, recipe: Retraining
    ) -> list[float]:
        return [recipe.learning_rate] * len(candidates)

    results = Study(**(tiny_fields | {"criteria": ["rate"]}), runs=tmp_path).score(progress=False)
    assert set(results.scores["rate"]) == {0.01}
    study = Study(**tiny_fields, runs=tmp_path).prepare()
    assert set(rate(study.network, study.candidates, study.data)) == {Retraining().learning_rate}


@pytest.mark.slow
def test_scores_that_depend_on_the_recipe_are_taken_over_with_it_only(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {"criteria": ["l1", "gradient-flow"]}
    first = Study(**fields, runs=tmp_path).score(progress=False)
    slower = tiny_fields["retraining"] | {"learning_rate": 0.002}
    seeds = tiny_fields["retraining"] | {"seeds": [7]}

    def scored(retraining: dict[str, Any]) -> tuple[list[str], Results]:
        progress = Listener()
        study = Study(**(fields | {"retraining": retraining}), runs=tmp_path)
        results = study.score(progress=progress)
        return progress.stages, results

    stages, other = scored(slower)
    assert stages == ["score by gradient-flow"]
    assert not np.allclose(other.scores["gradient-flow"], first.scores["gradient-flow"], rtol=1e-3)
    stages, same = scored(seeds)
    assert stages == []
    assert same.scores["gradient-flow"].tolist() == first.scores["gradient-flow"].tolist()


def test_what_is_the_importance_of_filters_is_computed_once(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    kept_criteria(monkeypatch)

    def counted(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        sizes.append(len(candidates))
        return [0.0] * len(candidates)

    trueoracle.criterion("whole", separable=True, at_once=True)(counted)
    pruning = {"layers": {"conv1": 0.3}}  # 120 ways
    fields = tiny_fields | {"criteria": ["whole"], "pruning": pruning}
    Study(**fields, runs=tmp_path).score(progress=False)
    assert sizes == [3, 120]  # tried, and scored


def test_criteria_with_parameters_are_criteria_of_their_own(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    names = ["taylor:batch=0", "taylor:batch=8", "l1:raw=true", "l1"]
    results = Study(**(tiny_fields | {"criteria": names}), runs=tmp_path).score()
    assert results.criteria == names
    assert (results.scores["taylor:batch=0"] < results.scores["taylor:batch=8"]).all()
    assert results.scores["l1"].tolist() == results.scores["l1:raw=true"].tolist()
    around = tiny_fields["pruning"] | {"candidates": "around:l1:raw=true", "count": 4}
    study = Study(**(tiny_fields | {"criteria": ["l1"], "pruning": around}), runs=tmp_path)
    assert study.score().scores["l1"].argmin() == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("taylor:batch=-1", "batch is -1, expected a number of examples"),
        ("taylor:batches=8", r"no parameter 'batches' \(its parameters: batch=256\)"),
        ("grasp:temperature=hot", "temperature is 'hot', expected a number"),
    ],
)
def test_parameters_are_refused_before_anything_long(
    name: str, reason: str, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    study = Study(**(tiny_fields | {"criteria": ["l1", name]}), runs=tmp_path)
    with pytest.raises(InputError, match=reason):
        study.prepare()


def test_scores_of_an_older_version_are_computed_anew(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(**(tiny_fields | {"criteria": ["l1", "l2"]}), runs=tmp_path)
    before = study.score()
    newer = replace(CRITERIA["l1"], version=99, function=lambda *_: np.arange(10.0))
    # As if it were shipped, with another definition.
    newer.function.__module__ = "trueoracle.criteria.magnitude"
    monkeypatch.setitem(CRITERIA._entries, "l1", newer)
    progress = Listener()
    after = Study(**(tiny_fields | {"criteria": ["l1", "l2"]}), runs=tmp_path).score(
        progress=progress
    )
    assert "criterion l1: its code may have changed, so it is scored anew" in progress.messages
    assert sorted(after.scores["l1"]) == list(range(10))
    assert after.scores["l2"].tolist() == before.scores["l2"].tolist()
