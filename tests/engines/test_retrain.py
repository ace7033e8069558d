"""Retraining candidates for whatever task, by whichever engine, with or without a teacher."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.small import InADict, Net, SmallUNet, TransposedUNet, images, targets
from trueoracle.data.splits import Split, Splits
from trueoracle.engines import native, wide
from trueoracle.engines.choose import plan
from trueoracle.engines.retrain import retrain, retraining_data, stream_of
from trueoracle.errors import InputError
from trueoracle.tasks.base import TARGETS, Batch, Task
from trueoracle.tasks.classification import Classification, Multilabel, Smoothed
from trueoracle.tasks.distillation import Distilled
from trueoracle.tasks.metric import Metric
from trueoracle.tasks.regression import Regression
from trueoracle.tasks.segmentation import Segmentation
from trueoracle.training.loop import train
from trueoracle.training.recipe import Distil, Retraining

RECIPE = Retraining(epochs=2, batch_size=8, learning_rate=0.01, seeds=(0,))


def data(name: str) -> Splits:
    made = {
        "regression": Regression(),
        "multilabel": Multilabel(),
        "segmentation": Segmentation(3),
        "classification": Classification(3),
    }
    parts = [Split.of(x, targets(name, x)) for x in (images(20, 0), images(5, 1), images(7, 2))]
    return Splits(parts[0], parts[1], parts[2], made[name])


def members(kind: type[nn.Module], outputs: int, count: int = 3) -> list[nn.Module]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(kind(outputs))
    return found


def check_against_loop(networks: Sequence[nn.Module], whole: Splits, recipe: Retraining) -> None:
    alone = copy.deepcopy(networks)
    streams = [(3, ""), (3, ""), (4, "own")][: len(networks)]
    assert wide.refusal(networks[0], whole, recipe) is None
    found, _ = retrain(networks, streams, whole, recipe, engine="wide")
    names = [metric.name for metric in whole.task.metrics]
    for network, one, own, (seed, stream) in zip(networks, alone, found, streams, strict=True):
        expected = train(one, whole, recipe, seed=seed, stream=stream)
        for record, other in zip(own, expected, strict=True):
            columns = {f"{s}_{n}" for s in ("train", "validation", "test") for n in names}
            assert set(record.values) == columns
            # A pixel or a label on the border may fall to either side by rounding.
            assert record.values == pytest.approx(other.values, abs=2e-3, rel=2e-3)
            losses = [f"{split}_loss" for split in ("train", "validation", "test")]
            assert [record.values[n] for n in losses] == pytest.approx(
                [other.values[n] for n in losses], abs=1e-4
            )
        for name, value in one.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "outputs"),
    [
        ("classification", Net, 3),
        ("classification", Net, 5),
        ("regression", Net, 2),
        ("multilabel", Net, 4),
        ("segmentation", SmallUNet, 3),
        ("segmentation", SmallUNet, 4),
        ("segmentation", TransposedUNet, 3),
        ("segmentation", InADict, 3),
    ],
)
def test_candidates_together_end_as_each_would_alone(
    name: str, kind: type[nn.Module], outputs: int
) -> None:
    check_against_loop(members(kind, outputs), data(name), RECIPE)


def test_numbers_without_an_axis_are_trained_alike() -> None:
    whole = data("regression")
    parts = [Split.of(split.inputs, split.targets[:, 0]) for split in (whole.train, whole.test)]
    check_against_loop(members(Net, 1), Splits(parts[0], parts[0], parts[1], Regression()), RECIPE)


def of_probabilities() -> Splits:
    whole = data("classification")
    shares = [
        Split.of(split.inputs, split.inputs.mean((2, 3)).repeat(1, 2)[:, :3].softmax(1))
        for split in (whole.train, whole.test)
    ]
    return Splits(shares[0], shares[1], shares[1], Classification(3))


def test_class_probabilities_are_trained_alike() -> None:
    check_against_loop(members(Net, 3), of_probabilities(), RECIPE)
    check_against_loop(members(Net, 4), of_probabilities(), RECIPE)


@pytest.mark.parametrize(
    "fields",
    [
        {"mixup": 0.4, "cutmix": 1.0},
        {"shift": 1, "flip": True, "resized_crop": 0.5},
        {"label_smoothing": 0.1, "gradient_clip": 0.05},
    ],
    ids=["mixtures", "augmentation", "regularisation"],
)
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_every_recipe_trains_on_every_kind_of_targets(
    fields: dict[str, Any], soft: bool, taught: bool
) -> None:
    recipe = RECIPE.model_copy(update=fields | ({"distil": Distil()} if taught else {}))
    whole = of_probabilities() if soft else data("classification")
    (teacher,) = members(Net, 3, 1)
    check_against_loop(members(Net, 3), retraining_data(whole, recipe, teacher), recipe)


@pytest.mark.parametrize(
    ("name", "kind", "outputs"),
    [("classification", Net, 3), ("segmentation", SmallUNet, 3), ("segmentation", InADict, 3)],
)
def test_distilled_candidates_end_as_each_would_alone(
    name: str, kind: type[nn.Module], outputs: int
) -> None:
    recipe = RECIPE.model_copy(update={"distil": Distil(weight=0.6, temperature=3.0)})
    (teacher,) = members(kind, outputs, 1)
    taught = retraining_data(data(name), recipe, teacher)
    networks = members(kind, outputs)
    plain = copy.deepcopy(networks)
    check_against_loop(networks, taught, recipe)
    retrain(plain, [(3, "")] * 3, data(name), RECIPE, engine="loop")
    first = [next(one.parameters()) for one in (networks[1], plain[1])]
    assert not torch.allclose(first[0], first[1], atol=1e-3)  # the teacher made a difference


def test_what_a_recipe_does_to_the_loss_it_does_beside_a_teacher() -> None:
    recipe = RECIPE.model_copy(update={"distil": Distil(weight=0.5), "label_smoothing": 0.1})
    (teacher,) = members(Net, 3, 1)
    taught = retraining_data(data("classification"), recipe, teacher)
    assert isinstance(taught.task, Distilled)
    assert isinstance(taught.task.task, Smoothed)
    check_against_loop(members(Net, 3), taught, recipe)


def test_the_teacher_is_a_copy_of_the_dense_network() -> None:
    recipe = RECIPE.model_copy(update={"distil": Distil(weight=0.3, temperature=2.0)})
    (dense,) = members(Net, 3, 1)
    whole = data("classification")
    taught = retraining_data(whole, recipe, dense)
    task = taught.task
    assert isinstance(task, Distilled)
    assert (task.share, task.temperature) == (0.3, 2.0)
    assert task.teacher is not dense
    assert not task.teacher.training
    assert all(p.requires_grad for p in dense.parameters())
    assert dense.training
    before = copy.deepcopy(task.teacher.state_dict())
    retrain(members(Net, 3), [(0, "")] * 3, taught, recipe, engine="loop")
    for name, value in task.teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert retraining_data(whole, RECIPE, dense) is whole


def test_random_numbers_are_common_or_each_candidates_own() -> None:
    assert stream_of(RECIPE, 5, "abc") == (5, "")
    own = RECIPE.model_copy(update={"common_random_numbers": False})
    assert stream_of(own, 5, "abc") == (5, "abc")


def test_retraining_in_pieces_ends_as_without_the_break() -> None:
    whole, streams = data("segmentation"), [(1, "")] * 3
    made = members(SmallUNet, 3)
    at_once = copy.deepcopy(made)
    for engine, other in (("loop", "wide"), ("wide", "loop")):
        networks, expected = copy.deepcopy(made), copy.deepcopy(at_once)
        records, _ = retrain(expected, streams, whole, RECIPE, engine="loop")
        first, states = retrain(networks, streams, whole, RECIPE, engine=engine, epochs=range(1))
        then, _ = retrain(
            networks, streams, whole, RECIPE, engine=other, epochs=range(1, 2), states=states
        )
        for a, b, both in zip(first, then, records, strict=True):
            assert [one.epoch for one in a + b] == [0, 1]
            assert (a + b)[-1].train_loss == pytest.approx(both[-1].train_loss, abs=1e-4)


class Absolute(Task):
    """A task of one's own."""

    metrics: Sequence[Metric] = (Metric("loss", "mean absolute error"),)
    is_mappable = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch["target"]).abs().mean()

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        total = (outputs - batch["target"]).abs().sum()
        return {"loss": total, "count": torch.tensor(outputs.numel())}

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sums["loss"] / sums["count"]}


class Alone(Absolute):
    is_mappable = False


class Shifted(Absolute):
    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = network(batch["input"] + 1)
        return outputs


def test_a_task_of_ones_own_is_trained_as_one_where_it_can_be() -> None:
    whole = data("regression")
    own = replace(whole, task=Absolute())
    check_against_loop(members(Net, 2), own, RECIPE)
    (network,) = members(Net, 2, 1)
    for task in (Alone(), Shifted()):
        why = f"task {type(task).__name__!r} is not computed for many networks at once"
        assert wide.refusal(network, replace(whole, task=task), RECIPE) == why
        chosen = plan(network, replace(whole, task=task), RECIPE, members=4)
        assert chosen.engine == "loop"
        assert why in chosen.reason
        with pytest.raises(InputError, match="engine 'wide' cannot train this network: task "):
            plan(network, replace(whole, task=task), RECIPE, members=4, engine="wide")


@pytest.mark.parametrize("name", ["regression", "multilabel", "segmentation"])
def test_the_native_kernels_say_that_they_know_classification(name: str) -> None:
    kind, outputs = {"regression": (Net, 2), "multilabel": (Net, 4)}.get(name, (SmallUNet, 3))
    (network,) = members(kind, outputs, 1)
    said = native.refusal(network, data(name), RECIPE)
    assert said is not None
    assert re.search(rf"the native kernels .* classification.* {name}", said)


class Two(nn.Module):
    """Two inputs by name, and a third that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(
        self, left: Tensor, right: Tensor, scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = self.left(left) + self.right(right)
        return {"logits": logits if scale is None else logits * scale}


def of_two(target: str = "target", *, scaled: bool = False, **names: str) -> Splits:
    """Data of :class:`Two`; ``names`` are others for its fields."""

    def split(count: int, seed: int) -> Split:
        draw = torch.Generator().manual_seed(seed)
        right, left = torch.randn(count, 2, generator=draw), torch.randn(count, 3, generator=draw)
        fields = {"right": right, "left": left}
        if scaled:
            fields["scale"] = 1 + torch.rand(count, 1, generator=draw)
        fields = {names.get(name, name): value for name, value in fields.items()}
        return Split(fields | {target: torch.randint(4, (count,), generator=draw)})

    return Splits(split(20, 0), split(5, 1), split(7, 2), Classification(4))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scaled", [False, True])
def test_networks_of_several_inputs_are_trained_as_one(target: str, scaled: bool) -> None:
    def made() -> list[nn.Module]:
        torch.manual_seed(0)
        return [Two() for _ in range(3)]

    check_against_loop(made(), of_two(target, scaled=scaled), RECIPE)


def test_inputs_that_a_network_does_not_name_are_left_to_the_loop() -> None:
    network = Two()
    said = wide.refusal(network, of_two(left="one"), RECIPE)
    assert said == "its several inputs are no names of its arguments: right, one"

    class Branching(Two):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(left, right if left.sum() > 0 else -right)

    said = wide.refusal(Branching(), of_two(), RECIPE)
    assert said is not None
    assert said.startswith("its forward cannot be traced: symbolically traced variables")

    class Insisting(Two):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(left, right * float(torch.finfo(right.dtype).max > 0))

    # What torch says of its stand-ins would lead nowhere.
    said = wide.refusal(Insisting(), of_two(), RECIPE)
    assert said == "its forward cannot be traced by torch.fx"


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_of_two_inputs_is_trained_by_the_loop(target: str) -> None:
    whole = of_two(target)
    torch.manual_seed(0)
    network = Two()
    expected = copy.deepcopy(network)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    fields = whole.train.take(torch.arange(20)).fields
    loss = functional.cross_entropy(
        expected(fields["left"], fields["right"])["logits"], fields[target]
    )
    loss.backward()
    optimizer.step()
    recipe = Retraining(epochs=1, batch_size=20, learning_rate=0.1, momentum=0, weight_decay=0)
    ((record,),), _ = retrain([network], [(0, "")], whole, recipe, engine="loop")
    assert record.values["test_accuracy"] >= 0
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
