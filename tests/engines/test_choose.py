"""Choosing an engine, cutting populations, and that the choice changes nothing but the speed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trueoracle.data.splits import Splits
from trueoracle.engines import choose, native, wide
from trueoracle.engines.choose import check_engine, plan, train_epochs, train_population
from trueoracle.errors import InputError
from trueoracle.native import program
from trueoracle.native.library import kernels
from trueoracle.networks.lenet import lenet5_mini
from trueoracle.networks.mlp import mlp
from trueoracle.training.loop import measure, train
from trueoracle.training.recipe import Recipe, Retraining

RECIPE = Recipe(epochs=2, batch_size=64, learning_rate=0.02)
needs_kernels = pytest.mark.skipif(not kernels(), reason="installed without the native kernels")


def lenets(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [lenet5_mini(width=3) for _ in range(count)]


def fixed_times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """The stopwatch of trials, replaced."""
    monkeypatch.setattr(choose, "_seconds_a_step", lambda engine, *_: seconds[engine])


@needs_kernels
def test_plain_networks_take_the_kernels(few_digits: Splits) -> None:
    torch.set_num_threads(2)
    chosen = plan(lenet5_mini(), few_digits, RECIPE, members=100)
    assert chosen.engine == "native"
    assert chosen.group == kernels()[0].lanes(False)
    assert chosen.groups % 2 == 0
    assert "native" in chosen.reason
    assert "loop" in chosen.reason
    assert str(chosen).startswith(f"engine native, {chosen.group} networks as one: native ")


@pytest.mark.parametrize(("loop", "engine"), [(0.5, "loop"), (2.0, "wide")])
def test_wide_is_taken_only_where_it_is_faster(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch, loop: float, engine: str
) -> None:
    fixed_times(monkeypatch, loop=loop, wide=1.0)
    network = mlp((1, 32, 32), hidden=(5,), batch_norm=True)
    chosen = plan(network, few_digits, RECIPE, members=100)
    assert chosen.engine == engine
    assert "native cannot: norm1 is a BatchNorm1d" in chosen.reason
    assert (chosen.group == 1) == (engine == "loop")
    assert chosen.groups == 1
    # Two epochs of 300 images, and 500 to evaluate at a third of the price; trials are of 64.
    images = 2 * (300 + 500 / 3)
    assert chosen.seconds_a_network == pytest.approx(min(loop, 1.0) * images / 64)


@needs_kernels
def test_empty_lanes_are_counted_in_the_time_expected(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_times(monkeypatch, native=1.0, loop=9.0)
    few, many = (plan(lenet5_mini(), few_digits, RECIPE, members=n) for n in (1, 320))
    assert few.seconds_a_network is not None
    assert many.seconds_a_network is not None
    at_once = few.group * torch.get_num_threads()
    assert few.seconds_a_network == pytest.approx(at_once * many.seconds_a_network)


def test_a_clear_order_decides_near_ties(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = mlp((1, 32, 32), hidden=(5,), batch_norm=True)
    for loop in (0.99, 1.04):
        fixed_times(monkeypatch, loop=loop, wide=1.0)
        assert plan(network, few_digits, RECIPE, members=100).engine == "loop"


def test_without_kernels_it_says_what_was_lost(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "kernels", tuple)
    monkeypatch.setattr(program, "missing", lambda: "the native kernels were not built; install …")
    chosen = plan(lenet5_mini(), few_digits, RECIPE, members=4)
    assert chosen.engine in ("wide", "loop")
    assert "native cannot: the native kernels were not built; install …" in chosen.reason


def test_an_engine_that_cannot_is_refused(few_digits: Splits) -> None:
    network = mlp((1, 32, 32), batch_norm=True)
    with pytest.raises(InputError, match=r"engine 'native' cannot .* norm1 is a BatchNorm1d"):
        check_engine("native", network, few_digits, RECIPE)
    with pytest.raises(InputError, match=r"engine 'wise'.*did you mean 'wide'"):
        check_engine("wise", network, few_digits, RECIPE)
    assert plan(network, few_digits, RECIPE, members=4, engine="loop").reason == "asked for"


@needs_kernels
def test_memory_bounds_what_is_trained_at_once(few_digits: Splits) -> None:
    network = lenet5_mini()
    fixed, each = native.measure_memory(network, few_digits, RECIPE)
    lanes = kernels()[0].lanes(False)
    for members in (lanes, 5 * lanes):
        budget = fixed + each * members
        chosen = plan(network, few_digits, RECIPE, members=1000, engine="native", memory=budget)
        assert chosen.group * chosen.groups <= members
        assert chosen.group == lanes
    with pytest.raises(
        InputError, match=r"networks, which engine 'native' .* need .* MB, and --memory leaves"
    ):
        plan(network, few_digits, RECIPE, members=9, engine="native", memory=fixed)


@needs_kernels
def test_where_memory_holds_no_population_the_loop_is_left(few_digits: Splits) -> None:
    chosen = plan(lenet5_mini(), few_digits, RECIPE, members=9, memory=1000)
    assert chosen.engine == "loop"
    assert "native needs" in chosen.reason
    assert "MB, and --memory leaves 1 kB" in chosen.reason


@needs_kernels
def test_batches_of_ones_own_take_memory(few_digits: Splits) -> None:
    network = lenet5_mini()
    common = native.measure_memory(network, few_digits, Retraining(batch_size=256))
    own = native.measure_memory(
        network, few_digits, Retraining(batch_size=256, common_random_numbers=False)
    )
    assert own[1] - common[1] == 2 * 256 * 1024 * 4


def test_memory_bounds_wide_populations(few_digits: Splits) -> None:
    network = mlp((1, 32, 32), batch_norm=True)
    fixed, each = wide.measure_memory(network, few_digits, RECIPE)
    budget = fixed + 5 * each
    chosen = plan(network, few_digits, RECIPE, members=1000, engine="wide", memory=budget)
    assert 3 <= chosen.group <= 7  # measured anew, so not to the byte


@pytest.mark.parametrize("engine", ["loop", "wide", pytest.param("native", marks=needs_kernels)])
def test_every_engine_gives_what_the_loop_gives(few_digits: Splits, engine: str) -> None:
    networks = lenets(3)
    singles = copy.deepcopy(networks)
    epochs: list[int] = []
    streams = [(0, ""), (0, ""), (5, "own")]
    found = train_population(
        networks, streams, few_digits, RECIPE, engine=engine, on_epoch=epochs.append
    )
    assert epochs == [3, 3]
    for single, records, (seed, stream) in zip(singles, found, streams, strict=True):
        expected = train(single, few_digits, RECIPE, seed=seed, stream=stream)
        assert [r.values["test_loss"] for r in records] == pytest.approx(
            [r.values["test_loss"] for r in expected], abs=1e-5
        )
        if engine == "loop":
            assert records == expected


@pytest.mark.parametrize("engine", ["loop", "wide", pytest.param("native", marks=needs_kernels)])
def test_a_population_that_diverges_whole_stops(few_digits: Splits, engine: str) -> None:
    networks = lenets(2)
    for network in networks:
        nn.init.constant_(network.get_parameter("fc2.weight"), float("nan"))
    epochs: list[int] = []
    found = train_population(
        networks, [(0, "")] * 2, few_digits, RECIPE, engine=engine, on_epoch=epochs.append
    )
    assert epochs == [2]
    assert all(len(own) == 1 and own[0].diverged for own in found)


def test_calls_last_about_as_long_as_they_should(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute a call, whatever the number of networks: what is lost in a kill stays small."""
    options: dict[str, Any] = {"members": 100_000, "engine": "wide"}
    fixed_times(monkeypatch, wide=1e-5)
    assert plan(lenet5_mini(), few_digits, RECIPE, **options).group == wide._MOST_ON_A_CPU
    if kernels():
        torch.set_num_threads(2)
        fixed_times(monkeypatch, native=100.0)  # however slow, each thread has work
        assert plan(lenet5_mini(), few_digits, RECIPE, members=9, engine="native").groups == 2
        fixed_times(monkeypatch, native=1e-3)
        few = plan(lenet5_mini(), few_digits, RECIPE, members=100_000, engine="native")
        fixed_times(monkeypatch, native=1e-4)
        many = plan(lenet5_mini(), few_digits, RECIPE, members=100_000, engine="native")
        assert many.groups == pytest.approx(10 * few.groups, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lora": {"rank": 2}}, r"adapters \(retraining.lora\) are trained one network at a time"),
        ({"accumulate": 2}, "accumulate = 2 is done one network at a time"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing = true is done one network"),
        ({"precision": "bfloat16"}, "weights in bfloat16 are trained one network at a time"),
    ],
)
@pytest.mark.parametrize("engine", ["native", "wide"])
def test_what_only_the_loop_does_is_said(
    few_digits: Splits, engine: str, fields: dict[str, Any], why: str
) -> None:
    recipe = Retraining.model_validate(fields)
    with pytest.raises(InputError, match=why):
        check_engine(engine, lenet5_mini(), few_digits, recipe)
    check_engine("loop", lenet5_mini(), few_digits, recipe)


@needs_kernels
@pytest.mark.parametrize("engine", ["loop", "wide", "native"])
def test_after_the_last_epoch_networks_are_measured_by_blocks(
    few_digits: Splits, engine: str
) -> None:
    data, networks = few_digits.in_blocks(6), lenets(3)
    found = train_population(networks, [(0, "")] * 3, data, RECIPE, engine=engine)
    plain = train_population(lenets(3), [(0, "")] * 3, few_digits, RECIPE, engine=engine)
    for network, records, without in zip(networks, found, plain, strict=True):
        assert [bool(record.blocks) for record in records] == [False, True]
        # Metrics are to the bit what they are without blocks.
        assert [record.values for record in records] == [record.values for record in without]
        assert not without[-1].blocks
        expected = measure(network, data, 1, 0.0, by_block=True).blocks
        assert records[-1].blocks.keys() == expected.keys()
        for column, sums in expected.items():
            assert records[-1].blocks[column] == pytest.approx(sums, rel=1e-5, abs=1e-6)


def test_only_the_end_of_a_recipe_is_measured_by_blocks(few_digits: Splits) -> None:
    data, recipe = few_digits.in_blocks(6), Recipe(epochs=3, batch_size=64)
    networks, streams = lenets(1), [(0, "")]
    ((first, second),), states = train_epochs(
        networks, streams, data, recipe, range(2), engine="loop"
    )
    assert not first.blocks
    assert not second.blocks
    ((last,),), _ = train_epochs(
        networks, streams, data, recipe, range(2, 3), engine="loop", states=states
    )
    assert last.blocks.keys() == {
        f"{split}_{name}" for split in ("validation", "test") for name in ("loss", "accuracy")
    }
