"""The notebooks among the examples: what they hold, and that they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def pictures(cells: list[dict[str, Any]]) -> int:
    """How many outputs hold an image."""
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return sum("image/png" in one or "data:image/png" in str(one) for one in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_output(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert len(text) < 250_000
    assert pictures(cells) >= 2
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    for words in ("/home/", "ipykernel_", "/root/", "Traceback", "Warning"):
        assert words not in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's machinery has its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    assert pictures(notebook.cells) >= 2
    assert "<progress" in str([cell.get("outputs") for cell in notebook.cells])


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_criterion", "own_network"]
