from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from trueoracle.figures.scatter import draw_scatter, scatter_data
from trueoracle.report.drawings import Drawn, Folder, ladder_in_words


def drawn(folder: Folder, points: int) -> Drawn:
    x = np.linspace(0.123456, 0.987654, points)
    data = scatter_data(x, x**2, higher_is_better=True, x_label="0.123456 <x>", y_label="y")
    made = folder.draw(lambda: draw_scatter(data), "one", alt="in words")
    assert made is not None
    return made


def texts(svg: str) -> list[str]:
    return [text.strip() for text in re.findall(r">([^<]*)</text>", svg)]


def test_a_figure_in_a_page_is_smaller_and_says_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "figures")
    source = drawn(folder, 100).source
    assert [path.name for path in folder.written] == ["one.png", "one.svg", "one.pdf"]
    kind, _, encoded = source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    svg, slim = (tmp_path / "figures" / "one.svg").read_text(), base64.b64decode(encoded).decode()
    assert len(slim) < 0.7 * len(svg)
    assert texts(slim) == texts(svg)
    assert "0.123456 &lt;x&gt;" in texts(slim)

    def places(text: str) -> list[tuple[float, float]]:
        found = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', text)
        return [(float(x), float(y)) for x, y in found]

    assert len(places(slim)) >= 100
    assert np.allclose(places(slim), places(svg), atol=0.01)
    # Every style that is told by a class is the one that the element had.
    rules = dict(re.findall(r"\.(s\d+)\{([^}]*)\}", slim))
    told = re.sub(r'class="(s\d+)"', lambda found: f'style="{rules[found[1]]}"', slim)
    assert re.findall(r' style="(fill: #[^"]*)"', told) == re.findall(
        r' style="(fill: #[^"]*)"', svg
    )


def test_a_folder_of_nothing_draws_nothing() -> None:
    folder = Folder(None)
    assert folder.draw(lambda: pytest.fail("drawn"), "one", alt="") is None
    assert folder.written == []


def test_a_figure_of_very_many_points_is_a_picture(tmp_path: Path) -> None:
    source = drawn(Folder(tmp_path), 4000).source
    assert source.startswith("data:image/png;base64,")
    assert len(source) < 100_000


@pytest.mark.parametrize("ceiling", [None, 0.63])
def test_the_ladder_is_told_in_words(ceiling: float | None) -> None:
    relations = [
        {
            "criterion": name, "metric": "m", "outcome_name": "y", "agreement": agreement,
            "ceiling": ceiling,
        }
        for name, agreement in (("a", -0.1), ("b", None), ("c", 0.5))
    ]  # fmt: skip
    above = "" if ceiling is None else "; ceiling of retraining noise 0.63"
    assert ladder_in_words(relations) == f"Agreement with y: c 0.50, a −0.10, b –{above}."
    of_examples = [one | {"ceiling_of_examples": True} for one in relations]
    above = above.replace("retraining ", "")
    assert ladder_in_words(of_examples) == f"Agreement with y: c 0.50, a −0.10, b –{above}."
