"""Language models from start to outcomes: adapters, accumulation, schedules by steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import TOKENS, reader
from trueoracle.data.splits import Split
from trueoracle.errors import InputError
from trueoracle.study import Study
from trueoracle.tasks.language import IGNORED

FIELDS: dict[str, Any] = {
    "task": "answers",
    "criteria": ["oracle"],
    "pruning": {"layers": {"blocks.0.up": 0.5}, "candidates": 2},
}
RETRAINING: dict[str, Any] = {
    "epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 8,
    "accumulate": 4,
    "optimizer": "adamw",
    "learning_rate": 0.05,
    "schedule": "cosine",
    "schedule_per": "step",
    "warmup": 0.25,
    "seeds": [0],
    "lora": {"rank": 2, "train": ["*norm*"]},
}


def texts(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TOKENS, (count, 6), generator=generator)
    labels = ids.masked_fill(torch.arange(6) < 2 + torch.arange(count)[:, None] % 3, IGNORED)
    return Split({"input_ids": ids, "labels": labels})


def study(runs: Path, **changes: Any) -> Study:
    return Study(
        name="read",
        network=copy.deepcopy(reader()),
        data=(texts(24, 0).fields, texts(8, 1).fields),
        retraining=RETRAINING | changes,
        runs=runs,
        **FIELDS,
    )


@pytest.mark.slow
def test_a_study_by_adapters_runs_to_its_outcomes(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    outcomes = study(tmp_path).run(progress=False, device="cpu").outcomes
    assert len(outcomes) == 2 * 2
    assert outcomes["train_loss"].notna().all()
    first = outcomes[outcomes["epoch"] == 0]["learning_rate"].unique().tolist()
    assert first == pytest.approx([0.05])  # one step of warm-up


@pytest.mark.slow
def test_candidates_that_diverge_are_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    made = study(tmp_path, learning_rate=1e30, optimizer="sgd", warmup=0.0)
    results = made.run(progress=False, device="cpu")
    assert results.retrainings["diverged"].tolist() == [1, 1]


def test_a_recipe_that_does_not_fit_is_refused_before_the_start(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    made = study(tmp_path, lora={"targets": ["conv*"]})
    with pytest.raises(InputError, match=r"^retraining: lora.targets: 'conv\*' fits no linear"):
        made.run(progress=False, device="cpu")
