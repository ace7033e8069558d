"""Names in a record of somebody else's that a page, a terminal, a table or a figure could obey."""

from __future__ import annotations

import json
import sqlite3
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.cli.test_cli import call
from tests.record.records import older_record
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import Results

NAMES = {
    "markup": "<hostile onhostile=1>&amp;</script><!-- \"'",
    "terminal": "a\x1b[31m\x1b]0;title\x07\u202eb",
    "formula": '=HYPERLINK("http://hostile","x")',
    "mathematics": r"$\hostile_{",
    "path": "../../../hostile",
    "long": "x" * 3000,
}


def renamed(runs: Path, name: str) -> Path:
    """A record whose second criterion and only layer have this name, and whose purpose is it."""
    folder = older_record(runs)  # whose rows have no checksums
    spec: dict[str, Any] = Results(folder).spec.model_dump(mode="json")
    spec |= {"purpose": name, "criteria": ["oracle", name]}
    spec["pruning"]["layers"] = {name: 0.1}
    with closing(sqlite3.connect(folder / DATABASE)) as db, db:
        db.execute("UPDATE provenance SET spec = ?", (json.dumps(spec),))
        for table, column in (("criteria", "name"), ("scores", "criterion")):
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = 'l1'", (name,))
        for candidate, text in db.execute("SELECT id, pruned FROM candidates").fetchall():
            pruned = dict.fromkeys([name], json.loads(text)["conv1"])
            values = (json.dumps(pruned), candidate)
            db.execute("UPDATE candidates SET pruned = ? WHERE id = ?", values)
    return folder


class Tags(HTMLParser):
    """The names of all tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(name for name, _ in attrs)}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_text_wherever_it_is_shown(kind: str, tmp_path: Path) -> None:
    name, runs, out = NAMES[kind], tmp_path / "runs", tmp_path / "out"
    folder = renamed(runs, name)
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    for line in (
        ["status", "--runs", runs],
        ["verify", folder],
        ["report", folder, "--out", out],
        ["export", folder, "--out", out / "tables"],
        ["search", folder, "--replay"],
    ):
        called = call(*line)
        assert called.code in (0, 2), called.err
        assert not {"\x1b", "\x07", "\u202e"} & {*called.out, *called.err}
    after = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert after <= before | {out} | {folder / "study.lock"}
    page = Tags()
    page.feed((out / "report.html").read_text())
    assert "body" in page.found
    assert not {tag for tag in page.found if "hostile" in tag}
    assert json.loads((out / "summary.json").read_text())[0]["purpose"] == name
    figures = [*(out / "figures").iterdir()]
    assert {path.suffix for path in figures} == {".svg", ".png", ".pdf"}
    for path in (one for one in figures if one.suffix == ".svg"):
        drawn = {one.tag.rpartition("}")[2] for one in ElementTree.parse(path).iter()}  # noqa: S314
        assert "hostile" not in drawn
    scores = (out / "tables" / "scores.csv").read_text()
    assert not [cell for cell in next(iter(scores.splitlines())).split(",") if cell[:1] in "=+-@"]
    assert name in pd.read_csv(out / "tables" / "scores.csv").rename(
        columns=lambda cell: cell.removeprefix("'") if kind == "formula" else cell
    )
