from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trueoracle.criteria.base import CRITERIA
from trueoracle.criteria.files import load_criterion
from trueoracle.errors import InputError

FUNCTION = "def {}(dense, candidates, data):\n    return [0.0] * len(candidates)\n"
DECORATED = "from trueoracle import criterion\n\n@criterion('{}', source='here')\n" + FUNCTION


def test_the_one_function_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "random.py"  # a name that the standard library has, too
    path.write_text("import math\n\n" + FUNCTION.format("mine") + FUNCTION.format("_helper"))
    made = load_criterion(str(path))
    assert made.name == "mine"
    assert made.fingerprint
    assert not made.is_shipped
    assert load_criterion(f"{path}:_helper").name == "_helper"
    import random

    assert hasattr(random, "Random")


def test_what_the_decorator_made_goes_before_plain_functions(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(DECORATED.format("from-a-file", "made") + FUNCTION.format("other"))
    assert load_criterion(str(path)).name == "from-a-file"
    assert load_criterion(str(path)).source == "here"  # read once more: it replaces itself


def test_a_file_may_import_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helpers_beside.py").write_text("K = 7.0\n")
    path = tmp_path / "own.py"
    path.write_text(
        "from helpers_beside import K\n\n\ndef mine(dense, candidates, data):\n"
        "    return [K] * len(candidates)\n"
    )
    assert load_criterion(str(path)).function(None, [1, 2], None) == [7.0, 7.0]


def test_a_class_is_no_criterion(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("class Mine:\n    def __call__(self, dense, candidates, data): ...\n")
    with pytest.raises(InputError, match="criterion 'Mine' is a class: name a function, or an obj"):
        load_criterion(f"{path}:Mine")


def test_what_a_file_imports_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("from trueoracle.criteria.magnitude import l1\n\n" + FUNCTION.format("mine"))
    assert load_criterion(str(path)).name == "mine"


def test_registered_names_go_on_working() -> None:
    assert load_criterion("l1") is CRITERIA["l1"]


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("x = 1\n", "", "holds no criterion and no function"),
        (FUNCTION.format("a") + FUNCTION.format("b"), "", r"holds 2 criteria: name one .*\(a, b\)"),
        ("x = 1\n", ":x", "is a int, which cannot be called"),
        ("x = 1\n", ":y", "has no 'y'"),
        ("1 / 0\n", "", "cannot be run: ZeroDivisionError"),
        ("def\n", "", "cannot be run: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "", "cannot be run: SystemExit"),
    ],
)
def test_files_without_one_criterion_are_refused(
    tmp_path: Path, text: str, suffix: str, message: str
) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_criterion(f"{tmp_path / 'own.py'}{suffix}")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        load_criterion(str(tmp_path / "gone.py"))
