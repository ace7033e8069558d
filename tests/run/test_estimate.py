from __future__ import annotations

import pytest

from trueoracle.errors import InputError
from trueoracle.run import estimate
from trueoracle.run.estimate import Estimator
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
