"""What tells the studies of a page and of a table apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from tests.record.records import older_record, synthetic
from trueoracle.record.results import Results
from trueoracle.report.drawings import Folder
from trueoracle.report.page import study_page
from trueoracle.report.sections import labels_of
from trueoracle.report.words import told_apart
from trueoracle.spec.grid import load_spec
from trueoracle.spec.scale import differences_in_words
from trueoracle.tasks.metric import CLASSIFICATION


def test_studies_of_one_name_have_the_digest_and_records_of_one_study_a_number() -> None:
    assert told_apart(["a", "b"], ["1", "2"]) == ["a", "b"]
    assert told_apart(["a", "a", "b"], ["1", "2", "3"]) == ["a (1)", "a (2)", "b"]
    assert told_apart(["a"] * 3, ["1", "2", "1"]) == ["a (1)", "a (2)", "a (1), 2"]
    one = load_spec("digits-conv1-0.2")
    other = load_spec("digits-conv1-0.2", {"retraining.epochs": 12})
    arm = load_spec("digits-conv1-0.2@short")
    assert labels_of([one, other, arm]) == [
        f"digits-conv1-0.2 ({one.digest})", f"digits-conv1-0.2 ({other.digest})", "@short",
    ]  # fmt: skip


@pytest.mark.slow
def test_records_of_one_name_are_told_apart_everywhere(tmp_path: Path) -> None:
    """An old record beside a newer one of the same name."""
    older = Results(older_record(tmp_path / "older", 3))
    newer = Results(older_record(tmp_path / "newer", 5))
    assert older.spec.name == newer.spec.name
    page, _ = study_page(older, [newer], folder := Folder(tmp_path / "figures"))
    labels = labels_of([older.spec, newer.spec])
    assert len(set(labels)) == 2
    for label in labels:
        assert f'data-study="{label}"' in page
        assert f'"label":"{label}"' in page
    regions = re.findall(r'role="region" aria-label="([^"]*)"', page)
    assert len(set(regions)) == len(regions)
    assert len(set(folder.written)) == len(folder.written)
    shown = call("report", older.folder, newer.folder, "--out", tmp_path / "out").out
    for label in labels:
        assert shown.count(label) >= 4


def test_a_study_of_other_kind_names_a_few_of_its_fields() -> None:
    main, other = load_spec("digits-conv1-0.2"), load_spec("glyphs-fc1-0.2")
    words = differences_in_words(other, main)
    assert words.startswith("network.name mlp, not lenet5-mini, ")
    assert words.count(", not ") == 3
    assert re.search(r", and \d+ other fields$", words)
    arm = load_spec("digits-conv1-0.2@short")
    assert "other field" not in differences_in_words(arm, main)


def test_no_figure_is_written_over_another(tmp_path: Path) -> None:
    run = Results(synthetic(tmp_path / "runs", "classification", CLASSIFICATION))
    folder = Folder(tmp_path / "figures")
    for _ in range(2):
        folder.draw(run.plot, "a", alt="")
    assert sorted(path.name for path in folder.written if path.suffix == ".svg") == [
        "a-2.svg", "a.svg",
    ]  # fmt: skip
