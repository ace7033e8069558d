"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, over random shapes.

``python -m tests.native.sanitized`` builds the kernels with both, and trains and evaluates random
networks of random sizes on them, on every instruction set of this processor, beside autograd. A
wrong access to memory or undefined arithmetic ends the program with a report and an exit code;
``--seed`` repeats a run. Needs g++ with its sanitizers (Linux).
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from trueoracle.native.library import Kernel, Optimizer, kernels
from trueoracle.native.lowering import CannotLowerError, lower
from trueoracle.native.program import Images, Program

SOURCES = Path(__file__).parents[2] / "trueoracle" / "native"
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.ELU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU)


def network(draw: random.Random) -> tuple[nn.Module, tuple[int, int, int], int]:
    """A random network, the shape of its images, and its number of outputs."""
    shape = (draw.randint(1, 3), draw.randint(1, 15), draw.randint(1, 15))
    layers: list[nn.Module] = []
    now = torch.zeros(1, *shape)
    for _ in range(draw.randint(0, 4)):
        made = _layer(draw, now.shape[1])
        try:
            now = made.eval()(now)
        except RuntimeError:  # it is larger than the image
            continue
        layers.append(made)
        if draw.random() < 0.7:
            layers.append(draw.choice(ACTIVATIONS)())
    outputs = draw.randint(1, 6)
    width = now.flatten(1).shape[1]
    layers.append(nn.Flatten())
    if draw.random() < 0.3:
        layers += [nn.Linear(width, hidden := draw.randint(1, 9)), nn.ReLU()]
        width = hidden
    layers.append(nn.Linear(width, outputs, bias=draw.random() < 0.8))
    return nn.Sequential(*layers), shape, outputs


def _layer(draw: random.Random, channels: int) -> nn.Module:
    def two(low: int, high: int) -> tuple[int, int]:
        return draw.randint(low, high), draw.randint(low, high)

    size = two(1, 4)
    if draw.random() < 0.6:
        return nn.Conv2d(
            *(channels, draw.randint(1, 7), size, two(1, 3), two(0, 3), two(1, 2)),
            bias=draw.random() < 0.7,
        )
    padding = draw.randint(0, size[0] // 2), draw.randint(0, size[1] // 2)
    if draw.random() < 0.5:
        return nn.MaxPool2d(size, two(1, 3), padding)
    return nn.AvgPool2d(size, two(1, 3), padding, count_include_pad=draw.random() < 0.5)


def carry_out(draw: random.Random, kernel: Kernel, dtype: torch.dtype) -> bool:
    """Every task of the kernels on a random network; False where it cannot be lowered."""
    made, shape, outputs = network(draw)
    made = made.to(dtype)
    try:
        program = Program(lower(made, shape), dtype, kernel)
    except CannotLowerError:
        return False
    members = [copy.deepcopy(made) for _ in range(draw.randint(1, 2 * program.lanes))]
    groups = [members[i : i + program.lanes] for i in range(0, len(members), program.lanes)]
    weights = [program.pack(group) for group in groups]
    count = draw.randint(1, 9)
    images = torch.randn(count, *shape, dtype=dtype)
    labels = torch.randint(0, outputs, (count,))
    seen = Images(images, labels)
    if draw.random() < 0.5:
        lanes = program.lanes
        wide = images[..., None].expand(*images.shape, lanes).contiguous()
        seen = Images(wide, labels[:, None].expand(-1, lanes).contiguous())
    each = [seen] * len(groups)
    found = program.outputs(weights, each)
    with torch.no_grad():
        _check(found[0][:, :, 0], made.eval()(images), "outputs")
    blocks = torch.tensor([draw.randint(0, 3) for _ in range(count)])
    program.evaluate(weights, each, blocks if draw.random() < 0.5 else None)
    program.gradients(weights, each, draw.random() / 2)
    options = Optimizer(
        kind=draw.randint(0, 2),
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.001,
        label_smoothing=0.1,
        gradient_clip=draw.choice((0.0, 1.0)),
    )
    state = [torch.zeros(2, *one.shape, dtype=dtype) for one in weights]
    steps = draw.randint(1, count + 2)
    program.train(weights, state, each, batch_size=steps, optimizer=options, steps_before=0)
    return True


def _check(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda m: f"{what}: {m}")


def run(seconds: float, seed: int) -> None:
    """Random networks for so many seconds."""
    torch.set_num_threads(2)
    started, done, number = time.monotonic(), 0, 0
    while time.monotonic() - started < seconds:
        torch.manual_seed(seed + number)
        for kernel in kernels():
            for dtype in (torch.float32, torch.float64):
                done += carry_out(random.Random(seed + number), kernel, dtype)
        number += 1
    names = ", ".join(kernel.name for kernel in kernels())
    print(f"{done:,} programs of {number:,} random networks on {names}: nothing found")
    if not done:
        raise SystemExit("no network could be lowered")


def build(folder: Path) -> None:
    """Build the kernels with sanitizers in ``folder``."""
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DSANITIZE=ON"],
        ["cmake", "--build", str(folder), "--parallel"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _runtime(name: str) -> str:
    asked = ["g++", f"-print-file-name={name}"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Build, and run in a process into which the sanitizers' runtime is loaded first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, help="keep the built library in this folder")
    given = parser.parse_args()
    if "LD_PRELOAD" in os.environ and "libasan" in os.environ["LD_PRELOAD"]:
        run(given.seconds, given.seed)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.build or Path(temporary)
        build(folder)
        settings = {
            "LD_PRELOAD": " ".join(map(_runtime, ("libasan.so", "libubsan.so"))),
            # Python keeps memory to its end; torch and numpy throw across each other's libraries.
            "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TRUEORACLE_NATIVE": str(folder),
        }
        command = [sys.executable, "-m", "tests.native.sanitized", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=os.environ | settings, check=False).returncode)


if __name__ == "__main__":
    main()
