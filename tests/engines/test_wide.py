from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.data.splits import Split, Splits
from trueoracle.engines.memory import LiveBytes
from trueoracle.engines.wide import WidePopulation, measure_memory, refusal
from trueoracle.networks.registry import build
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate
from trueoracle.training.loop import EpochRecord, train
from trueoracle.training.recipe import Recipe, Retraining

Factory = Callable[[], nn.Module]
PATHS = ["members", "grouped", "columns"]


class Residual(nn.Module):
    """Convolutions of all kinds, batch norms of all kinds, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, (3, 5), padding=(1, 2), bias=False)
        self.norm1 = nn.BatchNorm2d(8, momentum=None)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.norm2 = nn.BatchNorm2d(8, affine=False)
        self.narrow = nn.Conv2d(8, 6, 1, stride=2)
        self.norm3 = nn.BatchNorm2d(6, track_running_stats=False)
        self.same = nn.Conv2d(6, 6, 3, padding="same", padding_mode="circular")
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm0(self.stem(x)))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        y = self.norm3(self.narrow(self.relu(y)))
        y = functional.max_pool2d(self.same(y), 2)
        logits: Tensor = self.fc(self.pool(y).mean((2, 3)))
        return logits


class Transformer(nn.Module):
    """A block of a vision transformer, on patches of 8x8 pixels."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 8, stride=8)
        self.start = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(16, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16, bias=False)
        )
        self.norm3 = nn.GroupNorm(2, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0] * scale
        x = x + self.mlp(self.norm2(x))
        logits: Tensor = self.head(self.norm3(x[:, 0]))
        return logits


def mlp() -> nn.Module:
    return build("mlp", {"hidden": (20, 15)}, input_shape=(1, 32, 32), classes=10)


def norm_mlp() -> nn.Module:
    arguments = {"hidden": (20, 15), "batch_norm": True}
    return build("mlp", arguments, input_shape=(1, 32, 32), classes=10)


def pruned_lenet() -> nn.Module:
    """One of the ways to prune half of conv1, by the global random numbers."""
    dense = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    group = find_groups(dense, torch.zeros(1, 1, 32, 32)).groups["conv1"]
    return prune(dense, [group], {"conv1": torch.randperm(10)[:5].sort().values.numpy()})


def members(factory: Factory, count: int = 3) -> list[nn.Module]:
    networks = []
    for i in range(count):
        torch.manual_seed(i)
        networks.append(factory())
    return networks


@pytest.fixture(scope="module")
def data(few_digits: Splits) -> Splits:
    """Real digits, very few: 90 in batches of 32 leave a smaller last batch."""
    parts = [few_digits.train.take(torch.arange(i, i + n)) for i, n in ((0, 90), (100, 30))]
    few_to_test = few_digits.test.take(torch.arange(0, 100, 3))
    return Splits(parts[0], parts[1], few_to_test, Classification(10), few_digits.fill)


def train_wide(
    networks: Sequence[nn.Module],
    data: Splits,
    recipe: Recipe,
    streams: Sequence[tuple[int, str]] | None = None,
    **options: Any,
) -> dict[str, Mapping[str, Tensor]]:
    population = WidePopulation(
        networks, streams or [(7, "")] * len(networks), data, recipe, **options
    )
    for epoch in range(recipe.epochs):
        population.train_epoch(epoch)
    measured = population.measure().values
    population.write_back()
    return measured


def assert_same(
    networks: Sequence[nn.Module],
    measured: Mapping[str, Mapping[str, Tensor]],
    alone: Sequence[nn.Module],
    records: Sequence[EpochRecord],
    atol: float = 1e-4,
) -> None:
    for i, record in enumerate(records):
        for name, metrics in measured.items():
            losses, accuracies = metrics["loss"], metrics["accuracy"]
            assert losses.dtype == accuracies.dtype == torch.float64
            assert float(losses[i]) == pytest.approx(record.values[f"{name}_loss"], abs=atol)
            assert float(accuracies[i]) == pytest.approx(record.values[f"{name}_accuracy"])
    for together, one in zip(networks, alone, strict=True):
        expected = one.state_dict()
        for name, value in together.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=atol, rtol=1e-3)


def check_against_loop(
    factory: Factory,
    data: Splits,
    recipe: Recipe,
    streams: Sequence[tuple[int, str]] = ((7, ""),) * 3,
    **options: Any,
) -> None:
    networks = members(factory, len(streams))
    alone = copy.deepcopy(networks)
    measured = train_wide(networks, data, recipe, streams, **options)
    records = [
        train(one, data, recipe, seed=seed, stream=stream)[-1]
        for one, (seed, stream) in zip(alone, streams, strict=True)
    ]
    assert_same(networks, measured, alone, records)


def recipe_of(**fields: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 2, "batch_size": 32, "learning_rate": 0.03} | fields)


@pytest.mark.parametrize(
    "factory", [pruned_lenet, Residual, mlp, norm_mlp, Transformer], ids=lambda f: f.__name__
)
def test_members_train_as_they_would_alone(factory: Factory, data: Splits) -> None:
    check_against_loop(factory, data, recipe_of(shift=1, flip=True))


@pytest.mark.parametrize("path", ["grouped", "columns", "measured"])
@pytest.mark.parametrize("factory", [pruned_lenet, Residual], ids=lambda f: f.__name__)
def test_members_train_alike_however_convolutions_are_computed(
    factory: Factory, path: str, data: Splits
) -> None:
    check_against_loop(factory, data, recipe_of(epochs=1), convolution=path)


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_decay": 0.1, "momentum": 0.5, "label_smoothing": 0.1},
        {"optimizer": "adam", "weight_decay": 0.01, "learning_rate": 0.003},
        {"optimizer": "adamw", "weight_decay": 0.5, "learning_rate": 0.003},
        {"gradient_clip": 0.05},
        {"schedule": "cosine", "final_learning_rate": 0.001, "epochs": 3},
        {"milestones": (1,), "epochs": 3, "batch_size": 90},
        {"warmup": 3, "schedule": "cosine", "schedule_per": "step", "steps_per_epoch": 2},
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "resized_crop": 0.4},
    ],
    ids=lambda fields: next(iter(fields)) + str(next(iter(fields.values()))),
)
def test_every_recipe_trains_as_the_loop(fields: dict[str, Any], data: Splits) -> None:
    check_against_loop(pruned_lenet, data, recipe_of(**fields))


def test_members_of_different_streams_see_their_own_mixtures(data: Splits) -> None:
    streams = [(0, ""), (0, "own"), (1, "")]
    check_against_loop(pruned_lenet, data, recipe_of(mixup=1.0, flip=True), streams)


def test_members_of_different_streams_see_their_own_batches(data: Splits) -> None:
    streams = [(1, "a"), (1, "b"), (2, "a"), (1, "a")]
    recipe = recipe_of(shift=1)
    check_against_loop(pruned_lenet, data, recipe, streams)
    check_against_loop(norm_mlp, data, recipe, streams)
    check_against_loop(Residual, data, recipe_of(epochs=1), streams, convolution="grouped")


@pytest.mark.parametrize("path", PATHS)
def test_results_do_not_depend_on_who_is_in_the_population(path: str, data: Splits) -> None:
    together, apart = members(pruned_lenet, 6), members(pruned_lenet, 6)
    recipe = recipe_of()
    whole = train_wide(together, data, recipe, convolution=path)
    parts = [train_wide(apart[i : i + 3], data, recipe, convolution=path) for i in (0, 3)]
    for name, metrics in whole.items():
        joined = {key: torch.cat([part[name][key] for part in parts]) for key in metrics}
        torch.testing.assert_close(metrics["loss"], joined["loss"], atol=1e-5, rtol=0)
        assert torch.equal(metrics["accuracy"], joined["accuracy"])
    alone = train_wide(members(pruned_lenet, 1), data, recipe, convolution=path)
    torch.testing.assert_close(alone["test"]["loss"], whole["test"]["loss"][:1], atol=1e-5, rtol=0)


def test_a_population_is_measured_as_evaluate_does(data: Splits) -> None:
    networks = members(Residual)
    population = WidePopulation(networks, [(0, "")] * 3, data, Recipe())
    measured = population.measure().values
    assert list(measured) == ["train", "validation", "test"]
    for name, split in data.named():
        for i, network in enumerate(networks):
            expected = evaluate(network, split, Classification(10))
            assert float(measured[name]["loss"][i]) == pytest.approx(expected["loss"], abs=1e-5)
            assert float(measured[name]["accuracy"][i]) == expected["accuracy"]
    without = Splits(data.train, None, data.test, Classification(10))
    measured = WidePopulation(networks, [(0, "")] * 3, without, Recipe()).measure().values
    assert list(measured) == ["train", "test"]


def test_networks_change_only_when_written_back(data: Splits) -> None:
    networks = members(norm_mlp)
    before = copy.deepcopy(networks)
    population = WidePopulation(networks, [(0, "")] * 3, data, recipe_of())
    population.train_epoch(0)
    for network, old in zip(networks, before, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, old.state_dict()[name])
    population.write_back()
    for network, old in zip(networks, before, strict=True):
        for name, value in network.state_dict().items():
            assert not torch.equal(value, old.state_dict()[name]), name
    assert int(networks[0].get_buffer("norm1.num_batches_tracked")) == 3
    assert evaluate(networks[1], data.test, Classification(10))["loss"] == pytest.approx(
        float(population.measure().values["test"]["loss"][1]), abs=1e-6
    )


@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_those_of_the_members(path: Any, data: Splits) -> None:
    """In float64, after one step of plain SGD: weights moved by the gradient times the rate."""
    networks = [network.double() for network in members(Residual, 2)]
    alone = copy.deepcopy(networks)
    recipe = recipe_of(momentum=0, weight_decay=0, learning_rate=1)
    population = WidePopulation(networks, [(0, "")] * 2, data, recipe, convolution=path)
    population._stacked.train(True)
    images, labels = data.train.inputs[:8].double(), data.train.targets[:8]
    population._step(images, {"input": images, "target": labels})
    population.write_back()
    for moved, one in zip(networks, alone, strict=True):
        functional.cross_entropy(one(images), labels).backward()
        for after, before in zip(moved.parameters(), one.parameters(), strict=True):
            assert before.grad is not None
            torch.testing.assert_close(before - after, before.grad, atol=1e-11, rtol=1e-8)


def test_dropout_is_that_of_the_loop_where_members_share_a_stream(data: Splits) -> None:
    check_against_loop(lambda: Transformer(dropout=0.2), data, recipe_of())


def test_dropout_is_independent_where_streams_differ_and_repeats_itself(data: Splits) -> None:
    constant = Split.of(torch.ones_like(data.train.inputs), torch.zeros_like(data.train.targets))
    same_batches = Splits(constant, None, data.test, Classification(10))
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        network = Transformer(dropout=0.5)
        networks = [copy.deepcopy(network) for _ in range(2)]
        train_wide(networks, same_batches, recipe_of(), [(0, "a"), (0, "b")])
        results.append([torch.cat([p.flatten() for p in n.parameters()]) for n in networks])
    assert not torch.allclose(results[0][0], results[0][1], atol=1e-3)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_training_leaves_the_global_random_numbers_alone(data: Splits) -> None:
    networks = members(Transformer)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train_wide(networks, data, recipe_of(epochs=1))
    assert refusal(networks[0], data, Recipe()) is None
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("path", PATHS)
def test_a_member_that_diverges_leaves_the_others_alone(path: str, data: Splits) -> None:
    recipe = recipe_of(gradient_clip=1.0)
    healthy, spoilt = members(Residual), members(Residual)
    with torch.no_grad():
        spoilt[1].get_parameter("conv1.weight").fill_(math.nan)
    expected = train_wide(healthy, data, recipe, convolution=path)["train"]["loss"]
    found = train_wide(spoilt, data, recipe, convolution=path)["train"]["loss"]
    assert math.isnan(float(found[1]))
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def frozen_lenet() -> nn.Module:
    network = pruned_lenet()
    network.get_submodule("conv1").requires_grad_(False)
    return network


def test_frozen_parameters_stay(data: Splits) -> None:
    networks = members(frozen_lenet)
    before = [network.get_parameter("conv1.weight").clone() for network in networks]
    check_against_loop(frozen_lenet, data, recipe_of())
    train_wide(networks, data, recipe_of())
    for network, weight in zip(networks, before, strict=True):
        assert torch.equal(network.get_parameter("conv1.weight"), weight)


class Tied(nn.Module):
    """A layer used twice, and its weight a third time; does less in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1024, 10)
        self.twice = nn.Linear(10, 10)
        self.tied = nn.Linear(10, 10)
        self.tied.weight = self.twice.weight
        self.register_buffer("shape", torch.rand(10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.view(x.size(0), -1)) * self.shape
        if self.training:
            x = x * 1.5
        x = self.tied(torch.tanh(self.twice(torch.relu(self.twice(x)))))
        logits: Tensor = x @ self.twice.weight
        return logits


def test_shared_weights_stay_shared(data: Splits) -> None:
    check_against_loop(Tied, data, recipe_of(gradient_clip=0.5))
    networks = members(Tied)
    train_wide(networks, data, recipe_of(epochs=1))
    for network in networks:
        assert network.get_parameter("tied.weight") is network.get_parameter("twice.weight")


@pytest.mark.slow
def test_a_compiled_step_computes_the_same(data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for a GPU, without breaks, and run without a compiler."""
    real = torch.compile

    def traced(step: Any, **options: Any) -> Any:
        return real(step, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced)
    recipe = recipe_of(epochs=2, batch_size=45)
    plain = train_wide(members(norm_mlp), data, recipe)
    compiled = train_wide(members(norm_mlp), data, recipe, compiled=True)
    torch.testing.assert_close(compiled["test"]["loss"], plain["test"]["loss"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_autocast_trains_in_bfloat16_and_measures_in_float32(data: Splits) -> None:
    recipe = recipe_of(epochs=4, optimizer="adam", learning_rate=0.01)
    plain = train_wide(members(pruned_lenet), data, recipe)["train"]["loss"]
    networks = members(pruned_lenet)
    rounded = recipe.model_copy(update={"precision": "autocast"})
    found = train_wide(networks, data, rounded)["train"]["loss"]
    assert not torch.equal(found, plain)
    assert float(found.max()) < 2.25
    for network, loss in zip(networks, found.tolist(), strict=True):
        assert evaluate(network, data.train, Classification(10))["loss"] == pytest.approx(
            loss, abs=1e-5
        )
    # Numbers of 8 bits drift apart in large steps, on some processors sooner: small ones are taken.
    small = rounded.model_copy(update={"epochs": 8, "learning_rate": 0.002})
    together = train_wide(members(pruned_lenet), data, small)["train"]["loss"]
    (alone,) = members(pruned_lenet)[:1]
    untrained = evaluate(alone, data.train, Classification(10))["loss"]
    records = train(alone, data, small, seed=0)
    assert records[-1].train_loss == pytest.approx(float(together[0]), abs=0.05)  # 8 bits
    assert min(untrained - records[-1].train_loss, untrained - float(together[0])) > 0.1


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return -logits if logits.sum() > 0 else logits


class Tuple(Branching):
    def forward(self, x: Tensor) -> Any:
        return self.fc(x.flatten(1)), x


class Transposed(Branching):
    """Gives classes × examples."""

    def forward(self, x: Tensor) -> Any:
        return self.fc(x.flatten(1)).T


class Asking(Branching):
    """Turns a tensor into a number, which fx allows and members do not share."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits * logits.sum().item()


class Remembering(Branching):
    """Computes with a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.rand(1024)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1) * self.mask)
        return logits


def test_constants_are_common_or_refused(data: Splits) -> None:
    torch.manual_seed(0)
    network = Remembering()
    alike = [copy.deepcopy(network) for _ in range(2)]
    train_wide(alike, data, recipe_of(epochs=1))
    with pytest.raises(ValueError, match="mask differs"):
        WidePopulation([network, Remembering()], [(0, "")] * 2, data, Recipe())


def test_of_a_tuple_the_first_is_trained(data: Splits) -> None:
    assert refusal(Tuple(), data, Recipe()) is None
    check_against_loop(Tuple, data, recipe_of(epochs=1))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (Branching, "control flow"),
        (Transposed, "no tensor [N, ...]"),
        (Asking, "item"),
    ],
)
def test_what_cannot_be_trained_as_one_is_refused_in_words(
    factory: Factory, words: str, data: Splits
) -> None:
    reason = refusal(factory(), data, Recipe())
    assert reason is not None
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    "factory", [pruned_lenet, Residual, mlp, norm_mlp, Transformer, Tied], ids=lambda f: f.__name__
)
def test_what_can_be_trained_as_one_is_not_refused(factory: Factory, data: Splits) -> None:
    network = factory().eval()
    before = copy.deepcopy(network.state_dict())
    assert refusal(network, data, recipe_of(label_smoothing=0.1)) is None
    assert not network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_networks_of_other_shapes_are_no_population(data: Splits) -> None:
    with pytest.raises(ValueError, match="equal names and shapes"):
        WidePopulation([mlp(), norm_mlp()], [(0, "")] * 2, data, Recipe())
    with pytest.raises(ValueError, match="1 networks need as many streams"):
        WidePopulation([mlp()], [(0, "")] * 2, data, Recipe())


def test_memory_is_measured_and_grows_with_weights_and_images(data: Splits) -> None:
    def wide_mlp() -> nn.Module:
        return build("mlp", {"hidden": (400,)}, input_shape=(1, 32, 32), classes=10)

    weights = sum(p.numel() * 4 for p in wide_mlp().parameters())
    _, momentum = measure_memory(wide_mlp(), data, recipe_of(batch_size=8))
    _, adam = measure_memory(wide_mlp(), data, recipe_of(batch_size=8, optimizer="adam"))
    # Weights, gradients and momentum; Adam keeps a second moment, and room to step with it.
    assert 3 * weights <= momentum <= adam - weights

    _, small = measure_memory(pruned_lenet(), data, recipe_of(batch_size=10))
    _, large = measure_memory(pruned_lenet(), data, recipe_of(batch_size=90))
    first_activations = 80 * 5 * 28 * 28 * 4
    assert large - small > first_activations

    independent = Retraining(batch_size=90, common_random_numbers=False)
    common = Retraining(batch_size=90)
    images = 90 * 32 * 32 * 4
    more = measure_memory(mlp(), data, independent)[1] - measure_memory(mlp(), data, common)[1]
    assert more >= images


@pytest.mark.parametrize("factory", [pruned_lenet, norm_mlp], ids=lambda f: f.__name__)
def test_memory_of_many_members_is_foretold_by_few(factory: Factory, data: Splits) -> None:
    recipe = recipe_of()
    fixed, each = measure_memory(factory(), data, recipe)
    networks = members(factory, 12)
    held = LiveBytes()
    with held:
        train_wide(networks, data, recipe)
    assert held.peak == pytest.approx(fixed + 12 * each, rel=0.1)


def test_dropout_of_ones_own_is_refused(data: Splits) -> None:
    # One stream of random numbers cannot give each member what it would draw alone.
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, 10))
    assert refusal(network, data, Retraining()) is None
    reason = refusal(network, data, Retraining(common_random_numbers=False))
    assert reason is not None
    assert reason.startswith("dropout draws from one stream")


class Noisy(nn.Module):
    """Draws in its forward without a module that is known to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = functional.dropout(x.flatten(1), 0.2, self.training)
        logits: torch.Tensor = self.layer(kept)
        return logits


def test_whatever_draws_by_itself_is_refused(data: Splits) -> None:
    reason = refusal(Noisy(), data, Retraining(common_random_numbers=False))
    assert reason is not None
    assert reason.startswith("its forward draws from one stream")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    assert refusal(plain, data, Retraining(common_random_numbers=False)) is None
