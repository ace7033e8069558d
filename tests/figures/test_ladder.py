from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from trueoracle.errors import InputError
from trueoracle.figures.ladder import LadderData, draw_ladder, ladder_data
from trueoracle.figures.scatter import save_figure

NAN = math.nan
ROWS = [
    ("accuracy", "oracle", -0.2, -0.3, -0.1, True),
    ("accuracy", "l1$", 0.1, -0.1, 0.2, False),
    ("accuracy", "taylor", 0.4, 0.3, 0.5, True),
    ("accuracy", "flat", NAN, NAN, NAN, False),
    ("loss", "oracle", 0.9, 0.8, 0.95, False),
    ("loss", "taylor", 0.3, NAN, NAN, True),
]


@pytest.fixture
def data() -> LadderData:
    return ladder_data(ROWS, ceilings={"accuracy": 0.6}, marked=["oracle"], title="study")


def test_criteria_lie_in_the_order_of_their_mean_agreement(data: LadderData) -> None:
    # taylor and oracle both have a mean of 0.35, in the order of the rows.
    assert data.criteria == ("oracle", "taylor", "l1$", "flat")
    accuracy, loss = data.columns
    assert (accuracy.outcome, accuracy.ceiling) == ("accuracy", 0.6)
    assert np.array_equal(accuracy.agreement, [-0.2, 0.4, 0.1, NAN], equal_nan=True)
    assert np.array_equal(loss.agreement, [0.9, 0.3, NAN, NAN], equal_nan=True)
    assert np.array_equal(loss.low, [0.8, NAN, NAN, NAN], equal_nan=True)
    assert math.isnan(loss.ceiling)
    with pytest.raises(InputError, match="at least one row"):
        ladder_data([])


def test_one_outcome_alone_orders_by_its_own_agreement() -> None:
    data = ladder_data([row for row in ROWS if row[0] == "accuracy"])
    assert data.criteria == ("taylor", "l1$", "oracle", "flat")


def test_the_drawing_has_a_dot_an_interval_and_a_number_for_each(data: LadderData) -> None:
    figure = draw_ladder(data)
    accuracy, loss = figure.axes
    assert [tick.get_text() for tick in accuracy.get_yticklabels()] == [
        "oracle", "taylor", r"l1\$", "flat",
    ]  # fmt: skip
    weights = [tick.get_fontweight() for tick in accuracy.get_yticklabels()]
    assert weights == ["bold", "normal", "normal", "normal"]
    drawn = [np.asarray(line.get_xydata()).tolist() for line in accuracy.get_lines()]
    for place, (low, value, high) in enumerate([(-0.3, -0.2, -0.1), (0.3, 0.4, 0.5)]):
        assert [[low, place], [high, place]] in drawn
        assert [[value, place]] in drawn
    assert [[0.6, 0], [0.6, 1]] in drawn  # the ceiling, over the height of the axes
    assert accuracy.get_title(loc="right") == "noise ceiling 0.60"
    assert loss.get_title(loc="right") == ""
    said = [text.get_text() for text in accuracy.texts]
    assert said == ["−0.20", "0.40", "0.10", "  not defined"]
    # The best rung is the uppermost, and both columns have one scale.
    low, high = accuracy.get_ylim()
    assert low > high
    assert accuracy.get_xlim() == loss.get_xlim()
    assert accuracy.get_xlim()[1] > 0.95


def test_only_what_is_certain_fills_the_dot(data: LadderData) -> None:
    accuracy, loss = draw_ladder(data).axes

    def filled(place: int, axes: int = 0) -> bool:
        lines = [accuracy, loss][axes].get_lines()
        (dot,) = [
            line for line in lines if line.get_marker() == "o" and line.get_ydata() == [place]
        ]
        return dot.get_markerfacecolor() != "white"

    assert [filled(0), filled(1), filled(2)] == [True, True, False]
    assert not filled(0, axes=1)  # an interval without zero alone is not enough
    assert filled(1, axes=1)  # the rule is the record's, not the drawing's


@pytest.mark.parametrize("count", [2, 25])
def test_it_grows_with_its_rungs_and_hides_none(count: int, tmp_path: Path) -> None:
    rows = [
        ("loss", f"criterion-{i:02}", i / 30, i / 30 - 0.1, i / 30 + 0.1, True)
        for i in range(count)
    ]
    figure = draw_ladder(ladder_data(rows, ceilings={"loss": 0.9}))
    save_figure(figure, tmp_path / "ladder", ["svg"])
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == count
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert all(below[1] < above[0] for below, above in pairwise(tops))
    assert f"criterion-{count - 1:02}" in (tmp_path / "ladder.svg").read_text()
