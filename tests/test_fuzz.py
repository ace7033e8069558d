"""A few seconds of the fuzzer, and the cases in which it has found something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import DOORS, make_real, one_case

FOUND = (2240, 5624, 8468)
"""Cases of seed 0 that were findings once."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    make_real(folder)
    return folder


@pytest.mark.parametrize("number", [*range(2 * len(DOORS)), *FOUND])
def test_a_changed_file_is_read_or_refused(number: int, real: Path, tmp_path: Path) -> None:
    assert one_case(0, number, real, tmp_path) == ""


def test_a_case_is_always_the_same(real: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        one_case(3, 100, real, tmp_path / name)
    (ours, theirs) = (
        {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("one", "other")
    )
    assert ours == theirs


def test_what_is_no_clean_error_is_a_finding(real: Path, tmp_path: Path) -> None:
    from tests.fuzz import _finding

    def broken(_: Path) -> None:
        raise KeyError("x")

    def endless(_: Path) -> None:
        raise MemoryError("9 TB")

    assert _finding(broken, tmp_path).startswith("unexpected error: KeyError: 'x'")
    assert _finding(endless, tmp_path).startswith("MemoryError: ")
