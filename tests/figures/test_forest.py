from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from trueoracle.errors import InputError
from trueoracle.figures.forest import draw_forest, forest_data


def meta(**known: Any) -> dict[str, Any]:
    studies = [
        {"label": "w10$", "tau": -0.5, "low": -0.6, "high": -0.4, "weight": 30.0},
        {"label": "w20", "tau": -0.3, "low": -0.5, "high": -0.1, "weight": 10.0},
    ]
    pooled = {"tau": -0.45, "low": -0.55, "high": -0.35}
    return {"studies": studies, **pooled, **known}


PREDICTED = {"prediction_low": -0.7, "prediction_high": -0.2}


def test_the_values_of_the_plot() -> None:
    data = forest_data(meta(**PREDICTED, i2=0.63, tau2=0.04, q=12.1, p_value=0.02))
    assert data.labels == ("w10$", "w20")
    assert data.share.tolist() == [0.75, 0.25]
    assert data.pooled == (-0.45, -0.55, -0.35)
    assert data.prediction == (-0.7, -0.2)
    assert data.note == (
        "63% of the variation is between studies (I²); their standard deviation is 0.20 "
        "(τ² = 0.040); Q = 12.1, p = 0.02"
    )
    plain = forest_data(meta(i2=None, prediction_low=None))
    assert plain.note == ""
    assert np.isnan(plain.prediction).all()
    for studies in ([], [{"label": "w10", "tau": 0.1, "low": 0.0, "high": 0.2, "weight": 0.0}]):
        with pytest.raises(InputError, match="at least one study"):
            forest_data(meta(studies=studies))


def test_the_drawing_has_squares_by_weight_a_diamond_and_the_prediction() -> None:
    data = forest_data(meta(**PREDICTED, i2=0.5), title="t")
    figure = draw_forest(data)
    axes = figure.axes[0]
    squares = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert [np.asarray(s.get_offsets()).tolist() for s in squares] == [[[-0.5, 0]], [[-0.3, 1]]]
    areas = [float(s.get_sizes()[0]) for s in squares]
    assert areas[0] == pytest.approx(3 * areas[1])
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()]
    assert [[-0.6, 0], [-0.4, 0]] in lines
    assert [[-0.5, 1], [-0.1, 1]] in lines
    (diamond,) = axes.patches
    corners = np.asarray(diamond.get_path().vertices)
    assert (corners[:, 0].min(), corners[:, 0].max()) == (-0.55, -0.35)
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [r"w10\$", "w20", "all studies", "another study (95%)"]
    said = [text.get_text() for text in axes.texts]
    assert "−0.50 [−0.60, −0.40]" in said
    assert "75.0%" in said
    assert "[−0.70, −0.20]" in said
    (bar,) = (c for c in axes.collections if isinstance(c, LineCollection))
    assert np.allclose(np.asarray(bar.get_segments())[0][:, 0], [-0.7, -0.2])


def test_without_a_prediction_or_a_pooled_tau_the_rest_is_drawn() -> None:
    axes = draw_forest(forest_data(meta(tau=None, low=None, high=None))).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [r"w10\$", "w20", "all studies"]
    assert not axes.patches
