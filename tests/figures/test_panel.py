from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueoracle.errors import InputError
from trueoracle.figures.panel import PanelData, draw_panel, panel_data
from trueoracle.figures.scatter import save_figure


def panel(count: int) -> PanelData:
    x = np.array([0.3, 0.1, np.nan, 0.5])
    y = np.array([0.9, 0.8, 0.7, 0.6])
    points = [(f"width-{10 * i}", x + i, y) for i in range(1, count + 1)]
    return panel_data(points, higher_is_better=True, x_label="loss", y_label="y", title="grid$")


def test_the_values_of_the_panel() -> None:
    data = panel(2)
    first, second = data.scatters
    assert (first.title, second.title) == ("width-10", "width-20")
    assert first.x.tolist() == [1.3, 1.1, 1.5]
    assert second.chosen == (2.1, 0.8)
    assert first.anomaly.tolist() == [True, False, False]
    assert first.note == "Kendall's τ = −0.33\nanomaly ratio 33.3% of 3"
    with pytest.raises(InputError, match="at least one study"):
        panel_data([], higher_is_better=True, x_label="x", y_label="y")


def test_intervals_are_by_title() -> None:
    x, y = np.array([0.3, 0.1, 0.5]), np.array([0.9, 0.8, 0.6])
    data = panel_data(
        [("one", x, y), ("two", x, y)], higher_is_better=True, x_label="x", y_label="y",
        tau_intervals={"two": (-0.5, 0.2)},
    )  # fmt: skip
    first, second = (scatter.note.splitlines()[0] for scatter in data.scatters)
    assert first == "Kendall's τ = −0.33"
    assert second == "Kendall's τ = −0.33 [−0.50, 0.20]"


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (3, 3), (4, 4), (5, 3), (7, 4), (8, 4), (9, 3)]
)
def test_rows_are_of_about_equal_length(count: int, columns: int) -> None:
    assert panel(count).columns == columns


def test_the_drawing_has_axes_for_every_study(tmp_path: Path) -> None:
    data = panel(5)
    figure = draw_panel(data)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [s.title for s in data.scatters]
    assert [axes.get_title(loc="right") for axes in shown] == [s.note for s in data.scatters]
    assert len(figure.axes) == 6
    for axes, scatter in zip(shown, data.scatters, strict=True):
        dots = [tuple(p) for c in axes.collections[:2] for p in np.asarray(c.get_offsets())]
        assert sorted(dots) == sorted(zip(scatter.x, scatter.y, strict=True))
        star = np.asarray(axes.collections[-1].get_offsets()).tolist()
        assert star == [list(scatter.chosen)]
    (path,) = save_figure(figure, tmp_path / "panel", ["svg"])
    text = path.read_text()
    assert "width-50" in text
    assert "grid$" in text
