"""Training, validation and test examples: what every later stage reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from trueoracle.data.augmentation import crop_box, cut_out, draw_crops
from trueoracle.errors import InputError
from trueoracle.tasks.base import INPUT, TARGET, Batch, Task, target_of

__all__ = [
    "AnySplit",
    "Split",
    "Splits",
    "capped",
    "dealt",
    "fraction",
    "input_shape",
    "stratified",
]

T = TypeVar("T")


class AnySplit(Protocol):
    """Examples in memory (:class:`Split`) or streamed (``StreamedSplit``)."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The fields of an example, each with its shape, such as ``input`` ``(C, H, W)``."""

    @property
    def inputs(self) -> Tensor:
        """The field ``input`` ``[N, ...]``; :class:`InputError` where it is absent or streamed."""

    @property
    def targets(self) -> Tensor:
        """What the network should predict for each example, ``[N, ...]``, in memory."""

    @property
    def device(self) -> torch.device:
        """The device on which examples are handed out."""

    @property
    def is_streamed(self) -> bool:
        """Whether the inputs are read from files whenever they are needed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the examples were read, where another reading was possible.

        Each continues a sentence that begins with the split's name, such as "images are uint8: read
        as they are".
        """

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The same, handed out on another device."""

    def select(self, index: Tensor) -> Self:
        """Some of the examples; those of a streamed split stay streamed."""

    def take(self, index: Tensor) -> Split:
        """Some of the examples, taken into memory."""

    def batches(self, size: int) -> Iterator[Batch]:
        """All examples in order, ``size`` at a time."""

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[Batch]:
        """One batch per entry of ``indices`` (int64 ``[N]`` each, on the CPU).

        Where ``resized_crop`` is given, a random part of at least that share of the area is cut out
        of each image and resized; ``seed`` determines which.
        """

    def add_to(self, digest: hashlib._Hash) -> None:
        """Update a hash with every example."""


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in memory.

    ``fields`` are tensors with a leading axis N. Pairs, as made by ``Split.of(images, labels)``,
    have the fields ``input`` and ``target``. ``notes`` are those of :class:`AnySplit`.
    """

    fields: Batch
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{n} {list(v.shape)} {v.dtype}" for n, v in self.fields.items())
        return f"<Split of {len(self):,}: {fields}>".replace("torch.", "")

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in self.fields.items() if value.ndim}
        if not lengths or len(lengths) < len(self.fields):
            raise InputError("a split needs named tensors with a leading axis of examples")
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {list(v.shape)}" for name, v in self.fields.items())
            raise InputError(f"all fields of a split need as many examples: got {said}")
        if not len(self):
            raise InputError("a split needs at least one example")

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, notes: tuple[str, ...] = ()) -> Split:
        """Pairs: inputs ``[N, ...]``, such as images ``[N, C, H, W]``, and targets ``[N, ...]``."""
        return cls({INPUT: inputs, TARGET: targets}, notes)

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape[1:]) for name, value in self.fields.items()}

    @property
    def inputs(self) -> Tensor:
        return _field(self.fields, INPUT)

    @property
    def targets(self) -> Tensor:
        return target_of(self.fields)

    @property
    def device(self) -> torch.device:
        return next(iter(self.fields.values())).device

    @property
    def is_streamed(self) -> bool:
        return False

    def to(self, device: torch.device) -> Split:
        return self._each(lambda value: value.to(device))

    def take(self, index: Tensor) -> Split:
        return self._each(lambda value: value[index])

    def select(self, index: Tensor) -> Split:
        return self.take(index)

    def batches(self, size: int) -> Iterator[Batch]:
        for parts in zip(*(value.split(size) for value in self.fields.values()), strict=True):
            yield dict(zip(self.fields, parts, strict=True))

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for index in indices:
            batch = self.take(index.to(self.device)).fields
            if resized_crop is not None:
                images = batch[INPUT]
                height, width = images.shape[2:]
                numbers = draw_crops(len(images), generator)
                images = cut_out(
                    images, [crop_box(one, height, width, resized_crop) for one in numbers]
                )
                batch = {**batch, INPUT: images}
            yield batch

    def add_to(self, digest: hashlib._Hash) -> None:
        for value in self.fields.values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Split:
        return replace(self, fields={name: change(v) for name, v in self.fields.items()})


@dataclass(frozen=True, eq=False)
class Splits:
    """The training, validation and test splits of one data set, and the task of its networks.

    - ``task``: what networks are trained for;
    - ``fill``: one value per channel, which shifts put outside the image, after normalisation;
    - ``validation``: may be None;
    - ``measured``: the part of the training examples on which train loss is measured; None: all;
    - ``facts``: what a record and a report say of the data, as plain values;
    - ``files``: texts to be kept beside the record, by name;
    - ``remarks``: lines on how the data was read;
    - ``blocks``: for some splits, by name, the block ``[N]`` of each example (:func:`dealt`).
    """

    train: AnySplit
    validation: AnySplit | None
    test: AnySplit
    task: Task
    fill: tuple[float, ...] = field(default=(0.0,))
    measured: AnySplit | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()
    blocks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shapes = self.train.shapes
        if INPUT in shapes and len(self.fill) not in (1, shapes[INPUT][0] if shapes[INPUT] else 1):
            raise InputError(f"fill has {len(self.fill)} values for {shapes[INPUT][0]} channels")
        for name, split in self._distinct():
            if split.shapes != shapes:
                raise InputError(
                    f"{name} examples are {_in_words(split.shapes)} but train examples are "
                    f"{_in_words(shapes)}: all splits need one shape"
                )
            self.task.check_targets(split, name)
            if isinstance(split, Split):
                for field_name, value in split.fields.items():
                    if value.is_floating_point() and not torch.isfinite(value).all():
                        raise InputError(
                            f"the {name} split's {field_name} holds values that are not finite"
                        )

    @property
    def measured_train(self) -> AnySplit:
        """The training examples on which train loss is measured, before and after retraining."""
        return self.train if self.measured is None else self.measured

    @property
    def notes(self) -> list[str]:
        """How the splits were read, where another reading was possible: one line for each note."""
        names: dict[str, list[str]] = {}
        for name, split in self._distinct():
            if split is not self.measured:  # which is a part of the training examples
                for note in split.notes:
                    names.setdefault(note, []).append(name)
        return [*self.remarks, *(f"{', '.join(where)} {note}" for note, where in names.items())]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one input, such as ``(C, H, W)``; :class:`InputError` without ``input``."""
        return input_shape(self.train)

    @property
    def network_shape(self) -> tuple[int, ...]:
        """The shape ``(C, H, W)`` of a network's images; empty for text without images.

        Raises :class:`InputError` where there are neither images nor text.
        """
        shapes = self.train.shapes
        return shapes.get("pixel_values", ()) if "input_ids" in shapes else self.image_shape

    def example(self, count: int = 2) -> Batch:
        """The first ``count`` training examples."""
        return self.train.take(torch.arange(min(count, len(self.train)))).fields

    def few(self, count: int) -> Splits:
        """The first ``count`` examples of every split, in memory."""
        train, test = (_first(split, count) for split in (self.train, self.test))
        validation = None if self.validation is None else _first(self.validation, count)
        return replace(
            self, train=train, validation=validation, test=test, measured=None, blocks={}
        )

    def named(self) -> list[tuple[str, AnySplit]]:
        """The splits to evaluate on, as (name, split), in the order train, validation, test.

        The first is :attr:`measured_train`; splits that do not exist are left out.
        """
        found = [
            ("train", self.measured_train),
            ("validation", self.validation),
            ("test", self.test),
        ]
        return [(name, split) for name, split in found if split is not None]

    def _distinct(self) -> list[tuple[str, AnySplit]]:
        """Every split there is, as (name, split)."""
        also = [("measured", self.measured)] if self.measured is not None else []
        return [("train", self.train), *self.named()[1:], *also]

    def measured_in_part(self, share: float, seed: int) -> Splits:
        """The same splits, with train loss measured on a share (0 … 1) of each kind of examples."""
        if share == 1:
            return self
        kinds = self.task.groups(self.train).cpu()
        return replace(self, measured=self.train.select(fraction(kinds, share, seed)))

    def in_blocks(self, count: int) -> Splits:
        """The same splits, with the validation and test examples dealt into ``count`` blocks.

        A split of fewer examples has as many blocks as examples; one that would have a single
        block has none.
        """
        blocks = {
            name: dealt(self.task.groups(split).cpu(), min(count, len(split)))
            for name, split in self.named()[1:]
            if min(count, len(split)) > 1
        }
        return replace(self, blocks=blocks)

    def to(self, device: torch.device) -> Splits:
        validation = None if self.validation is None else self.validation.to(device)
        measured = None if self.measured is None else self.measured.to(device)
        return replace(
            self,
            train=self.train.to(device),
            validation=validation,
            test=self.test.to(device),
            measured=measured,
        )

    def fingerprint(self) -> str:
        """SHA-256 over every example: the identity of data given in Python.

        For streamed images, the names and sizes of their files are hashed instead.
        """
        digest = hashlib.sha256(f"{self.task.label} {self.task.options()} {self.fill}".encode())
        for name, split in self._distinct():
            digest.update(f"{name} {len(split)} {split.shapes}".encode())
            split.add_to(digest)
        return digest.hexdigest()


def input_shape(split: AnySplit) -> tuple[int, ...]:
    """The shape of one input, such as ``(C, H, W)``; :class:`InputError` where there is none."""
    return _field(split.shapes, INPUT)


def _field(fields: Mapping[str, T], name: str) -> T:
    if name not in fields:
        raise InputError(
            f"this needs examples (input, target), and the data has {', '.join(fields)}"
        )
    return fields[name]


def _first(split: AnySplit, count: int) -> Split:
    return split.take(torch.arange(min(count, len(split))))


def _in_words(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices ``[count]``, ascending, of a random draw with equal shares of each class.

    ``labels`` ``[N]`` are classes. ``count`` is spread over the classes present as evenly as
    possible (the first ones get one more; where there are more classes, a random draw of them gets
    one each). Raises :class:`InputError` where a class would have no
    image left.
    """
    places = _by_class(labels)
    shares = _even_shares(count, len(places), seed)
    for (label, where), wanted in zip(places.items(), shares, strict=True):
        if wanted >= len(where):
            raise InputError(
                f"data.validation_images = {count} takes {wanted} of class {label}, "
                f"which has {len(where)} images"
            )
    return _draw(places, shares, seed)


def capped(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices, ascending, of a draw of at most ``count`` images, with equal shares of each class.

    A class with fewer images gives all of them; the other classes do not give more instead.
    """
    places = _by_class(labels)
    if count >= len(labels):
        return torch.arange(len(labels))
    shares = _even_shares(count, len(places), seed)
    most = [min(s, len(where)) for s, where in zip(shares, places.values(), strict=True)]
    return _draw(places, most, seed)


def fraction(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices, ascending, of a draw of the same ``share`` of each class, at least one image."""
    places = _by_class(labels)
    return _draw(places, [max(1, round(share * len(where))) for where in places.values()], seed)


def dealt(kinds: Tensor, count: int) -> Tensor:
    """Which of ``count`` blocks each example belongs to, ``[N]``, given the ``kinds`` ``[N]``.

    The examples of each kind are shuffled and dealt to the blocks in turn, so that blocks are
    random draws of equal sizes with equal shares of each kind, up to one example. The blocks are
    the same at every call.
    """
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(kinds))
    order = torch.from_numpy(shuffled)
    order = order[kinds[order].argsort(stable=True)]
    blocks = torch.empty(len(kinds), dtype=torch.int64)
    blocks[order] = torch.arange(len(kinds)) % count
    return blocks


def _by_class(labels: Tensor) -> dict[int, np.ndarray]:
    """The indices of each class's images, ascending."""
    order = labels.argsort(stable=True).numpy()
    classes, counts = labels.unique(return_counts=True)
    ends = counts.cumsum(0)[:-1].tolist()
    return dict(zip(classes.tolist(), np.split(order, ends), strict=True))


def _even_shares(count: int, classes: int, seed: int) -> list[int]:
    share, extra = divmod(count, classes)
    if share == 0:  # the first classes alone would be of a kind, as ImageNet's are animals
        order = np.random.Generator(np.random.PCG64(seed)).permutation(classes)
        return [int(place < extra) for place in order]
    return [share + (position < extra) for position in range(classes)]


def _draw(places: dict[int, np.ndarray], counts: Sequence[int], seed: int) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn: list[int] = []
    for where, count in zip(places.values(), counts, strict=True):
        drawn.extend(generator.permutation(where)[:count].tolist())
    return torch.tensor(sorted(drawn), dtype=torch.int64)


def without(count: int, index: Iterable[int]) -> Tensor:
    """The indices below ``count`` that are not in ``index``, ascending."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[list(index)] = False
    return keep.nonzero()[:, 0]
