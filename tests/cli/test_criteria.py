from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from trueoracle.criteria.base import CRITERIA


def test_criteria_lists_what_is_shipped() -> None:
    rows = {row["name"]: row for row in json.loads(call("criteria", "--json").out)}
    assert set(rows) >= {name for name, one in CRITERIA.items() if one.is_shipped}
    taylor = rows["taylor"]
    assert taylor["what"].startswith("The squared first-order loss change by each pruned filter")
    assert taylor["basis"].startswith("as released: batches of 256")
    assert taylor["parameters"] == {"batch": 256}
    assert "1906.10771" in taylor["source"]
    assert taylor["applies_to"] == ["filters", "weights", "layers"]
    assert (taylor["uses_data"], taylor["uses_recipe"], taylor["conditional"]) == (
        True, False, False,
    )  # fmt: skip
    assert rows["gradient-flow"]["uses_recipe"]
    assert not rows["l1"]["uses_data"]
    assert rows["fpgm"]["applies_to"] == ["filters"]
    assert not any("[P]" in row["what"] for row in rows.values())
    listed = call("criteria").out
    for name, row in rows.items():
        assert name in listed
        assert row["what"][:40] in listed


def test_one_criterion_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call("criteria", "thinet").out
    assert "least squares" in shown
    assert "arXiv 1707.06342" in shown
    assert "definition: as published" in shown
    assert json.loads(call("criteria", "thinet", "--json").out)["name"] == "thinet"
    assert "parameter: batch = 256, another one by taylor:batch=…" in call("criteria", "taylor").out
    assert json.loads(call("criteria", "l1:raw=true", "--json").out)["parameters"] == {"raw": True}
    refused = call("criteria", "taylor:size=3")
    assert refused.code == 2
    assert "no parameter 'size' (its parameters: batch=256)" in refused.err
    unknown = call("criteria", "tailor")
    assert unknown.code == 2
    assert "did you mean 'taylor'" in unknown.err
    (tmp_path / "of_mine.py").write_text(
        'def mine(dense, candidates, data):\n    "My own."\n    return [0.0] * len(candidates)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "My own." in call("criteria", "of_mine:mine").out
