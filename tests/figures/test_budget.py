from __future__ import annotations

import pandas as pd
import pytest

from tests.search.test_replay import EPOCHS, recorded, replay, scores
from trueoracle.errors import InputError
from trueoracle.figures.budget import budget_data, draw_budget


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return replay(recorded(0.05), scores(), epochs=EPOCHS, draws=5)


def test_the_values_are_those_of_the_replay(table: pd.DataFrame) -> None:
    data = budget_data(table, outcomes=["test_loss"], network="other seeds")
    assert [panel.title for panel in data.panels] == ["test loss"]
    lines = {line.strategy: line for line in data.panels[0].lines}
    assert set(lines) == set(table["strategy"])
    # It spends the same whatever the budget: one point.
    assert lines["criterion"].spent.tolist() == [pytest.approx(1 / 20)]
    assert lines["full"].spent.tolist() == [1.0]
    own = table[(table["outcome"] == "test_loss") & (table["network"] == "other seeds")]
    top = own[own["strategy"] == "top"]
    assert lines["top"].spent.tolist() == sorted(set(top["spent_share"]))
    assert lines["top"].regret[-1] == top["regret"].iloc[-1]
    assert (lines["random"].low <= lines["random"].high).all()


def test_the_drawing_has_a_line_a_strategy(table: pd.DataFrame) -> None:
    figure = draw_budget(budget_data(table, title="a study"))
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert set(table["strategy"]) <= set(axes.get_legend_handles_labels()[1])
    figure.canvas.draw()


def test_an_outcome_that_was_not_replayed(table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no regret in train_accuracy"):
        budget_data(table, outcomes=["train_accuracy"])
