"""What holds of every shipped task, and what a network is given and read of."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from tests.tasks.cases import CASES, Case, cut, measured
from trueoracle.errors import InputError
from trueoracle.tasks.base import (
    Batch,
    as_input,
    in_words,
    inputs_of,
    read_part,
    run_network,
    unwrap,
)
from trueoracle.tasks.classification import Classification, Smoothed
from trueoracle.tasks.metric import check_metrics
from trueoracle.tasks.regression import Regression

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_its_metrics_can_be_recorded(case: Case) -> None:
    found = measured(case.task, case.given(), case.batch())
    metrics = check_metrics(case.task.metrics)
    assert list(found) == [metric.name for metric in metrics]
    assert metrics[0].name == "loss"
    for metric in metrics:
        assert metric.low - 1e-9 <= found[metric.name] <= metric.high


@every_case
@pytest.mark.parametrize("cuts", [(1,), (3, 6), (1, 2, 3, 4, 5, 6)], ids=str)
def test_sums_of_parts_are_those_of_the_whole(case: Case, cuts: tuple[int, ...]) -> None:
    outputs, batch = case.given(), case.batch()
    whole = measured(case.task, outputs, batch)
    assert measured(case.task, outputs, batch, cuts) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if not isinstance(case.task, Smoothed)],  # it measures another loss
    ids=lambda case: case.name,
)
def test_the_loss_is_what_is_measured_and_weights_say_its_share(case: Case) -> None:
    outputs, batch = case.given(), case.batch()
    whole = measured(case.task, outputs, batch)["loss"]
    assert float(case.task.loss(outputs, batch)) == pytest.approx(whole, rel=1e-5)
    parts = [(outputs[a:b], cut(batch, a, b)) for a, b in ((0, 2), (2, 6), (6, 7))]
    weights = [case.task.weight(part) for _, part in parts]
    losses = [float(case.task.loss(*part)) for part in parts]
    mean = sum(w * one for w, one in zip(weights, losses, strict=True)) / sum(weights)
    assert mean == pytest.approx(whole, rel=1e-5)
    assert case.task.weight(batch) == pytest.approx(sum(weights))


@every_case
@pytest.mark.parametrize("own", [False, True], ids=["common batch", "batches of their own"])
def test_many_networks_at_a_time_come_to_what_each_does(case: Case, own: bool) -> None:
    assert case.task.is_mappable
    outputs = torch.stack([case.given(seed) for seed in range(3)]).requires_grad_()
    batches = [case.batch(seed if own else 0) for seed in range(3)]
    batch: Batch = batches[0]
    if own:
        batch = {name: torch.stack([one[name] for one in batches]) for name in batch}
    axes = (0, 0 if own else None)
    losses = vmap(case.task.loss, axes)(outputs, dict(batch))
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    sums = vmap(case.task.sums, axes)(outputs.detach(), dict(batch))
    finished = case.task.finish({name: value.double() for name, value in sums.items()})
    for member in range(3):
        alone = outputs[member].detach().requires_grad_()
        loss = case.task.loss(alone, batches[member])
        torch.testing.assert_close(losses[member], loss)
        torch.testing.assert_close(gradient[member], torch.autograd.grad(loss, alone)[0])
        expected = measured(case.task, alone.detach(), batches[member])
        found = {name: float(value[member]) for name, value in finished.items()}
        assert found == pytest.approx(expected, rel=1e-6)


@every_case
def test_what_fits_is_not_refused(case: Case) -> None:
    assert list(case.task.check(case.given(), case.batch())) == []


@every_case
def test_logits_have_their_classes_last_or_are_refused(case: Case) -> None:
    outputs = case.given()
    if case.name in ("multilabel", "one number", "a column of numbers", "maps of numbers"):
        with pytest.raises(InputError, match=f"task '{case.task.name}' has no logits"):
            case.task.logits(outputs)
        return
    logits = case.task.logits(outputs)
    classes = outputs.shape[1] if outputs.ndim == 2 or case.name in _SPATIAL else outputs.shape[-1]
    assert logits.shape[-1] == classes
    assert logits.shape[0] == len(outputs)
    assert logits.numel() == outputs.numel()


_SPATIAL = ("masks", "sequences of classes")


class Named(NamedTuple):
    loss: Tensor
    logits: Tensor


@dataclass
class Output:
    logits: Tensor


class Both(OrderedDict[str, Tensor]):
    """A mapping whose items are attributes too, as transformers' outputs are."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(name)


A, B = torch.zeros(2, 3), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("output", "found", "words"),
    [
        (A, A, ""),
        ((A, B), A, "of the network's tuple of 2 the first element is read"),
        ([A], A, "of the network's list of 1 the first element is read"),
        (Named(B, A), A, "of the network's Named .logits is read"),
        (Output(A), A, "of the network's Output .logits is read"),
        (Both(loss=B, logits=A), A, "of the network's Both ['logits'] is read"),
        ({"aux": B, "out": A}, A, "of the network's dict ['out'] is read"),
        ({"out": B, "logits": A}, A, "of the network's dict ['logits'] is read"),
        ({"count": 3, "scores": A, "more": B}, A, "of the network's dict ['scores'] is read"),
    ],
    ids=["tensor", "tuple", "list", "named", "object", "both", "out", "logits", "any"],
)
def test_the_usual_part_of_an_output_is_read_and_said(
    output: Any, found: Tensor, words: str
) -> None:
    assert unwrap(output) is found
    assert read_part(output)[1] == words


@pytest.mark.parametrize("output", [(), [], {}, {"loss": 0.5}, None, 3.0, "logits", ({"a": A},)])
def test_an_output_without_a_tensor_is_refused(output: Any) -> None:
    with pytest.raises(InputError) as caught:
        unwrap(output)
    kind = type(output).__name__
    assert str(caught.value) == f"the network gives {kind}, in which no tensor was found"


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Pair(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image - mask


class Keywords(nn.Module):
    def forward(self, image: Tensor, *, mask: Tensor) -> Tensor:
        return image - mask


class Anything(nn.Module):
    def forward(self, **fields: Tensor) -> Tensor:
        return fields["image"] - fields["mask"]


class Positional(nn.Module):
    def forward(self, image: Tensor, mask: Tensor, /) -> Tensor:
        return image - mask


class Swapped(nn.Module):
    def forward(self, mask: Tensor, input: Tensor) -> Tensor:  # noqa: A002
        return input - mask


THREE, ONE = torch.full((2, 1), 3.0), torch.ones(2, 1)
LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("network", "batch", "names"),
    [
        (Plain(), {"input": THREE, "target": LABELS}, None),
        (Plain(), {"x": THREE, "labels": LABELS}, ["x"]),
        (Plain(), {"pixels": THREE, "label": LABELS}, None),
        (Pair(), {"input": THREE, "input_1": ONE, "target": LABELS}, None),
        (Pair(), {"mask": ONE, "targets": LABELS, "image": THREE}, ["mask", "image"]),
        (Pair(), {"left": THREE, "right": ONE, "target": LABELS}, None),
        (Keywords(), {"image": THREE, "mask": ONE, "target": LABELS}, ["image", "mask"]),
        (Anything(), {"mask": ONE, "image": THREE, "target": LABELS}, ["mask", "image"]),
        (Positional(), {"image": THREE, "mask": ONE, "target": LABELS}, None),
        (Swapped(), {"input": THREE, "mask": ONE, "target": LABELS}, ["input", "mask"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_go_by_name_where_the_network_knows_them_and_else_in_order(
    network: nn.Module, batch: Batch, names: list[str] | None
) -> None:
    args, kwargs = inputs_of(network, batch)
    assert list(kwargs) == (names or [])
    assert bool(args) == (names is None)
    several = len(batch) > 2
    expected = THREE - ONE if several else THREE
    assert torch.equal(network(*args, **kwargs), expected)
    given = as_input(network, batch)
    if names is not None:
        assert given.keys() == kwargs.keys()
    elif several:
        assert isinstance(given, tuple)
        assert len(given) == 2
    else:
        assert given is THREE


def test_a_network_that_does_not_run_is_refused_in_a_line() -> None:
    task, batch = Classification(2), {"input": torch.zeros(2, 3), "target": LABELS}
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)).train()
    with pytest.raises(InputError, match=r"^Sequential does not run on input \[3\]: ") as caught:
        run_network(network, batch, task)
    assert "\n" not in str(caught.value)
    assert network.training
    assert in_words({"a": torch.zeros(2, 3, 4), "b": torch.zeros(2), "label": LABELS}) == (
        "a [3, 4], b []"
    )


def test_a_network_is_run_as_it_is_evaluated() -> None:
    batch = {"input": torch.ones(2, 4), "target": torch.zeros(2, 4)}
    network = nn.Sequential(nn.Dropout(0.9)).train()
    found = run_network(network, batch, Regression())
    assert torch.equal(found, torch.ones(2, 4))
    assert not found.requires_grad
    assert network.training


class Positioned(nn.Module):
    """Takes a text as transformers' language models do."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        return input_ids


def test_a_network_is_told_where_the_tokens_of_padded_texts_are() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    batch = {"input_ids": torch.ones(2, 4), "attention_mask": mask}
    network = Positioned()
    _, given = inputs_of(network, batch)
    assert given["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    own = {**batch, "position_ids": torch.zeros(2, 4)}
    assert inputs_of(network, own)[1]["position_ids"] is own["position_ids"]
    counting = Positioned()
    counting.get_rope_index = len  # type: ignore[assignment]  # by itself, in three dimensions
    assert "position_ids" not in inputs_of(counting, batch)[1]


def test_patches_of_all_images_lie_along_one_axis() -> None:
    class Patches(nn.Module):
        def forward(self, input_ids: Tensor, pixel_values: Tensor, image_grid_thw: Tensor) -> None:
            raise NotImplementedError

    batch = {"input_ids": torch.ones(2, 4), "image_grid_thw": torch.ones(2, 3)}
    batch["pixel_values"] = torch.arange(2 * 6 * 5.0).reshape(2, 6, 5)
    _, given = inputs_of(Patches(), batch)
    assert torch.equal(given["pixel_values"], batch["pixel_values"].reshape(12, 5))
