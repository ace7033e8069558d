"""Data of a study: what is loaded, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.run.material import list_study
from trueoracle.run.prepare import prepare
from trueoracle.spec.file import spec_from
from trueoracle.study import Study
from trueoracle.tasks.base import Examples
from trueoracle.tasks.language import NextToken


def test_fields_of_the_data_are_followed(tiny_fields: dict[str, Any]) -> None:
    changes = {"data.train_images": 300, "data.test_images": 50, "data.measured_fraction": 0.1}
    spec = spec_from(tiny_fields, changes)
    data = prepare(spec, device="cpu").data
    assert {name: len(split) for name, split in data.named()} == {
        "train": len(data.measured_train),
        "validation": 100,
        "test": len(data.test),
    }
    assert 40 <= len(data.test) <= 50
    assert 15 <= len(data.measured_train) <= 25
    assert 150 <= len(data.train) <= 200
    other = prepare(spec_from(tiny_fields, changes | {"data.split_seed": 1}), device="cpu").data
    assert not torch.equal(other.measured_train.inputs[:5], data.measured_train.inputs[:5])


def test_images_of_another_size(tiny_fields: dict[str, Any]) -> None:
    fields = tiny_fields | {"network": {"name": "mlp", "arguments": {"hidden": (6,)}}}
    fields["pruning"] = {"layers": {"fc1": 0.5}}
    spec = spec_from(fields, {"data.image_size": 12})
    assert len(list_study(spec)) == 20
    assert prepare(spec, device="cpu").data.image_shape == (1, 12, 12)


@pytest.mark.parametrize(
    ("name", "layers"), [("imagenet", {"fc1": 0.5}), ("cifar100", {"fc1": 0.5})]
)
def test_a_study_is_listed_without_its_data(name: str, layers: dict[str, float]) -> None:
    spec = spec_from(
        {
            "name": "listed",
            "network": {"name": "mlp", "arguments": {"hidden": (4,)}},
            "data": {"name": name, "image_size": 8},
            "pruning": {"layers": layers},
        }
    )
    assert len(list_study(spec)) == 6


def test_fields_that_do_not_fit_the_data_are_refused(tiny_fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"data\.path = 'here' is for image folders"):
        prepare(spec_from(tiny_fields, {"data.path": "here"}), device="cpu")
    with pytest.raises(InputError, match=r"data set 'folder' needs data\.path"):
        list_study(spec_from(tiny_fields, {"data.name": "folder"}))


def given(few_digits: Splits, **changes: Any) -> Study:
    network = nn.Sequential(nn.Conv2d(1, 4, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 12))
    return Study(
        name="given",
        network=network,
        data=few_digits,
        pruning={"layers": {"0": 0.5}},
        overrides=changes,
    )


def test_data_given_in_python_can_be_measured_in_part(few_digits: Splits) -> None:
    data = given(few_digits, **{"data.measured_fraction": 0.2}).prepare("cpu").data
    assert 50 < len(data.measured_train) < 70
    assert len(data.train) == 300
    assert given(few_digits).prepare("cpu").data.measured is None
    for field, value in (
        ("train_images", 100),
        ("image_size", 8),
        ("path", "here"),
        ("validation_images", 20),
    ):
        with pytest.raises(InputError, match=f"data.{field} = .* does nothing for data given"):
            given(few_digits, **{f"data.{field}": value}).prepare("cpu")


def test_mixing_needs_a_logit_for_each_class(few_digits: Splits) -> None:
    for field in ("mixup", "cutmix"):
        with pytest.raises(InputError, match=r"cutmix need one logit for each of 10 classes.* 12"):
            given(few_digits, **{f"retraining.{field}": 0.2}).prepare("cpu")


def test_crops_need_images(few_digits: Splits) -> None:
    flat = tuple(
        (split.inputs.flatten(1), split.targets) for split in (few_digits.train, few_digits.test)
    )
    for field, value in (("resized_crop", 0.5), ("cutmix", 1.0), ("shift", 1)):
        study = Study(
            name="flat",
            network=nn.Sequential(nn.Linear(1024, 4), nn.ReLU(), nn.Linear(4, 10)),
            data=flat,
            pruning={"layers": {"0": 0.5}},
            overrides={f"retraining.{field}": value},
        )
        with pytest.raises(InputError, match=rf"retraining\.{field} needs images \[C, H, W\]"):
            study.prepare("cpu")


def test_a_default_of_large_sets_is_no_field_that_was_set(few_digits: Splits) -> None:
    streamed = {"name": "s", "data": {"name": "imagenet"}, "network": {"name": "resnet18"},
                "pruning": {"layers": {"layer1.0.conv1": 0.5}, "candidates": 2}}  # fmt: skip
    spec = spec_from(streamed)
    assert spec.data.measured_fraction == 0.1
    again = spec_from(spec.model_dump(mode="json"))
    assert again.digest == spec.digest
    moved = Study(spec, overrides={"data.name": "cifar10"}).spec
    assert moved.digest == spec_from(streamed, {"data.name": "cifar10"}).digest
    assert moved.data.measured_fraction == 1.0


class OnNegatives(nn.Module):
    """What noise from 0 to 1 does not bring out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 4, 32), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).flatten(1)
        if x.min() < 0:
            h = h / h.mean(1, keepdim=True)
        return self.out(h)  # type: ignore[no-any-return]


def test_surgery_is_tried_on_real_images_too(few_digits: Splits) -> None:
    study = Study(
        name="negatives",
        network=OnNegatives(),
        data=few_digits,
        pruning={"layers": {"first": 0.5}},
    )
    with pytest.raises(InputError, match="is not the same as zeroing them"):
        study.prepare("cpu")


def test_shipped_criteria_are_tried_early_on_a_network_of_ones_own(few_digits: Splits) -> None:
    class Once(torch.autograd.Function):
        """A rectifier that torch.func does not differentiate."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (x,) = ctx.saved_tensors
            return gradients[0] * (x > 0)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(1024, 4), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            once = Once.apply(self.hidden(x.flatten(1)))  # type: ignore[no-untyped-call]
            logits: Tensor = self.head(once)
            return logits

    fields: dict[str, Any] = {
        "name": "own",
        "data": few_digits,
        "pruning": {"kind": "unstructured", "layers": {"hidden": 0.5}, "candidates": 3},
        "retraining": {"epochs": 1, "seeds": [0]},
        "criteria": ["l1", "gradient", "gradient-flow"],
    }
    (reason,) = Study(**fields, network=Own()).prepare("cpu").skipped.items()
    assert reason[0] == "gradient-flow"
    assert reason[1].startswith("criterion 'gradient-flow' failed: RuntimeError: In order")
    with pytest.raises(
        InputError, match="no criterion of the study applies: criterion 'gradient-f"
    ):
        Study(**fields | {"criteria": ["gradient-flow"]}, network=Own()).prepare("cpu")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4), nn.ReLU(), nn.Linear(4, 10))
    fields["pruning"]["layers"] = {"1": 0.5}
    assert not Study(**fields, network=plain).prepare("cpu").skipped


class Whole(nn.Module):
    """A network whose answer is not what a loss takes."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.first, self.out, self.kind = nn.Conv2d(1, 4, 32), nn.Linear(4, 10), kind

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x).flatten(1)).to(self.kind)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64])
def test_logits_are_in_floating_point(few_digits: Splits, kind: torch.dtype) -> None:
    study = Study(
        name="whole", network=Whole(kind), data=few_digits, pruning={"layers": {"first": 0.5}}
    )
    with pytest.raises(InputError, match=r"gives (complex64|int64) numbers, expected"):
        study.prepare("cpu")


class Words(NextToken):
    def outputs(self, train: Examples) -> int:
        return 11


def test_a_network_of_text_is_built_for_the_vocabulary() -> None:
    pytest.importorskip("transformers")
    ids = torch.randint(11, (12, 6), generator=torch.Generator().manual_seed(0))
    spec: dict[str, Any] = {
        "name": "text",
        "network": {"name": "llama", "arguments": {"layers": 1, "hidden": 16, "mlp": 8}},
        "pruning": {"layers": {"*gate_proj": 0.25}, "candidates": 3},
        "criteria": ["oracle"],
    }
    study = Study(data=({"input_ids": ids}, {"input_ids": ids}), task=Words, **spec)
    prepared = study.prepare("cpu")
    assert prepared.network.get_submodule("lm_head").out_features == 11
    assert [group.filters for group in prepared.candidates.groups] == [8]
    pictures = Study(study.spec, network="llava", data=({"input_ids": ids},) * 2, task=Words)
    with pytest.raises(InputError, match="'llava' is of images, and the examples have none"):
        pictures.prepare("cpu")
    of_images = Study(study.spec, network="mlp", data=({"input_ids": ids},) * 2, task=Words)
    with pytest.raises(InputError, match="'mlp' is of images, and the examples have none"):
        of_images.prepare("cpu")
