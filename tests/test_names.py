"""Names that would lead out of a folder, and what becomes a file's name."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from trueoracle.data.questions import find_questions
from trueoracle.data.text import find_texts
from trueoracle.errors import InputError
from trueoracle.report.drawings import slug
from trueoracle.spec.grid import load_spec, variants
from trueoracle.study import Study

OUT = ("../out", "../../out", "/srv/out", "a/../../out", "..", ".", "a\\..\\out", "a/b", "-out", "")


@pytest.mark.parametrize("name", OUT)
def test_a_study_is_named_within_its_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f"extends = 'digits-conv1-0.2'\nname = '{name}'\n")
    with pytest.raises(InputError, match="name"):
        load_spec(str(path))
    with pytest.raises(InputError, match="name"):
        Study(name=name, network="lenet5-mini", pruning={"layers": {"conv1": 0.5}})


@pytest.mark.parametrize("name", [one for one in OUT if one])
def test_an_arm_is_named_within_its_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        f"extends = 'digits-conv1-0.2'\n[arms.'{name}'.retraining]\nepochs = 3\n[arms.a.arms]\n"
    )
    with suppress(InputError):
        spec = load_spec(f"{path}@{name}")
        assert Path("runs", spec.folder_name).resolve().parent == Path("runs").resolve()


def test_a_point_of_a_grid_is_named_within_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    values = ", ".join(f"'{one}'" for one in ("../../out", "/srv/out", "a/b"))
    path.write_text(f"extends = 'digits-conv1-0.2'\n[grid]\n'data.path' = [{values}]\n")
    for one in variants(str(path)):
        assert Path("runs", one.spec.folder_name).resolve().parent == Path("runs").resolve()


@pytest.mark.parametrize("name", [*OUT, "\0", "\x1b", "x" * 5000, "é/ü"])
def test_a_criterion_becomes_part_of_a_files_name(name: str) -> None:
    made = slug(name)
    assert len(Path("study-", f"{made}-loss").parts) == 2
    assert made.isascii()
    assert made.isprintable()
    assert len(made) < 200


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/passwd"])
def test_an_image_of_a_question_lies_in_the_folder_of_images(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    path = tmp_path / "questions" / "c.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"prompt": "What?", "answer": "It.", "image": name}))
    with pytest.raises(InputError, match="lies outside of the folder of images"):
        find_questions("instructions", str(path), None, {})


def test_links_without_an_end_and_pipes_are_no_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "again").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to("self.txt")
    os.mkfifo(tmp_path / "pipe.txt")  # reading it would wait for ever
    os.mkfifo(tmp_path / "pipe.toml")
    (text,) = find_texts("text", str(tmp_path), {}).values()
    assert list(text.pieces()) == [("a text", True)]
    with pytest.raises(InputError, match=r"pipe\.toml: it is no file"):
        load_spec(str(tmp_path / "pipe.toml"))
