from __future__ import annotations

from pathlib import Path

import pytest

from trueoracle.errors import InputError
from trueoracle.run import estimate
from trueoracle.run.estimate import Estimator
from trueoracle.spec.file import spec_from
from trueoracle.spec.grid import load_spec


def test_a_study_is_estimated_from_one_trial_of_its_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    estimator = Estimator("cpu")
    full = estimator.estimate(load_spec("lenet5-mini-conv1-0.2"))
    assert full is not None
    assert (full.networks, full.engine in ("native", "wide", "loop")) == (135, True)
    assert full.seconds == full.networks * full.seconds_a_network > 0

    def again(*_: object) -> None:
        raise AssertionError("tried anew")

    monkeypatch.setattr(estimate, "_try", again)
    short = estimator.estimate(load_spec("lenet5-mini-conv1-0.2@short"))
    other = estimator.estimate(load_spec("lenet5-mini-conv2-0.5"))
    assert short is not None
    assert other is not None
    assert short.seconds_a_network == pytest.approx(full.seconds_a_network / 10)
    assert (other.networks, other.seconds_a_network) == (756, full.seconds_a_network)
    # 60,000 images trained, 70,000 evaluated at a third of the cost; of 4,000, 4,000 and 1,000.
    few = {"data.train_images": 4000, "data.test_images": 1000}
    less = estimator.estimate(load_spec("lenet5-mini-conv1-0.2", few))
    assert less is not None
    ratio = (4000 + 5000 / 3) / (60_000 + 70_000 / 3)
    assert less.seconds_a_network == pytest.approx(full.seconds_a_network * ratio)
    with pytest.raises(AssertionError, match="tried anew"):
        estimator.estimate(load_spec("lenet5-mini-conv1-0.2", {"retraining.batch_size": 32}))


def test_what_is_not_known_has_no_estimate(tiny_dataset: str) -> None:
    study = load_spec("digits-conv1-0.2", {"data.name": tiny_dataset})
    assert Estimator("cpu").estimate(study) is None
    with pytest.raises(InputError, match="unknown network"):
        Estimator("cpu").estimate(load_spec("digits-conv1-0.2", {"network.name": "lenet6"}))
    with pytest.raises(InputError, match="device 'foo' cannot be used"):
        Estimator("foo")


def test_text_is_estimated_from_a_trial_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "text.txt"
    path.write_text("in the beginning was the word\n" * 200)
    fields = {
        "name": "mine",
        "network": {"name": "llama", "arguments": {"hidden": 16, "layers": 1, "mlp": 16}},
        "task": "next-token",
        "data": {
            "name": "text",
            "path": str(path),
            "tokenizer": "words",
            "context": 8,
            "validation_images": 0,
        },
        "pruning": {"layers": {"model.layers.0.mlp.gate_proj": 0.25}, "candidates": 3},
        "retraining": {"epochs": 2, "steps_per_epoch": 5, "batch_size": 4, "seeds": [0, 1]},
    }
    estimator = Estimator("cpu")
    spec = spec_from(fields)
    found = estimator.estimate(spec)
    assert found is not None
    assert (found.networks, found.engine) == (6, "loop")
    assert found.seconds == 6 * found.seconds_a_network > 0
    calls: list[object] = []
    monkeypatch.setattr(estimate, "load_study", lambda one: calls.append(one))
    more = estimator.estimate(spec_from(fields, {"retraining.seeds": [0, 1, 2]}))
    assert more is not None
    assert (more.networks, more.seconds_a_network) == (9, found.seconds_a_network)
    # What is not here is not downloaded to be timed.
    assert estimator.estimate(spec_from(fields, {"network": "hf:nobody/nothing"})) is None
    assert not calls
