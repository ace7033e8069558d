from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from trueoracle.errors import StoreError
from trueoracle.figures.scatter import ScatterData, draw_scatter, save_figure, scatter_data


@pytest.fixture
def data() -> ScatterData:
    scores = np.array([0.3, 0.1, np.nan, 0.5, 0.2])
    outcomes = np.array([0.9, 0.8, 0.7, 0.7, 0.8])
    return scatter_data(
        scores, outcomes, higher_is_better=True, x_label="loss", y_label="accuracy", title="mine"
    )


def test_the_values_of_the_scatter(data: ScatterData) -> None:
    assert data.x.tolist() == [0.3, 0.1, 0.5, 0.2]
    assert data.anomaly.tolist() == [True, False, False, False]
    assert data.chosen == (0.1, 0.8)
    assert data.note == "Kendall's τ = −0.18\nanomaly ratio 25.0% of 4"


def test_the_interval_and_the_ceiling_are_said_where_they_are_known() -> None:
    def note(**known: Any) -> str:
        x, y = np.array([0.3, 0.1, 0.5, 0.2]), np.array([0.9, 0.8, 0.7, 0.8])
        data = scatter_data(x, y, higher_is_better=True, x_label="x", y_label="y", **known)
        return data.note.splitlines()[0]

    assert note(tau_interval=(-0.4, 0.1)) == "Kendall's τ = −0.18 [−0.40, 0.10]"
    assert note(tau_interval=(-0.4, 0.1), ceiling=0.631) == (
        "Kendall's τ = −0.18 [−0.40, 0.10], noise ceiling 0.63"
    )
    assert note(tau_interval=(None, 0.1), ceiling=0.5) == (
        "Kendall's τ = −0.18, noise ceiling 0.50"
    )


def test_candidates_that_share_the_lowest_score_have_a_star_each() -> None:
    x, y = np.array([0.1, 0.3, 0.1, 0.2]), np.array([0.6, 0.75, 0.8, 0.65])
    data = scatter_data(x, y, higher_is_better=True, x_label="x", y_label="y")
    assert data.chosen[0] == 0.1
    assert data.chosen[1] == pytest.approx(0.7)
    assert data.anomaly.tolist() == [False, True, True, False]  # than 0.7, their mean
    assert data.note.endswith("anomaly ratio 37.5% of 4")  # 3 and 0 of 4
    figure = draw_scatter(data)
    stars = np.asarray(figure.axes[0].collections[-1].get_offsets()).tolist()
    assert sorted(stars) == [[0.1, 0.6], [0.1, 0.8]]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["candidate", "better than their mean (2)", "lowest score (2 tie)"]


def test_a_constant_outcome_has_no_tau() -> None:
    flat = scatter_data(
        np.arange(3.0), np.zeros(3), higher_is_better=False, x_label="x", y_label="y"
    )
    assert flat.note.startswith("Kendall's τ undefined")
    assert not flat.anomaly.any()
    draw_scatter(flat)


def test_the_drawing_shows_every_point_and_the_star(data: ScatterData) -> None:
    axes = draw_scatter(data).axes[0]
    usual, anomalies, star = (
        np.asarray(collection.get_offsets()) for collection in axes.collections
    )
    assert sorted(map(tuple, usual.tolist())) == [(0.1, 0.8), (0.2, 0.8), (0.5, 0.7)]
    assert anomalies.tolist() == [[0.3, 0.9]]
    assert star.tolist() == [[0.1, 0.8]]
    vertical, horizontal = axes.get_lines()
    assert list(np.asarray(vertical.get_xdata())) == [0.1, 0.1]
    assert list(np.asarray(horizontal.get_ydata())) == [0.8, 0.8]
    assert axes.get_xlabel() == "loss"
    assert axes.get_ylabel() == "accuracy"
    assert data.note in [text.get_text() for text in axes.texts]


def test_dollar_signs_in_names_are_no_mathematics(tmp_path: Path) -> None:
    data = scatter_data(
        np.arange(3.0), np.arange(3.0), higher_is_better=True,
        x_label="$x_{$", y_label="a$_b$", title="$",
    )  # fmt: skip
    (path,) = save_figure(draw_scatter(data), tmp_path / "figure", ["svg"])
    assert "$x_{$" in path.read_text()


def test_colours_are_told_apart_without_hue(data: ScatterData) -> None:
    usual, anomalies, _ = draw_scatter(data).axes[0].collections

    def lightness(collection: object) -> float:
        red, green, blue, _ = collection.get_facecolor()[0]  # type: ignore[attr-defined]
        return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)

    shapes = [np.shape(collection.get_paths()[0].vertices) for collection in (usual, anomalies)]
    assert abs(lightness(usual) - lightness(anomalies)) > 0.05
    assert shapes[0] != shapes[1]


def test_all_three_formats_are_written(data: ScatterData, tmp_path: Path) -> None:
    paths = save_figure(draw_scatter(data), tmp_path / "deep" / "study-0.5-oracle")
    assert [path.name for path in paths] == [
        f"study-0.5-oracle.{form}" for form in ("png", "svg", "pdf")
    ]
    with Image.open(paths[0]) as picture:
        assert picture.size == (1000, 760)
    svg = paths[1].read_text()
    assert "anomaly ratio 25.0% of 4" in svg  # text stays text
    assert paths[2].read_bytes().startswith(b"%PDF")
    assert b"/CIDFontType2" in paths[2].read_bytes()  # TrueType, as journals ask for
    again = save_figure(draw_scatter(data), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_all_formats_have_one_layout_and_a_figure_keeps_its_engine(
    data: ScatterData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = draw_scatter(data)
    engine = figure.get_layout_engine()
    assert engine is not None
    laid_out, execute = [], engine.execute

    def counted(fig: Figure) -> None:
        laid_out.append(fig)
        execute(fig)

    monkeypatch.setattr(engine, "execute", counted)
    assert len(save_figure(figure, tmp_path / "figure")) == 3
    assert laid_out == [figure]
    assert figure.get_layout_engine() is engine


def test_a_folder_that_cannot_be_written_is_said(data: ScatterData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        save_figure(draw_scatter(data), tmp_path / "file" / "figure")
