from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trueoracle.errors import InputError
from trueoracle.figures.trend import draw_trend, trend_data

NUMBERS = [
    ("oracle", 40, -0.3, -0.4, -0.2),
    ("oracle", 10, -0.5, -0.6, -0.4),
    ("l1", 10, 0.1, 0.0, 0.3),
    ("l1", 40, math.nan, math.nan, math.nan),
]


def test_numbers_lie_where_they_are_and_the_undefined_is_a_gap() -> None:
    data = trend_data(NUMBERS, x_label="width", y_label="tau")
    oracle, l1 = data.trends
    assert (oracle.name, oracle.x.tolist(), oracle.y.tolist()) == ("oracle", [10, 40], [-0.5, -0.3])
    assert (oracle.low.tolist(), oracle.high.tolist()) == ([-0.6, -0.4], [-0.4, -0.2])
    assert l1.x.tolist() == [10, 40]
    assert np.array_equal(l1.y, [0.1, math.nan], equal_nan=True)
    assert data.ticks == ((40.0, "40"), (10.0, "10"))


def test_words_lie_at_equal_distances() -> None:
    rows = [("oracle", name, 0.1, 0.0, 0.2) for name in ("mnist", "kmnist", "other")]
    data = trend_data(rows, x_label="data", y_label="tau")
    assert data.trends[0].x.tolist() == [0, 1, 2]
    assert [label for _, label in data.ticks] == ["mnist", "kmnist", "other"]
    with pytest.raises(InputError, match="at least one row"):
        trend_data([], x_label="data", y_label="tau")


def test_the_drawing_has_a_line_and_bars_for_each() -> None:
    data = trend_data(NUMBERS, x_label="width", y_label="tau", title="grid")
    figure = draw_trend(data)
    axes = figure.axes[0]
    containers: list[Any] = list(axes.containers)
    drawn = [bars.lines[0] for bars in containers]
    y = [np.asarray(line.get_ydata()) for line in drawn]
    assert y[0].tolist() == [-0.5, -0.3]
    # A point that is drawn as NaN breaks the line.
    assert np.array_equal(y[1], [0.1, math.nan], equal_nan=True)
    bars = containers[0].lines[2][0].get_segments()
    assert np.allclose([s[:, 1] for s in bars], [[-0.6, -0.4], [-0.4, -0.2]])
    x = [np.asarray(line.get_xdata()).tolist() for line in drawn]
    assert x[0] == pytest.approx([10, 40], abs=1)
    assert x[0][0] < 10 < x[1][0]  # aside, so that no bar hides another
    assert axes.get_xlabel() == "width"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["40", "10"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["oracle", "l1"]
    assert len({line.get_marker() for line in drawn}) == 2


def test_ceilings_lie_where_their_values_do() -> None:
    ceilings = [(40, -0.6), (10, -0.7), (40, -0.6)]
    data = trend_data(NUMBERS, x_label="width", y_label="tau", ceilings=ceilings)
    assert data.ceilings == ((40.0, -0.6), (10.0, -0.7))
    figure = draw_trend(data)
    dashes = next(c for c in figure.axes[0].collections if c.get_label() == "noise ceiling")
    segments = dashes.get_segments()  # type: ignore[attr-defined]
    assert [s[:, 1].tolist() for s in segments] == [[-0.7, -0.7], [-0.6, -0.6]]
    assert [float(s[:, 0].mean()) for s in segments] == pytest.approx([10, 40])
    assert "noise ceiling" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert trend_data(NUMBERS, x_label="width", y_label="tau").ceilings == ()
