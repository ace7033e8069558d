"""Data of one's own: whatever it comes as, the same examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from trueoracle.data.given import as_split, as_splits
from trueoracle.data.splits import AnySplit, Split, Splits
from trueoracle.errors import InputError
from trueoracle.tasks.base import TARGETS
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.regression import Regression


def kind(one: object) -> str:
    return one if isinstance(one, str) else type(one).__name__


IMAGES = torch.arange(24.0).reshape(6, 1, 2, 2) / 24
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
OTHER = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Items(Dataset[Any]):
    """A map-style Dataset that makes its items anew at every look."""

    def __init__(self, make: Callable[[int], Any], count: int = 6) -> None:
        self.make, self.count, self.looks = make, count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.looks += 1
        return self.make(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(IMAGES[0], 0)])


class Hub:
    """A split of Hugging Face's datasets, as far as it is used."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], asked: list[str]) -> None:
        self.columns, self.asked = columns, asked

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def select_columns(self, names: Sequence[str]) -> Hub:
        self.asked.append(f"select {','.join(names)}")
        return Hub({name: self.columns[name] for name in names}, self.asked)

    def with_format(self, kind: str) -> Hub:
        self.asked.append(f"format {kind}")
        return self

    def __getitem__(self, key: slice) -> dict[str, np.ndarray]:
        assert self.asked[-1] == "format numpy"  # else these are lists
        return {name: np.asarray(values)[key] for name, values in self.columns.items()}


def pair(index: int) -> Any:
    return IMAGES[index], int(LABELS[index])


def same(split: AnySplit, **fields: Tensor) -> None:
    assert isinstance(split, Split)
    assert list(split.fields) == list(fields)
    for name, expected in fields.items():
        assert torch.equal(split.fields[name], expected), name
        assert split.fields[name].dtype == expected.dtype


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        (IMAGES.numpy(), LABELS.tolist()),
        (IMAGES.numpy().astype(">f4"), LABELS.numpy().astype(np.uint8)),
        {"input": IMAGES, "target": LABELS},
        TensorDataset(IMAGES, LABELS),
        Items(pair),
        Items(lambda i: [IMAGES[i].numpy(), np.int64(LABELS[i])]),
        Items(lambda i: {"input": IMAGES[i], "target": LABELS[i : i + 1]}),
        DataLoader(Items(pair), batch_size=4, shuffle=True),
        Hub({"input": IMAGES.tolist(), "target": LABELS.tolist()}, []),
    ],
    ids=[
        *("tensors", "list", "arrays", "other arrays", "mapping", "TensorDataset"),
        *("Dataset", "Dataset of lists", "Dataset of dicts", "DataLoader", "Hugging Face"),
    ],
)
def test_whatever_it_comes_as_it_is_the_same_examples(data: Any) -> None:
    split = as_split(data)
    same(split, input=IMAGES, target=LABELS)
    assert split.notes == ()
    assert len(split) == 6


def test_a_split_is_itself() -> None:
    split = Split.of(IMAGES, LABELS)
    assert as_split(split) is split
    data = Splits(split, None, split, Classification(3))
    assert as_splits(data) is data


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, OTHER, LABELS),
        TensorDataset(IMAGES, OTHER, LABELS),
        Items(lambda i: (IMAGES[i], OTHER[i], int(LABELS[i]))),
        DataLoader(Items(lambda i: (IMAGES[i], OTHER[i], int(LABELS[i])))),
    ],
    ids=["tensors", "TensorDataset", "Dataset", "DataLoader"],
)
def test_of_a_tuple_the_last_are_the_targets(data: Any) -> None:
    same(as_split(data), input=IMAGES, input_1=OTHER, target=LABELS)


def test_fields_keep_their_names() -> None:
    fields = {"pixel_values": IMAGES, "more": OTHER, "labels": LABELS}
    for data in (
        fields,
        Items(lambda i: {name: value[i] for name, value in fields.items()}),
        Hub({name: value.tolist() for name, value in fields.items()}, []),
    ):
        split = as_split(data)
        same(split, **fields)
        assert torch.equal(split.targets, LABELS)
        with pytest.raises(InputError, match=r"and the data has pixel_values, more, labels$"):
            _ = split.inputs
    with pytest.raises(InputError, match=r"^the data has no targets, only pixel_values$"):
        _ = as_split({"pixel_values": IMAGES}).targets


@pytest.mark.parametrize("target", TARGETS)
def test_the_usual_names_of_targets_are_known(target: str) -> None:
    split = as_split({"image": IMAGES, target: LABELS.double()})
    assert torch.equal(split.targets, LABELS)
    assert split.targets.dtype == torch.int64


def test_columns_rename_and_leave_out() -> None:
    fields = {"img": IMAGES, "notes": OTHER, "fine_label": LABELS}
    columns = {"img": "input", "fine_label": "target"}
    asked: list[str] = []
    texts = {"img": IMAGES.tolist(), "fine_label": LABELS.tolist(), "notes": ["no numbers"] * 6}
    for data in (
        fields,
        Items(lambda i: {name: value[i] for name, value in fields.items()} | {"words": "x"}),
        DataLoader(
            Items(lambda i: {name: value[i] for name, value in fields.items()}),
            collate_fn=lambda items: {n: torch.stack([one[n] for one in items]) for n in fields},
        ),
        Hub(texts, asked),
    ):
        same(as_split(data, columns=columns), input=IMAGES, target=LABELS)
    assert asked == ["select img,fine_label", "format numpy"]


@pytest.mark.parametrize(
    "data",
    [
        {"img": IMAGES, "label": LABELS},
        Hub({"img": IMAGES.tolist(), "label": LABELS.tolist()}, []),
    ],
    ids=["mapping", "Hugging Face"],
)
def test_a_column_that_is_not_there_is_named(data: Any) -> None:
    with pytest.raises(InputError, match=r"^the data has no 'image', only img, label$"):
        as_split(data, columns={"image": "input", "label": "target"})


def test_a_column_that_items_lack_is_named() -> None:
    items = Items(lambda i: {"img": IMAGES[i], "label": LABELS[i]})
    with pytest.raises(InputError, match="with image, label: one is dict"):
        as_split(items, columns={"image": "input", "label": "target"})


def ragged(index: int) -> dict[str, list[int]]:
    return {"input_ids": list(range(1, index + 2)), "labels": list(range(1, index + 2))}


def padded(items: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(one["input_ids"]) for one in items)
    made = {
        name: torch.tensor([one[name] + [fill] * (longest - len(one[name])) for one in items])
        for name, fill in (("input_ids", 0), ("labels", -100))
    }
    return made | {"attention_mask": (made["labels"] != -100).long()}


def test_a_loaders_collate_function_pads_all_examples_alike() -> None:
    loader = DataLoader(Items(ragged), batch_size=2, collate_fn=padded)
    split = as_split(loader, "next-token")
    assert split.shapes == {"input_ids": (6,), "labels": (6,), "attention_mask": (6,)}
    assert split.take(torch.tensor([1])).fields["input_ids"].tolist() == [[1, 2, 0, 0, 0, 0]]
    assert split.targets.dtype == torch.int64
    assert split.targets[1].tolist() == [1, 2, -100, -100, -100, -100]
    with pytest.raises(InputError, match=r"different shapes: .* a DataLoader's collate function"):
        as_split(Items(ragged), "next-token")


def test_a_collate_function_may_give_a_tuple() -> None:
    def collate(items: list[Any]) -> Any:
        return torch.stack([one[0] for one in items]), torch.tensor([one[1] for one in items])

    same(as_split(DataLoader(Items(pair), collate_fn=collate)), input=IMAGES, target=LABELS)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda items: 1 / 0, "the DataLoader's collate function: division by zero"),
        (lambda items: 3, "collate function gives a int, expected a tuple or a mapping of tensors"),
        (lambda items: (IMAGES,), r"expected \(inputs, targets\), got a tuple of 1"),
    ],
    ids=["fails", "a number", "no targets"],
)
def test_a_collate_function_that_gives_no_batch_is_refused(collate: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_split(DataLoader(Items(pair), collate_fn=collate))
    assert "\n" not in str(caught.value)


def test_a_random_transform_is_noticed() -> None:
    said = "items differ when they are read again: a random transform is in the Dataset, and each"
    noisy = Items(lambda i: (IMAGES[i] + torch.rand(1), int(LABELS[i])))
    arrays = Items(lambda i: {"input": np.random.default_rng().random(3), "target": 1})
    moved = Items(lambda i: (IMAGES[i], torch.rand(2)))
    for data in (noisy, arrays, DataLoader(noisy, batch_size=3)):
        (note,) = [n for n in as_split(data).notes if not n.startswith("input is float64")]
        assert note.startswith(said)
    (note,) = as_split(moved, "regression").notes
    assert note.startswith(said)
    whole = as_splits((noisy, Items(pair)))
    assert whole.notes == [f"train {as_split(noisy).notes[0]}"]
    unknown = torch.full((1, 2, 2), float("nan"))
    assert as_split(Items(lambda i: (unknown.clone(), 0))).notes == ()  # NaN is not another NaN


def test_items_are_read_once_but_for_a_few() -> None:
    many = Items(lambda i: (IMAGES[i % 6], i % 3), 50)
    as_split(many)
    assert many.looks == 53


@pytest.mark.parametrize(
    "data",
    [range(3), 5, None, "images", {1, 2}, Stream(), DataLoader(Stream()), iter([])],
    ids=kind,
)
def test_what_is_no_split_is_refused_in_a_line(data: Any) -> None:
    with pytest.raises(InputError) as caught:
        as_split(data)
    assert "\n" not in str(caught.value)
    assert "Dataset" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES,), r"^expected \(inputs, targets\), got a tuple of 1$"),
        ((), r"^expected \(inputs, targets\), got a tuple of 0$"),
        ({}, "needs named tensors"),
        ((IMAGES, LABELS[:5]), r"as many examples: got input \[6, 1, 2, 2\], target \[5\]"),
        (Items(pair, 0), "at least one example"),
        (Items(lambda i: 1 / 0), "ZeroDivisionError: division by zero"),
    ],
    ids=["no targets", "nothing", "no fields", "too few labels", "no items", "a failing Dataset"],
)
def test_splits_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_split(data)
    assert "\n" not in str(caught.value)


def test_one_hot_labels_are_probabilities_and_said_to_be() -> None:
    one_hot = torch.eye(3)[LABELS]
    said = "labels are one-hot: read as class probabilities"
    for labels in (one_hot, one_hot.long(), one_hot.bool()):
        split = as_split((IMAGES, labels))
        same(split, input=IMAGES, target=one_hot)
        assert split.notes == (said,)
    shares = OTHER.softmax(1)
    split = as_split((IMAGES, shares))
    same(split, input=IMAGES, target=shares)
    assert split.notes == ()
    assert as_splits(((IMAGES, one_hot), (IMAGES, one_hot))).task.options() == {"classes": 3}


def test_targets_are_read_as_the_task_needs_them() -> None:
    numbers = LABELS.double() + 0.5
    split = as_split((IMAGES, numbers), "regression")
    same(split, input=IMAGES, target=numbers.float())
    same(as_split((IMAGES, LABELS), Regression), input=IMAGES, target=LABELS.float())
    many = as_split((IMAGES, OTHER > 0), "multilabel")
    same(many, input=IMAGES, target=(OTHER > 0).float())
    assert many.notes == ()
    masks = torch.arange(24, dtype=torch.uint8).reshape(6, 2, 2) % 3
    same(as_split((IMAGES, masks), "segmentation"), input=IMAGES, target=masks.long())
    with pytest.raises(InputError, match="fractions"):
        as_split((IMAGES, numbers))
    with pytest.raises(InputError, match=r"exact up to|float32 rounds"):
        as_split((IMAGES, LABELS + 2**24 + 1), "regression")


def test_numbers_of_items_may_be_of_any_types() -> None:
    """A target of 0 beside one of 0.5 is no mistake."""
    values = [0, 0.5, np.float32(1.5), torch.tensor(2), True, np.int8(3)]
    split = as_split(Items(lambda i: (IMAGES[i], values[i])), "regression")
    same(split, input=IMAGES, target=torch.tensor([0.0, 0.5, 1.5, 2, 1, 3]))


@pytest.mark.parametrize("name", ["regression", "multilabel", "segmentation", "classification"])
def test_the_task_comes_with_the_data(name: str) -> None:
    targets = {
        "regression": OTHER,
        "multilabel": OTHER > 0,
        "segmentation": torch.arange(24).reshape(6, 2, 2) % 3,
        "classification": LABELS,
    }[name]
    data = as_splits(((IMAGES, targets), None, (IMAGES, targets)), name)
    assert data.task.name == name
    assert data.validation is None
    assert [name for name, _ in data.named()] == ["train", "test"]
    assert data.example(2)["input"].shape == (2, 1, 2, 2)
    few = data.few(4)
    assert [len(split) for _, split in few.named()] == [4, 4]
    assert few.task is data.task


@pytest.mark.parametrize(
    "data",
    ["digits", (IMAGES,), ((IMAGES, LABELS),) * 4, None],
    ids=kind,
)
def test_other_than_two_or_three_splits_are_refused(data: Any) -> None:
    with pytest.raises(InputError) as caught:
        as_splits(data)
    assert str(caught.value) == "data must be Splits, (train, test) or (train, validation, test)"


# The real package


def hub(**columns: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(columns)


def images_of(count: int, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> Any:
    datasets = pytest.importorskip("datasets")
    noise = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).convert(mode) for one in noise]
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    split = datasets.Dataset.from_dict(
        {"img": pictures, "label": [i % 2 for i in range(count)]}, datasets.Features(features)
    )
    return split, np.stack([np.asarray(one) for one in pictures])


COLUMNS = {"img": "input", "label": "target"}


def test_images_of_a_hub_split_have_their_channels_first() -> None:
    split, pixels = images_of(4)
    found = as_split(split, columns=COLUMNS, uint8="scale")
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    same(found, input=expected, target=torch.tensor([0, 1, 0, 1]))
    split, pixels = images_of(4, mode="L")
    grey = torch.from_numpy(pixels)[:, None].float()
    same(
        as_split(split, columns=COLUMNS, uint8="keep"), input=grey, target=torch.tensor([0, 1] * 2)
    )
    with pytest.raises(InputError, match=r"input is uint8, .*: say data\.uint8"):
        as_split(split, columns=COLUMNS)


def test_images_of_different_sizes_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    mixed = datasets.concatenate_datasets([images_of(2)[0], images_of(2, (6, 6))[0]])
    with pytest.raises(InputError) as caught:
        as_split(mixed, columns=COLUMNS, uint8="scale")
    assert str(caught.value) == (
        "img holds images of different sizes, 6x6x3 and 8x10x3: resize them with map, so that all "
        "are alike"
    )


def test_tokens_of_different_lengths_are_padded_and_said_to_be() -> None:
    split = hub(input_ids=[[5, 6, 7], [8, 9]], labels=[[-100, 6, 7], [-100, 9]])
    found = as_split(split, "answers")
    same(
        found,
        input_ids=torch.tensor([[5, 6, 7], [8, 9, 0]]),
        attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
        labels=torch.tensor([[-100, 6, 7], [-100, 9, -100]]),
    )
    assert found.notes == (
        "input_ids are of different lengths: padded on the right, with an attention_mask",
    )
    alike = as_split(hub(input_ids=[[1, 2], [3, 4]], attention_mask=[[1, 1], [0, 1]]), "next-token")
    assert (list(alike.shapes), alike.notes) == (["input_ids", "attention_mask"], ())


def test_a_dataset_dict_is_splits_of_one_length() -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": hub(input_ids=[[1, 2], [3]]), "test": hub(input_ids=[[1, 2, 3, 4], [5]])}
    found = as_splits(datasets.DatasetDict(parts), "next-token")
    assert found.validation is None
    assert found.train.take(torch.arange(2)).fields["input_ids"].tolist() == [
        [1, 2, 0, 0],
        [3, 0, 0, 0],
    ]
    assert found.test.take(torch.arange(1)).fields["attention_mask"].tolist() == [[1, 1, 1, 1]]
    parts["validation"] = parts["test"]
    assert len(as_splits(parts, "next-token").validation or ()) == 2


def test_a_loader_gives_the_examples_that_it_goes_through() -> None:
    data = TensorDataset(torch.arange(60.0)[:, None], torch.arange(60) % 3)
    parts = [
        DataLoader(data, sampler=SubsetRandomSampler(range(*ends))) for ends in ((0, 40), (40, 60))
    ]
    for loader, (start, end) in zip(parts, ((0, 40), (40, 60)), strict=True):
        split = as_split(loader, task="classification")
        found = split.take(torch.arange(end - start)).inputs[:, 0]
        assert torch.equal(found, torch.arange(float(start), end))
    for loader in (DataLoader(data, shuffle=True), DataLoader(data, 7, drop_last=True)):
        assert len(as_split(loader, task="classification")) == 60
    drawn = RandomSampler(data, num_samples=30)
    weighted = WeightedRandomSampler([1.0] * 60, 60)
    for sampler in (drawn, weighted, RandomSampler(data, replacement=True)):
        with pytest.raises(InputError, match=f"a DataLoader with a {type(sampler).__name__} does"):
            as_split(DataLoader(data, sampler=sampler), task="classification")
