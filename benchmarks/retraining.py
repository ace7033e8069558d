"""Retraining pruned networks: the loop, the best single network in PyTorch, and the engines.

    python benchmarks/retraining.py                   all settings, some ten minutes
    python benchmarks/retraining.py --settings lenet5-mini --json

Every variant trains the same pruned networks on the same images, an epoch of training and the
evaluation after it, as a study does; variants take turns, and the fastest of the rounds counts.

- loop: one network at a time, contiguous layout, eager: what the paper's procedure does
- compiled: one network at a time, channels last, torch.compile
- wide, native: populations

`models_per_hour` is for 30 epochs. FLOPs are 2 x the multiply-adds that a single network needs, as
PyTorch's counter sees them: padding, empty lanes and the like count for nothing. `sgemm_ratio` is
the training step's share of a 2048 x 2048 matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from common import machine, peak_bytes, sgemm_gflops, show, timed
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from trueoracle.data import datasets
from trueoracle.data.splits import Split, Splits
from trueoracle.engines import native, wide
from trueoracle.errors import first_line
from trueoracle.native.library import kernels
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.walk import find_groups
from trueoracle.study import Study
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate
from trueoracle.training.loop import batches, make_optimizer, train_epoch
from trueoracle.training.recipe import Recipe

EPOCHS = 30
RECIPE = Recipe(epochs=EPOCHS, batch_size=256, learning_rate=0.001, momentum=0.9, weight_decay=1e-4)
VARIANTS = ("loop", "compiled", "wide", "native")


@dataclass(frozen=True)
class Setting:
    """A network, how it is pruned, and how many images and members are measured."""

    network: str
    arguments: dict[str, int]
    layers: dict[str, float]
    train_images: int
    test_images: int
    wide_members: int
    native_groups: int = 2

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        channels = 3 if self.network == "resnet20" else 1
        return build(self.network, self.arguments, input_shape=(channels, 32, 32), classes=10)

    def data(self) -> Splits:
        """Real digits; for networks in colour noise, whose speed is the same."""
        if self.network != "resnet20":
            whole = datasets.load("mnist-5k", validation_images=0, split_seed=0)
            return Splits(
                whole.train.take(torch.arange(self.train_images)),
                None,
                whole.test.take(torch.arange(self.test_images)),
                whole.task,
                fill=whole.fill,
            )
        generator = torch.Generator().manual_seed(0)

        def noise(count: int) -> Split:
            images = torch.randn(count, 3, 32, 32, generator=generator)
            return Split.of(images, torch.arange(count) % 10)

        return Splits(noise(self.train_images), None, noise(self.test_images), Classification(10))

    def pruned(self, count: int, images: Tensor) -> list[nn.Module]:
        dense = self.make()
        ways = list_candidates(find_groups(dense, images[:2]), self.layers, count=count)
        return [ways.prune(dense, index) for index in range(count)]


LENET = {"train_images": 4000, "test_images": 1000, "wide_members": 8}
SETTINGS = {
    "lenet5-mini": Setting("lenet5-mini", {}, {"conv1": 0.5}, **LENET),
    "width 40": Setting("lenet5-mini", {"width": 40}, {"conv1": 0.5}, **LENET),
    "depth 8": Setting("lenet5-mini", {"depth": 8}, {"conv1": 0.5}, **LENET),
    "resnet20": Setting("resnet20", {}, {"layer*.conv1": 0.5}, 512, 256, wide_members=4),
}


class CompiledPopulation:
    """The best that we could write for one network at a time: channels last and torch.compile."""

    def __init__(self, network: nn.Module, data: Splits, recipe: Recipe) -> None:
        last = torch.channels_last
        self._network = network.to(memory_format=last)  # type: ignore[call-overload]
        self._compiled: Any = torch.compile(self._network)
        self._data = Splits(
            Split.of(data.train.inputs.contiguous(memory_format=last), data.train.targets),
            None,
            Split.of(data.test.inputs.contiguous(memory_format=last), data.test.targets),
            data.task,
            fill=data.fill,
        )
        self._recipe = recipe
        self._optimizer = make_optimizer(network.parameters(), recipe)

    def train_epoch(self, epoch: int) -> None:
        self._network.train()
        for batch in batches(self._data, self._recipe, 0, epoch):
            self._optimizer.zero_grad()
            logits = self._compiled(batch["input"])
            functional.cross_entropy(logits, batch["target"]).backward()
            self._optimizer.step()

    def measure(self) -> None:
        for _, split in self._data.named():
            evaluate(self._compiled, split, self._data.task)


class SinglePopulation:
    """The reference loop."""

    def __init__(self, network: nn.Module, data: Splits, recipe: Recipe) -> None:
        self._network, self._data, self._recipe = network, data, recipe
        self._optimizer = make_optimizer(network.parameters(), recipe)

    def train_epoch(self, epoch: int) -> None:
        train_epoch(self._network, self._optimizer, self._data, self._recipe, epoch, (0, ""))

    def measure(self) -> None:
        for _, split in self._data.named():
            evaluate(self._network, split, self._data.task)


class Trained(Protocol):
    """Networks in training, whichever way."""

    def train_epoch(self, epoch: int) -> None: ...

    def measure(self) -> object: ...


def population(variant: str, setting: Setting, data: Splits) -> tuple[Trained, int]:
    """A variant ready to train, and how many networks it trains; raises where it cannot."""
    if variant in ("loop", "compiled"):
        (network,) = setting.pruned(1, data.train.inputs)
        if variant == "loop":
            return SinglePopulation(network, data, RECIPE), 1
        return CompiledPopulation(network, data, RECIPE), 1
    example = setting.pruned(1, data.train.inputs)[0]
    if variant == "wide":
        members = setting.wide_members
        if why := wide.refusal(example, data, RECIPE):
            raise ValueError(why)
    else:
        if why := native.refusal(example, data, RECIPE):
            raise ValueError(why)
        members = native.lanes(example, data) * setting.native_groups
    networks = setting.pruned(members, data.train.inputs)
    streams = [(0, "")] * members
    if variant == "wide":
        return wide.WidePopulation(networks, streams, data, RECIPE), members
    return native.NativePopulation(networks, streams, data, RECIPE), members


def flops_a_step_image(setting: Setting, data: Splits) -> float:
    """Useful FLOPs of forward and backward for one image, by PyTorch's own counter."""
    (network,) = setting.pruned(1, data.train.inputs)
    few = data.train.take(torch.arange(32))
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(network(few.inputs), few.targets).backward()
    return float(counter.get_total_flops()) / 32


def memory_of(variant: str, name: str) -> Callable[[], object]:
    """For a fresh process: prepare a variant, and return one epoch of it."""
    setting = SETTINGS[name]
    data = setting.data()
    made, _ = population(variant, setting, data)

    def work() -> None:
        made.train_epoch(0)
        made.measure()

    return work


def measure_setting(name: str, rounds: int, variants: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row a variant."""
    setting = SETTINGS[name]
    data = setting.data()
    made: dict[str, tuple[Trained, int]] = {}
    rows: dict[str, dict[str, Any]] = {v: {"setting": name, "variant": v} for v in variants}
    for variant in variants:
        try:
            made[variant] = population(variant, setting, data)
            made[variant][0].train_epoch(0)  # warms up, and compiles
            made[variant][0].measure()
        except Exception as error:  # no compiler, or a network that the variant does not know
            made.pop(variant, None)
            rows[variant]["note"] = f"cannot: {first_line(error)}"
    train = dict.fromkeys(made, float("inf"))
    evaluation = dict.fromkeys(made, float("inf"))
    sgemm = 0.0
    for _ in range(rounds):
        sgemm = max(sgemm, sgemm_gflops())
        for variant, (one, members) in made.items():
            train[variant] = min(train[variant], timed(partial(one.train_epoch, 0)) / members)
            evaluation[variant] = min(evaluation[variant], timed(one.measure) / members)
    useful = flops_a_step_image(setting, data) * len(data.train)
    epoch = {variant: train[variant] + evaluation[variant] for variant in made}
    for variant, (_, members) in made.items():
        gflops = useful / train[variant] / 1e9
        rows[variant] |= {
            "members": members,
            "step_ms": train[variant] / -(-len(data.train) // RECIPE.batch_size) * 1000,
            "models_per_hour": round(3600 / (EPOCHS * epoch[variant])),
            "ratio_to_loop": epoch["loop"] / epoch[variant] if "loop" in epoch else None,
            "ratio_to_compiled": (
                epoch["compiled"] / epoch[variant] if "compiled" in epoch else None
            ),
            "step_gflops": gflops,
            "sgemm_gflops": sgemm,
            "sgemm_ratio": gflops / sgemm,
            "peak_mb": peak_bytes(memory_of, variant, name) / 1e6,
        }
    return list(rows.values())


class Stopwatch:
    """A study's progress that only looks at the clock."""

    def __init__(self) -> None:
        self.began = 0.0

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        if name == "retrain":
            self.began = time.perf_counter()

    def advance(self, count: float = 1, note: str = "") -> None: ...

    def message(self, text: str) -> None: ...


def study_seconds(engine: str, candidates: int, epochs: int) -> float:
    """Seconds a network of a whole study's retraining: pruning, evaluation and recording too."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            name="benchmark",
            network="lenet5-mini",
            data={"name": "mnist-5k", "validation_images": 0},
            dense={"epochs": 1},
            pruning={"layers": {"conv1": 0.5}, "candidates": candidates},
            criteria=["l1"],
            retraining=RECIPE.model_dump() | {"epochs": epochs, "seeds": [0]},
            runs=Path(folder),
        )
        watch = Stopwatch()
        study.run(progress=watch, engine=engine)
        return (time.perf_counter() - watch.began) / candidates


def measure_study(rounds: int, epochs: int) -> dict[str, Any]:
    """A whole study by the loop and by the native engine, and twice as many candidates."""
    loop = single = double = float("inf")
    lanes = 0
    setting = SETTINGS["lenet5-mini"]
    data = setting.data()
    lanes = native.lanes(setting.pruned(1, data.train.inputs)[0], data)
    count = lanes * torch.get_num_threads() * 2
    for _ in range(rounds):
        loop = min(loop, study_seconds("loop", 2, epochs))
        single = min(single, study_seconds("native", count, epochs))
        double = min(double, study_seconds("native", 2 * count, epochs))
    return {
        "candidates": count,
        "epochs": epochs,
        "loop_seconds_a_network_30_epochs": loop * EPOCHS / epochs,
        "native_seconds_a_network_30_epochs": single * EPOCHS / epochs,
        "whole_study_ratio_to_loop": loop / single,
        "doubled_candidates_time_ratio": 2 * double / single,
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3, help="the fastest round counts [3]")
    parser.add_argument("--no-study", action="store_true", help="leave out the whole study")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rows": []}
    for name in options.settings:
        result["rows"] += measure_setting(name, options.rounds, tuple(options.variants))
    if not options.no_study and kernels():
        result["study"] = measure_study(options.rounds, epochs=3)
    show(result, options.json, result["rows"])
    if not options.json and "study" in result:
        print("whole study:", ", ".join(f"{k} {v:.4g}" for k, v in result["study"].items()))


if __name__ == "__main__":
    main()
