"""A report for others: no host, user or absolute path in any of its files."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import call
from tests.record.records import older_record, synthetic
from tests.report.test_honesty import data_of
from trueoracle.grid import Grid
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import Results
from trueoracle.report.share import shared_names, without_places
from trueoracle.spec.grid import Variant
from trueoracle.tasks.metric import CLASSIFICATION

HIDDEN = ("somebody", "her-host", "987654321", "secret", "/home", "/srv")
FACTS = {
    "host": "her-host",
    "user": "somebody",
    "pid": 987654321,
    "skipped": {"l1": "cannot read /home/somebody/secret/scores.csv: it is gone"},
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A record whose fields name places, and so does the folder that it lies in."""
    folder = older_record(tmp_path / "somebody" / "secret")  # whose rows have no checksums
    spec: dict[str, Any] = Results(folder).spec.model_dump(mode="json")
    spec["network"] |= {"name": "hf:/srv/secret/llama", "weights": "/srv/secret/weights.pt"}
    spec["data"] |= {"path": "/home/somebody/images", "columns": {"text": "~somebody/a b/c.txt"}}
    spec["purpose"] = "as in /home/somebody/secret/notes.txt and (/srv/secret/x)"
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute(
            "UPDATE provenance SET spec = ?, facts = ?", (json.dumps(spec), json.dumps(FACTS))
        )
    return Results(folder)


def told(folder: Path) -> dict[str, str]:
    """The hidden words that the files hold, by file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {
        f"{path.relative_to(folder)}": word
        for path in files
        for word in HIDDEN
        if word.encode() in path.read_bytes()
    }


def test_a_report_to_share_says_nothing_of_the_machine(results: Results, tmp_path: Path) -> None:
    plain, shared, tables = tmp_path / "plain", tmp_path / "shared", tmp_path / "tables"
    assert call("report", results.folder, "--out", plain).code == 0
    assert {"report.html", "summary.json"} <= told(plain).keys()
    assert call("report", results.folder, "--share", "--out", shared).code == 0
    assert told(shared) == {}
    (summary,) = json.loads((shared / "summary.json").read_text())
    assert summary["spec"]["network"]["name"] == "hf:llama"
    assert summary["spec"]["data"]["path"] == "images"
    assert summary["digest"] == results.spec.digest  # that of the study as it is
    assert summary["folder"] == results.folder.name
    for form in ("csv", "parquet"):
        assert call("export", results.folder, "--format", form, "--out", tables).code == 0
    assert told(tables) == {}


def test_a_grid_to_share(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = results.spec
    monkeypatch.setattr(Results, "__init__", lambda self, _: self.__dict__.update(results.__dict__))
    monkeypatch.setattr(Grid, "folders", lambda self: {"one": results.folder})
    points = [Variant(spec, grid="made", label="one", values={"width": 1})]
    Grid(points, runs=tmp_path).report(tmp_path / "plain")
    assert told(tmp_path / "plain")
    Grid(points, runs=tmp_path).report(tmp_path / "shared", share=True)
    assert told(tmp_path / "shared") == {}


def test_criteria_of_one_file_name_stay_two(tmp_path: Path) -> None:
    names = ("/home/a/x.py:score", "/home/b/x.py:score", "x.py:score (2)")
    assert [*shared_names(names).values()] == ["x.py:score", "x.py:score (2)", "x.py:score (2) (2)"]
    noises = dict(zip(names, (0.05, 5.0, 9.0), strict=True))
    results = Results(synthetic(tmp_path, "classification", CLASSIFICATION, noises=noises))
    known = {one["criterion"]: one["agreement"] for one in results.summary()["relations"]}
    page = results.report(tmp_path / "shared", share=True).page.read_text("utf-8")
    (study,) = data_of(page)["studies"]
    for name, shown in shared_names(names).items():
        one = study["relations"][shown]["test_loss"]
        assert one["agreement"] == pytest.approx(known[name], abs=1e-5)
        scores = study["networks"][0]["scores"][shown]
        assert scores == pytest.approx(results.score(name).values.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/a b/file.txt", "file.txt"),
        ("/home/me/images/", "images"),
        ("~/data", "data"),
        ("../../me/data.json", "data.json"),
        ("C:\\Users\\me\\data.csv", "data.csv"),
        ("hf:/models/llama", "hf:llama"),
        ("hf:organisation/llama", "hf:organisation/llama"),
        ("runs/tiny-0123/dense.safetensors", "runs/tiny-0123/dense.safetensors"),
        ("cannot read '/home/me/x.pt': gone", "cannot read 'x.pt': gone"),
        ("see https://arxiv.org/abs/2412.00143", "see https://arxiv.org/abs/2412.00143"),
        ("https://arxiv.org/abs/2412.00143", "https://arxiv.org/abs/2412.00143"),
        ("train / test loss, 3/4 of it, and/or more", "train / test loss, 3/4 of it, and/or more"),
    ],
)
def test_of_a_path_the_last_name_stays(value: str, shown: str) -> None:
    assert without_places({"a": [value], value: 1}) == {"a": [shown], shown: 1}
