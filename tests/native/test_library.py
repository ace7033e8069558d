"""Finding the compiled kernels, and doing without them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from trueoracle.native import library

ASK = "from trueoracle.native.library import kernels, missing; print(len(kernels()), missing())"


def asked(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"TRUEORACLE_NATIVE": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_what_is_not_built_is_said_with_what_to_do(tmp_path: Path) -> None:
    answer = asked(tmp_path)
    assert answer.startswith("0 the native kernels were not built when trueoracle was installed")
    assert "install a C++ compiler (g++ or clang++) and reinstall trueoracle" in answer


def test_a_damaged_library_is_said(tmp_path: Path) -> None:
    (tmp_path / library._name()).write_bytes(b"no library")
    assert asked(tmp_path).startswith("0 the native kernels cannot be loaded (")


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="Linux has /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere there are the portable ones")
@pytest.mark.skipif(not library.kernels(), reason="installed without the native kernels")
def test_the_kernels_are_those_that_the_processor_can_run() -> None:
    flags = set(CPUINFO.read_text().split())
    needed = {
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
        "avx2": {"avx2", "fma"},
        "portable": set(),
    }
    expected = [name for name, those in needed.items() if those <= flags]
    assert [kernel.name for kernel in library.kernels()] == expected


@pytest.mark.skipif(not library.kernels(), reason="installed without the native kernels")
def test_kernels_are_listed_the_fastest_first() -> None:
    found = library.kernels()
    assert library.missing() is None
    assert found[-1].name == "portable"
    lanes = [kernel.lanes(False) for kernel in found]
    assert lanes == sorted(lanes, reverse=True)
    assert [kernel.lanes(True) for kernel in found] == [count // 2 for count in lanes]
