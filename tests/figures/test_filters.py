from __future__ import annotations

import numpy as np
import pytest

from trueoracle.analysis.filters import FilterWorth
from trueoracle.figures.filters import draw_filters, filters_data


def worth(count: int, *, paired: bool = True) -> FilterWorth:
    values = np.linspace(0.2, 0.8, count)
    pairs = np.add.outer(values, values) / 2 if paired else None
    return FilterWorth(values, values[::-1].copy(), values - values.mean(), pairs, mean=0.4)


def test_the_values_are_those_of_the_filters() -> None:
    known = worth(3)
    names = ["conv1 0", "conv1 1", "conv1 2"]
    data = filters_data(known, names, higher_is_better=True, label="accuracy")
    assert (data.names, data.worth) == (tuple(names), known)
    assert known.fitted == pytest.approx([0.1, 0.4, 0.7])


def test_of_very_many_those_that_change_most_are_shown() -> None:
    known = worth(101)
    data = filters_data(known, [*map(str, range(101))], higher_is_better=True, label="accuracy")
    assert data.names == (*map(str, range(30)), *map(str, range(71, 101)))
    rows = [int(name) for name in data.names]
    assert data.worth.fitted == pytest.approx(known.fitted[rows])
    assert data.worth.pairs is None


@pytest.mark.parametrize("paired", [True, False])
def test_the_drawing_has_both_means_and_the_sum_of_each_filter(*, paired: bool) -> None:
    known = worth(4, paired=paired)
    figure = draw_filters(filters_data(known, [*"abcd"], higher_is_better=True, label="accuracy"))
    left, *others = figure.axes
    drawn = {str(line.get_label()): np.asarray(line.get_xdata()) for line in left.lines}
    assert drawn["pruned"] == pytest.approx(known.pruned)
    assert drawn["kept"] == pytest.approx(known.kept)
    assert drawn["in a sum over filters"] == pytest.approx(known.fitted)
    assert [one.get_text() for one in left.get_yticklabels()] == [*"abcd"]
    assert len(others) == (2 if paired else 0)  # the heat map, and what its colours mean
