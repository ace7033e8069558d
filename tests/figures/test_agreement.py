from __future__ import annotations

import math

import numpy as np
import pytest

from trueoracle.errors import InputError
from trueoracle.figures.agreement import agreement_data, draw_agreement

TAU: list[list[float | None]] = [[1.0, 0.1, 0.8], [0.1, 1.0, None], [0.8, None, 1.0]]
# Rows 0 and 2 join at 0.2, and row 1 with both at 0.9.
LINKAGE = [[0, 2, 0.2, 2], [1, 3, 0.9, 3]]


def test_rows_and_columns_follow_the_order_and_so_does_the_dendrogram() -> None:
    data = agreement_data(["a", "b", "c"], TAU, order=[1, 2, 0], linkage=LINKAGE)
    assert data.criteria == ("b", "c", "a")
    wanted = [[1.0, math.nan, 0.1], [math.nan, 1.0, 0.8], [0.1, 0.8, 1.0]]
    assert np.array_equal(data.tau, wanted, equal_nan=True)
    # c and a lie at 1 and 2; b at 0 joins their middle.
    assert data.branches == ((1.0, 0.0, 0.2, 2.0, 0.0), (0.0, 0.0, 0.9, 1.5, 0.2))


def test_without_an_order_the_criteria_stay_as_they_are() -> None:
    data = agreement_data(["a", "b", "c"], TAU)
    assert data.criteria == ("a", "b", "c")
    assert data.branches == ()
    draw_agreement(data)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="square table"):
        agreement_data(["a", "b"], TAU)
    with pytest.raises(InputError, match="square table"):
        agreement_data(["a"], [[1.0]])
    with pytest.raises(InputError, match="each row once"):
        agreement_data(["a", "b", "c"], TAU, order=[0, 1, 1])
    with pytest.raises(InputError, match="linkage of 3 criteria"):
        agreement_data(["a", "b", "c"], TAU, linkage=LINKAGE[:1])


def test_the_drawing_shows_the_table_and_the_tree() -> None:
    data = agreement_data(["a", "b", "$c$"], TAU, order=[1, 2, 0], linkage=LINKAGE)
    tree, axes, _ = draw_agreement(data).axes
    (image,) = axes.get_images()
    shown = image.get_array()
    assert shown is not None
    assert np.array_equal(shown.filled(math.nan), data.tau, equal_nan=True)  # type: ignore[attr-defined]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["b", r"\$c\$", "a"]
    assert [text.get_text() for text in axes.texts].count("0.80") == 2
    assert len(axes.texts) == 7  # the undefined cells have no number
    drawn = [np.asarray(line.get_xydata()).tolist() for line in tree.get_lines()]
    assert drawn[0] == [[0.0, 1.0], [0.2, 1.0], [0.2, 2.0], [0.0, 2.0]]
    # The root is on the left.
    left, right = tree.get_xlim()
    assert left > 0.9 > right == 0


def test_many_criteria_have_colours_only() -> None:
    count = 25
    data = agreement_data([f"c{i}" for i in range(count)], np.eye(count).tolist())
    axes = draw_agreement(data).axes[1]
    assert len(axes.texts) == 0
    assert len(axes.get_yticklabels()) == count
