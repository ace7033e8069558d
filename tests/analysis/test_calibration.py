"""A short run of benchmarks/calibration.py: intervals and verdicts where the truth is known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "calibration.py"


@pytest.fixture(scope="module")
def calibration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration", PATH)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = made
    spec.loader.exec_module(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two seeds", "images"])
def test_intervals_and_verdicts_are_right_as_often_as_said(
    calibration: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Forty tables tell a rate of 95 % to 3.4 %: four of these below, and it is wrong.
    monkeypatch.setattr(calibration.permutation, "PERMUTATIONS", 100)
    monkeypatch.setattr(calibration, "TRUTHS", 300)
    found = calibration.measure(calibration.SCENARIOS[name], 40)
    for rate in ("null in interval", "good in interval", "good at most",
                 "good without noise in interval"):  # fmt: skip
        assert found[rate] >= 0.82, rate
    for rate in ("null is certain", "null is Yes", "good is No", "twins differ"):
        assert found[rate] <= 0.15, rate
    assert abs(found["ceiling, bias"]) < 0.04
    assert abs(found["without noise, bias"]) < 0.1
    assert found["regret, held out"] < found["regret, true"] < found["regret, as found"]


def test_seeds_alone_are_too_narrow(calibration: ModuleType) -> None:
    """What an interval over seeds leaves out: a criterion that knows nothing looks certain."""
    from trueoracle.analysis.jackknife import jackknife

    generator = np.random.default_rng(0)
    outside = {True: 0, False: 0}
    for _ in range(30):
        table = calibration.draw(calibration.SCENARIOS["five seeds"], generator).table
        for filters in outside:
            around = jackknife(
                [table],
                lambda one: [calibration.tau(one.scores["null"], one.outcome)],
                filters=filters,
            ).tau_interval()
            outside[filters] += around.low > 0 or around.high < 0
    assert outside[False] > 12
    assert outside[True] < 6
