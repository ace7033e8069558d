"""A study that is not what its file says is marked wherever its name stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import TINY, call
from tests.conftest import Writer
from trueoracle.record.pooled import open_results
from trueoracle.report.drawings import Folder
from trueoracle.report.page import study_page

CUT = ("--set", "retraining.epochs=2")
WORDS = "changed: retraining.epochs 2"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["", "seeds = [0, 1]"])
def test_a_changed_study_is_marked_in_every_table_page_and_figure(
    write_study: Writer, tiny_dataset: str, runs: Path, seeds: str
) -> None:
    path = write_study(TINY.replace("[dense]", f"[dense]\n{seeds}"))
    line = f"{path.stem}: {WORDS}\n"
    run = call("run", path, *CUT, "--runs", runs)
    assert (run.code, run.out.count(line)) == (0, 1)
    for command in ("score", "report"):
        assert line in call(command, path, *CUT, "--runs", runs).out
    assert line in call("status", "--runs", runs).out
    said = json.loads(call("report", path, *CUT, "--runs", runs, "--json").out)
    assert (said[0]["badge"], said[0]["changed"]) == (WORDS, {"retraining.epochs": 2})
    results = open_results(Path(said[0]["folder"]))
    page, _ = study_page(results, [], Folder(results.folder / "drawn"))
    assert page.count(f'<span class="badge">{WORDS}</span>') == 2  # below the title, provenance
    assert f'"badge":"{WORDS}"' in page  # in each linked plot
    figures = [one.read_text(encoding="utf-8") for one in results.folder.glob("drawn/*.svg")]
    assert len(figures) > 6
    assert all(WORDS in one for one in figures)
    assert WORDS in results._repr_html_()
    assert results.plot()._suptitle.get_text().endswith(WORDS)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_search_of_a_changed_study_is_marked(
    write_study: Writer, tiny_dataset: str, runs: Path
) -> None:
    path = write_study(TINY)
    found = call("search", path, *CUT, "--runs", runs, "--budget", "50%")
    assert (found.code, found.out.count(WORDS)) == (0, 1)


def test_a_study_as_its_file_has_it_is_not(
    write_study: Writer, tiny_dataset: str, runs: Path
) -> None:
    path = write_study(TINY)
    run = call("run", path, "--runs", runs)
    assert "changed" not in run.out + call("status", "--runs", runs).out


@pytest.mark.slow
def test_the_points_of_a_changed_grid_are_marked(
    write_study: Writer, tiny_dataset: str, runs: Path
) -> None:
    path = write_study(TINY + '[grid]\n"pruning.layers.conv1" = [0.1, 0.2]\n')
    called = call("run", path, *CUT, "--runs", runs)
    for point in ("conv1-0.1", "conv1-0.2"):
        assert f"{path.stem}+{point}: {WORDS}\n" in called.out
    written = call("report", path, *CUT, "--runs", runs)
    assert written.code == 0
    folder = next(runs.glob("*/report"))
    assert folder.joinpath("report.html").read_text("utf-8").count(WORDS) > 10
    for figure in folder.glob("figures/*.svg"):
        assert WORDS in figure.read_text("utf-8"), figure.name
