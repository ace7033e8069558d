"""Figures and tables of a paper: their widths, fonts, formats and values."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.test_cli import call
from trueoracle.errors import InputError
from trueoracle.figures import scatter
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import Results
from trueoracle.report.paper import TABLES, WIDTHS
from trueoracle.report.table import TextTable


def inches(pdf: Path) -> float:
    box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ([\d.]+) *\]", pdf.read_bytes())
    assert box is not None
    return float(box[1]) / 72


@pytest.mark.parametrize("columns", [1, 2])
def test_figures_are_as_wide_as_columns_and_hold_their_fonts(
    finished: Results, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "PDF_FONTS", 42)  # other tests take what is written faster
    written = finished.figures(tmp_path, ["pdf", "svg"], columns)
    assert all(path.is_file() for path in written)
    pdfs = [path for path in written if path.suffix == ".pdf"]
    ladders = 2 if columns == 1 else 1
    assert len(pdfs) == ladders + 4 + 1  # scatters of two criteria and outcomes, and agreement
    for path in pdfs:
        assert inches(path) == pytest.approx(WIDTHS[columns], abs=0.01)
        assert b"/FontFile2" in path.read_bytes()  # TrueType, embedded
        assert b"/Type3" not in path.read_bytes()
    for path in written:
        if path.suffix == ".svg":
            assert "<text" not in path.read_text()
        assert path.with_suffix(".csv") in written


def test_each_figure_has_the_values_that_it_shows(finished: Results, tmp_path: Path) -> None:
    finished.figures(tmp_path, ["png"])
    scatter = pd.read_csv(tmp_path / "tiny-oracle-test_loss.csv")
    points = finished.points("oracle", "test_loss")
    np.testing.assert_allclose(scatter["score"], points["score"])
    np.testing.assert_allclose(scatter["outcome"], points["outcome"])
    ladder = pd.read_csv(tmp_path / "tiny-criteria-test_loss.csv").set_index("criterion")
    found = finished.correlate(["test_loss"]).set_index("criterion")
    np.testing.assert_allclose(ladder["agreement"], found["agreement"].loc[ladder.index])
    agreement = pd.read_csv(tmp_path / "tiny-agreement.csv").set_index("criterion")
    assert agreement["oracle"]["oracle"] == 1
    assert agreement["oracle"]["l1"] == agreement["l1"]["oracle"]


def test_figures_of_several_networks(three_networks: PooledResults, tmp_path: Path) -> None:
    written = three_networks.figures(tmp_path)
    assert sorted({path.suffix for path in written}) == [".csv", ".pdf"]
    assert all(inches(path) < 3.6 for path in written if path.suffix == ".pdf")


def test_tables_are_written_as_latex_and_markdown(finished: Results, tmp_path: Path) -> None:
    tex, values = finished.export(str(tmp_path), "latex")
    text = tex.read_text()
    assert text.startswith("\\begin{tabular}{llrr")
    assert text.count("\\\\\n") == 1 + 4
    assert text.isascii()
    assert {"oracle", "l1"} == set(pd.read_csv(values)["criterion"])
    markdown, _ = finished.export(tmp_path, "markdown")
    lines = markdown.read_text().splitlines()
    assert len(lines) == 2 + 4
    assert lines[0].startswith("| outcome | criterion | agreement | 95% interval |")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_names_cannot_break_a_table() -> None:
    made = TextTable(("a_b", "τ"), ("", ""), (("[x] & \\ {y}|<z>", "−0.5%"),), texts=1)
    assert TABLES["latex"][1](made).splitlines()[4] == (
        r"{}[x] \& \textbackslash{} \{y\}$|$$<$z$>$ & $-$0.5\% \\"
    )
    assert TABLES["markdown"][1](made).splitlines()[2] == r"| [x] & \\ {y}\|\<z> | −0.5% |"


def test_wrong_words_are_refused(finished: Results, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="figures are 1 or 2 columns wide, got 3"):
        finished.figures(tmp_path, columns=3)
    with pytest.raises(InputError, match="unknown format of figures 'gif'"):
        finished.figures(tmp_path, ["gif"])
    with pytest.raises(InputError, match="unknown format of tables 'word'"):
        finished.export(tmp_path, "word")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.pdf"))


def test_the_command_line_writes_both(finished: Results, tmp_path: Path) -> None:
    runs = finished.folder.parent
    called = call("figures", "tiny", "--runs", runs, "--out", tmp_path / "f", "--format", "png")
    assert (called.code, called.err) == (0, "")
    assert sorted(called.out.split()) == sorted(map(str, (tmp_path / "f").iterdir()))
    called = call("export", "tiny", "--runs", runs, "--out", tmp_path / "t", "--format", "markdown")
    assert (tmp_path / "t" / "relations.md").is_file()
    assert str(tmp_path / "t" / "relations.csv") in called.out
