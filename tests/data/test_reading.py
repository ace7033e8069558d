"""What a user's numbers become: the same ones, with a word where they could mean something else."""

from __future__ import annotations

import warnings
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from trueoracle.data.given import as_split, as_splits
from trueoracle.data.reading import read_inputs, read_items, read_targets
from trueoracle.errors import InputError
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study

IMAGES = torch.arange(8.0).reshape(2, 1, 2, 2)
LABELS = torch.tensor([0, 1])
WHOLE = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64)
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Items(Dataset[Any]):
    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do without them
        return torch.quantize_per_tensor(IMAGES, 0.1, 3, torch.qint8)


def masked() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype
        return torch.masked.masked_tensor(IMAGES, IMAGES > 2)


@pytest.mark.parametrize("dtype", [*WHOLE, *REAL])
def test_numbers_stay_as_they_are(dtype: torch.dtype) -> None:
    images, note = read_inputs(IMAGES.to(dtype), "input", "keep")
    assert images.dtype == torch.float32
    assert torch.equal(images, IMAGES)
    kind = str(dtype).removeprefix("torch.")
    whole = f"input is {kind}: read as it is, neither scaled nor normalised"
    assert note == (whole if dtype in WHOLE else "")
    labels, note = read_targets(LABELS.to(dtype))
    assert labels.tolist() == [0, 1]
    assert (labels.dtype, note) == (torch.int64, "")


def test_booleans_come_with_a_note() -> None:
    images, note = read_inputs(IMAGES > 3, "input")
    assert images.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert note == "input is bool: False is read as 0, True as 1"
    labels, note = read_targets(LABELS > 0)
    assert labels.tolist() == [0, 1]
    assert note == "labels are bool: False is read as class 0, True as class 1"


def test_rounding_is_said_with_its_size() -> None:
    images, note = read_inputs(IMAGES.double() / 3, "input")
    assert torch.equal(images, (IMAGES.double() / 3).float())
    change = (images.double() - IMAGES.double() / 3).abs().max()
    assert note == f"input is float64: rounded to float32, by up to {change:.1e}"
    tiny, note = read_inputs(torch.full((2, 3), 1e-50, dtype=torch.float64), "input")
    assert note.endswith("by up to 1.0e-50")
    assert not tiny.any()
    many = torch.zeros(3000, 2, dtype=torch.float64)
    many[2999, 1] = 1 + 1e-9  # in the last piece of the comparison
    assert read_inputs(many, "input")[1].endswith("by up to 1.0e-09")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES + 1j, "complex numbers (complex64)"),
        ((IMAGES + 0j).numpy(), "complex numbers (complex64)"),
        (IMAGES.double() * 1e300, "beyond float32's largest"),
        (IMAGES.long() * 2**24, "int64 numbers from 0 to 117440512"),
        (np.full((2, 1, 2, 2), 2**63, dtype=np.uint64), "uint64 numbers from 9223372036854775808"),
        (IMAGES.to_sparse(), "must be a dense tensor"),
        (IMAGES.to("meta"), "must be a dense tensor"),
        (quantised(), "quantised (qint8): give tensor.dequantize()"),
        (masked(), "the mask would be lost"),
        (np.ma.masked_array(IMAGES.numpy(), IMAGES.numpy() > 2), "the mask would be lost"),
        (Image.new("P", (2, 2)), "got a Pillow image"),
        ([Image.new("P", (2, 2))] * 2, "got a Pillow image"),
        (np.array([["0"], ["1"]]), "arrays of numbers: got type <U1"),
        ([["0", 1], [1, 2]], "arrays of numbers"),
        ([[0], [1, 2]], "arrays of numbers"),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), "arrays of numbers"),
        ("pixels", "arrays of numbers"),
        (None, "arrays of numbers: got NoneType"),
        (IMAGES.numpy().astype(np.longdouble), "arrays of numbers"),
    ],
)
def test_images_that_would_lose_something_are_refused(images: Any, message: str) -> None:
    for read in (lambda: read_inputs(images, "input"), lambda: as_split((images, LABELS))):
        with pytest.raises(InputError) as caught:
            read()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0.5, "these are fractions"),
        (-0.9, "these are fractions"),
        (float("nan"), "not all finite"),
        (float("inf"), "not all finite"),
        (1 + 0j, "complex numbers"),
        (1 + 1j, "complex numbers"),
        (2**63, "classes counted from 0: found 9223372036854775808"),
        (2**70, "classes counted from 0: found 1180591620717411303424"),
        (-(2**70), "classes counted from 0: found -1180591620717411303424"),
        (2.0**53, "labels of type float64 are exact below 9,007,199,254,740,992"),
        ("1", "arrays of numbers: got type <U1"),
        (None, "arrays of numbers: got NoneType"),
        (Decimal("1.5"), "arrays of numbers: got Decimal"),
        (torch.tensor(2.0**24), "labels of type float32 are exact below 16,777,216"),
        (torch.tensor(2048.0, dtype=torch.float16), "labels of type float16 are exact below 2,048"),
        (torch.tensor(256.0).bfloat16(), "labels of type bfloat16 are exact below 256"),
        (torch.tensor(0.5, dtype=torch.float16), "these are fractions"),
        (np.float32(0.25), "these are fractions"),
        (torch.tensor([0, 1]), "target is of different shapes: [] and [2]"),
        ([0, 1, 0], "target is of different shapes: [] and [3]"),
    ],
)
def test_labels_of_items_that_are_no_classes_are_refused(label: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        as_split(Items([IMAGES[0]] * 2, [0, label]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0.0, 0.7]),
        torch.tensor([0.0, float("nan")]),
        np.array([0, 2**63], dtype=np.uint64),
        np.array([0, 1j]),
        np.ma.masked_array([0, 1], [False, True]),
        ["0", "1"],
        np.array(["cat", "dog"]),
        torch.full((2, 2), 2),
        torch.zeros(2, 2, dtype=torch.bool),
        pd.Series([1, None], dtype="Int64"),
        pd.Series(["cat", "dog"], dtype="category"),
    ],
)
def test_labels_of_tensors_that_are_no_classes_are_refused(labels: Any) -> None:
    with pytest.raises(InputError, match=r"(labels|targets).* (must|are)"):
        as_splits(((IMAGES, labels), (IMAGES, labels)))


@given(st.lists(st.integers(0, 2**52), min_size=1, max_size=5), st.sampled_from([*WHOLE, *REAL]))
def test_a_label_is_kept_or_refused(labels: list[int], dtype: torch.dtype) -> None:
    """Whatever the type: what is read is what was meant."""
    if not dtype.is_floating_point and max(labels) > torch.iinfo(dtype).max:
        return
    try:
        read, _ = read_targets(torch.tensor(labels).to(dtype))
    except InputError:
        return
    assert read.tolist() == labels


def test_items_of_usual_types_are_read() -> None:
    images = [np.full((1, 2, 2), i, dtype=np.float32) for i in range(4)]
    for labels in (
        [0, 1, 2, 1],
        [np.int64(0), np.uint8(1), torch.tensor(2), 1.0],
        [torch.tensor([0]), torch.tensor([1]), torch.tensor([2]), torch.tensor([1])],
    ):
        read = as_split(Items(images, labels))
        assert read.targets.tolist() == [0, 1, 2, 1]
        assert read.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert read.notes == ()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "at least one example"),
        ([{"image": IMAGES[0], "label": 0}, (IMAGES[0], 0)], "with image, label: one is a tuple"),
        ([{"image": IMAGES[0], "label": 0}, {"image": IMAGES[0]}], "one is dict"),
        ([(IMAGES[0], 0), {"image": IMAGES[0], "label": 0}], "got dict"),
        ([(IMAGES[0], 0), (IMAGES[0], 0, 1)], "got a tuple of 3"),
        ([(IMAGES[0],)], "got a tuple of 1"),
        ([IMAGES[0, 0]], "got Tensor"),
        ([(IMAGES[0], 0), (IMAGES[0].byte(), 1)], "of different types: float32, uint8"),
        ([(IMAGES[0], 0), (IMAGES[0, :, :1], 1)], "of different shapes: [1, 1, 2] and [1, 2, 2]"),
        ([(IMAGES[0] + 1j, 0)], "complex numbers"),
        ([(Image.new("L", (2, 2)), 0)], "got a Pillow image"),
    ],
)
def test_items_that_are_not_alike_are_refused(items: list[Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_items(items)
    assert message in str(caught.value)


def test_order_is_the_order_of_the_rows() -> None:
    """A pandas index is not it."""
    labels = pd.Series([0, 1, 2], index=[2, 1, 0])
    assert as_split((torch.zeros(3, 2), cast(Any, labels))).targets.tolist() == [0, 1, 2]


def test_a_note_names_its_splits() -> None:
    raw, scaled = (IMAGES.int(), LABELS), (IMAGES / 255, LABELS)
    said = "input is int32: read as it is, neither scaled nor normalised"
    assert as_splits((raw, raw)).notes == [f"train, test {said}"]
    assert as_splits((raw, scaled)).notes == [f"train {said}"]
    assert as_splits((scaled, scaled)).notes == []
    assert as_splits((raw, Items(IMAGES.int(), LABELS))).notes == [f"train, test {said}"]
    data = as_splits((raw, scaled)).to(torch.device("cpu")).measured_in_part(0.5, seed=0)
    assert data.notes == [f"train {said}"]
    assert as_split(raw).select(torch.tensor([1])).notes == (said,)


def test_bytes_are_asked_about() -> None:
    raw = (IMAGES * 30).byte()
    for data in ((raw, LABELS), Items(raw, LABELS), {"pixel_values": raw, "labels": LABELS}):
        with pytest.raises(
            InputError, match=r"is uint8, whole numbers up to 210: say data\.uint8 ="
        ):
            as_split(data)
    kept, scaled = (as_split((raw, LABELS), uint8=how) for how in ("keep", "scale"))
    assert torch.equal(kept.inputs, IMAGES * 30)
    assert torch.equal(scaled.inputs, IMAGES * 30 / 255)
    assert kept.notes == ("input is uint8: read as it is, neither scaled nor normalised",)
    assert scaled.notes == ("input is uint8: divided by 255",)


def test_tokens_stay_whole_numbers() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    read, note = read_inputs(tokens, "input")
    assert read.dtype == torch.int64
    assert torch.equal(read, tokens)
    assert note == "input is int64: read as tokens, not as real numbers"
    for name in ("input_ids", "attention_mask"):
        read, note = read_inputs(tokens, name)
        assert torch.equal(read, tokens)
        assert (read.dtype, note) == (torch.int64, "")
    mask, note = read_inputs(tokens > 1, "attention_mask")
    assert (mask.dtype, note) == (torch.bool, "")


def test_a_run_says_how_its_data_was_read(tmp_path: Any) -> None:
    class Heard(SilentProgress):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 6, 6), generator=generator, dtype=torch.uint8)
    part = (images, torch.arange(24) % 2 == 0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    study = Study(
        name="raw",
        network=network,
        data=(part, part),
        overrides={"data.uint8": "keep"},
        pruning={"layers": {"0": 0.4}},
        criteria=["l1"],
        retraining={"epochs": 1, "seeds": [0]},
        runs=tmp_path,
    )
    heard = Heard()
    study.score(progress=heard)
    assert [line for line in heard.lines if line.startswith("data: ")] == [
        "data: train, test input is uint8: read as it is, neither scaled nor normalised",
        "data: train, test labels are bool: False is read as class 0, True as class 1",
    ]
