"""Splits from examples given in Python: tensors, arrays, datasets and loaders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from trueoracle.data.reading import read_inputs, read_items, read_targets
from trueoracle.data.splits import AnySplit, Split, Splits
from trueoracle.errors import InputError, first_line
from trueoracle.tasks.base import INPUT, TARGET, TARGETS, Targets, Task
from trueoracle.tasks.language import IGNORED
from trueoracle.tasks.registry import TASKS, find_task

__all__ = ["Uint8", "as_split", "as_splits"]

Uint8 = Literal["scale", "keep"]
"""How to read images of whole numbers from 0 to 255: divided by 255, or as they are."""

_TWICE = 3
"""How many items are read twice, to find out whether transforms are random."""

_EXPECTED = (
    "a split must be (inputs, targets), a mapping of tensors, a Dataset with a length, a "
    "DataLoader or a split of Hugging Face's datasets"
)


@dataclass(frozen=True)
class _Reader:
    """How fields become tensors."""

    targets: Targets
    uint8: Uint8 | None = None

    def split(self, fields: Mapping[str, object], notes: Sequence[str] = ()) -> Split:
        read, said = {}, list(notes)
        for name, values in fields.items():
            if name in TARGETS:
                read[name], note = read_targets(values, self.targets)
            else:
                read[name], note = read_inputs(values, name, self.uint8)
            said += [note] if note else []
        return Split(read, tuple(said))


def as_splits(
    data: object,
    task: str | Task | type[Task] = "classification",
    *,
    uint8: Uint8 | None = None,
    columns: Mapping[str, str] | None = None,
) -> Splits:
    """Splits from a user's data: ``Splits``, ``(train, test)`` or ``(train, validation, test)``.

    Each part is whatever :func:`as_split` takes; the validation part may be None. A mapping has
    ``train`` and ``test``, and may have ``validation``: a ``DatasetDict`` of Hugging Face's
    ``datasets``, for example. ``task`` is a name, a class or an object; what it needs to know, such
    as the number of classes, it reads from the training examples.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Mapping) and {"train", "test"} <= data.keys():
        data = (data["train"], data.get("validation"), data["test"])
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise InputError("data must be Splits, (train, test) or (train, validation, test)")

    def read(part: object) -> AnySplit:
        return as_split(part, task, uint8=uint8, columns=columns)

    given = [data[0], *(part for part in data[1:-1] if part is not None), data[-1]]
    train, *validation, test = _of_one_length([read(part) for part in given])
    return Splits(train, validation[0] if validation else None, test, find_task(task, train))


def as_split(
    data: object,
    task: str | Task | type[Task] = "classification",
    *,
    uint8: Uint8 | None = None,
    columns: Mapping[str, str] | None = None,
) -> AnySplit:
    """A split from a user's data, which may have any of these forms.

    - ``(inputs, targets)``, tensors or arrays; of more than two, the last are the targets;
    - a mapping of tensors: the field ``target``, ``targets``, ``label`` or ``labels`` holds the
      targets, all others are the network's inputs, by name where its arguments have these names;
    - a map-style ``Dataset`` of tuples or mappings, which is read through once;
    - a ``DataLoader``, whose dataset (of a ``SubsetRandomSampler``, its part) and collate function
      are used; other samplers that choose among examples are refused;
    - a split of Hugging Face's ``datasets``.

    ``columns`` renames fields (``{"img": "input", "label": "target"}``) and leaves out all others.
    ``uint8`` says how images of whole numbers from 0 to 255 are read. Raises :class:`InputError`
    where examples are not alike, and where tensors cannot hold the given numbers.
    """
    if hasattr(data, "is_streamed"):  # already a split
        return cast(AnySplit, data)
    reader = _Reader(_kind_of_targets(task), uint8)
    if isinstance(data, Mapping):
        return reader.split(_renamed(data, columns))
    if isinstance(data, tuple | list):
        return reader.split(_fields(data))
    collate: Callable[[list[Any]], Any] | None = None
    if isinstance(data, DataLoader):
        if data.collate_fn is not default_collate:
            collate = data.collate_fn
        data = _sampled(data)
    if hasattr(data, "column_names") and hasattr(data, "with_format"):
        return _from_hub(data, reader, columns)
    items, notes = _items(data)
    if collate is not None:
        return _collated(items, collate, reader, notes, columns)
    fields = read_items(items, columns)
    return reader.split(fields, notes)


def _sampled(loader: DataLoader[Any]) -> Any:
    """The examples that a loader goes through: all of its dataset, or those that it is given."""
    if isinstance(loader.dataset, IterableDataset):  # which is then refused as such
        return loader.dataset
    sampler = loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, [int(one) for one in sampler.indices])
    takes_all = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    if not takes_all or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        which = loader.batch_sampler if takes_all else sampler
        raise InputError(
            f"a DataLoader with a {type(which).__name__} does not go through each of its examples "
            "once: give the Dataset (or a Subset of it) that is meant"
        )
    return loader.dataset


def _kind_of_targets(task: str | Task | type[Task]) -> Targets:
    found = TASKS.find(task) if isinstance(task, str) else task
    return getattr(found, "targets", "any")


def _fields(parts: Sequence[object]) -> dict[str, object]:
    if len(parts) < 2:
        raise InputError(
            f"expected (inputs, targets), got a {type(parts).__name__} of {len(parts)}"
        )
    names = [INPUT if place == 0 else f"{INPUT}_{place}" for place in range(len(parts) - 1)]
    return dict(zip([*names, TARGET], parts, strict=True))


def _renamed(
    fields: Mapping[str, object], columns: Mapping[str, str] | None
) -> Mapping[str, object]:
    if columns is None:
        return fields
    if missing := [name for name in columns if name not in fields]:
        raise InputError(f"the data has no {missing[0]!r}, only {', '.join(map(str, fields))}")
    return {new: fields[old] for old, new in columns.items()}


def _items(data: object) -> tuple[list[object], list[str]]:
    """The items of a Dataset, read once, and notes on them."""
    try:
        count = len(data)  # type: ignore[arg-type]
        items = [data[i] for i in range(count)]  # type: ignore[index]
        again = [data[i] for i in range(min(_TWICE, count))]  # type: ignore[index]
    except Exception as error:  # a user's Dataset runs: anything can come out
        raise InputError(f"{_EXPECTED}: {type(error).__name__}: {first_line(error)}") from error
    if all(_same(one, other) for one, other in zip(items, again, strict=False)):
        return items, []
    return items, [
        "items differ when they are read again: a random transform is in the Dataset, and each "
        "item is read once (leave it out, and let the recipe augment)"
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_same(one[name], other.get(name)) for name in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(
            torch.equal(one.nan_to_num(), other.nan_to_num())
            if one.is_floating_point()
            else torch.equal(one, other)
        )
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return True  # anything else is refused when it is read


def _collated(
    items: list[Any],
    collate: Callable[[list[Any]], Any],
    reader: _Reader,
    notes: list[str],
    columns: Mapping[str, str] | None,
) -> Split:
    """All items as one batch of a loader's own collate function, which may pad them."""
    try:
        batch = collate(items)
    except Exception as error:  # the user's function runs
        raise InputError(f"the DataLoader's collate function: {first_line(error)}") from error
    if isinstance(batch, Mapping):
        return reader.split(_renamed(batch, columns), notes)
    if isinstance(batch, tuple | list):
        return reader.split(_fields(batch), notes)
    raise InputError(
        f"the DataLoader's collate function gives a {type(batch).__name__}, expected a tuple or a "
        "mapping of tensors"
    )


def _from_hub(data: Any, reader: _Reader, columns: Mapping[str, str] | None) -> Split:
    """A split of Hugging Face's datasets: its columns as fields."""
    wanted = list(columns) if columns is not None else list(data.column_names)
    if missing := [name for name in wanted if name not in data.column_names]:
        raise InputError(f"the data has no {missing[0]!r}, only {', '.join(data.column_names)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of arrays that are not writable
        rows = dict(data.select_columns(wanted).with_format("numpy")[:])
    features = getattr(data, "features", None) or {}
    for name in wanted:
        if type(features.get(name)).__name__ == "Image":
            rows[name] = _channels_first(rows[name], name)
    padded = _padded(rows)
    return reader.split(_renamed(padded or rows, columns), [_PADDED] if padded else [])


def _channels_first(images: np.ndarray, name: str) -> np.ndarray:
    """Images ``[N, H, W]`` or ``[N, H, W, C]`` as ``[N, C, H, W]``."""
    if images.dtype == object:
        sizes = sorted({"x".join(map(str, image.shape)) for image in images})
        raise InputError(
            f"{name} holds images of different sizes, {sizes[0]} and {sizes[1]}: resize them with "
            "map, so that all are alike"
        )
    return images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)


_PADDED = "input_ids are of different lengths: padded on the right, with an attention_mask"


def _padded(rows: Mapping[str, np.ndarray]) -> dict[str, object] | None:
    """Token sequences of different lengths, as tokenizers give them, padded to the longest.

    None where all ``input_ids`` have one length. Fields whose lengths differ from those of
    ``input_ids`` stay as they are.
    """
    tokens = rows.get("input_ids")
    if tokens is None or tokens.dtype != object:
        return None
    lengths = [len(one) for one in tokens]
    fields: dict[str, Any] = {"input_ids": tokens}
    fields["attention_mask"] = [np.ones(length, np.int64) for length in lengths]
    filled: dict[str, object] = {}
    for name, values in (fields | dict(rows)).items():
        filled[name] = values
        if [np.size(one) for one in values] == lengths:
            filler = IGNORED if name in TARGETS else 0
            ends = [(0, max(lengths) - length) for length in lengths]
            alike = zip(values, ends, strict=True)
            filled[name] = np.stack([np.pad(v, end, constant_values=filler) for v, end in alike])
    return filled


def _of_one_length(splits: Sequence[AnySplit]) -> list[AnySplit]:
    """The padded texts of several splits, all padded to the length of the longest."""
    lengths = [split.shapes.get("input_ids") for split in splits]
    if len(set(lengths)) == 1 or not all(
        isinstance(split, Split) and "attention_mask" in split.fields for split in splits
    ):
        return list(splits)
    longest, made = max(length[0] for length in lengths if length), []
    for split, length in zip(cast(Sequence[Split], splits), lengths, strict=True):
        fields = {
            name: functional.pad(
                value,
                (0, longest - value.shape[1]),
                value=IGNORED if name in TARGETS else 0,
            )
            if value.shape[1:] == length
            else value
            for name, value in split.fields.items()
        }
        made.append(Split(fields, split.notes))
    return list(made)
