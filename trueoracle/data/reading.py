"""A user's own numbers as images and labels: kept as they are, or refused.

Nothing is dropped in silence. What tensors of float32 and int64 cannot hold raises
:class:`InputError`; what they hold, though a reader may have meant it otherwise, comes with a note.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trueoracle.errors import InputError, first_line

__all__ = ["read_images", "read_items", "read_labels"]

_EXACT_IN_FLOAT32 = 2**24
"""Up to here float32 holds every whole number."""

_PIECE = 1024
"""Images compared at a time, so that the comparison takes little memory."""


def read_images(values: object) -> tuple[Tensor, str]:
    """Images as float32 of the same shape, and a note on how they were read.

    The note goes on from a split's name ("train images are uint8: …"); it is empty where nothing
    is to be said. Raises :class:`InputError` where float32 does not hold the numbers.
    """
    given = _real(values, "images")
    images = given.to(torch.float32)
    kind = _kind(given)
    if given.dtype == torch.bool:
        return images, "images are bool: False is read as 0, True as 1"
    if not given.is_floating_point():
        low, high = _range(given)
        if max(abs(low), abs(high)) > _EXACT_IN_FLOAT32:
            raise InputError(
                f"images hold {kind} numbers from {low} to {high}, and networks read float32, "
                f"which is exact up to {_EXACT_IN_FLOAT32:,} only: scale them first"
            )
        return images, f"images are {kind}: read as they are, neither scaled nor normalised"
    if not (changed := _largest_change(given, images)):
        return images, ""
    if changed == float("inf"):
        raise InputError(
            f"images hold {kind} numbers beyond float32's largest, 3.4e38: scale them first"
        )
    return images, f"images are {kind}: rounded to float32, by up to {changed:.1e}"


def read_labels(values: object) -> tuple[Tensor, str]:
    """Labels as int64 of the same shape, and a note as :func:`read_images` has one.

    Raises :class:`InputError` for fractions, for what is not finite, and for numbers that their
    type, or int64, does not tell apart.
    """
    given = _real(values, "labels")
    if given.dtype == torch.bool:
        return given.to(torch.int64), "labels are bool: False is read as class 0, True as class 1"
    if given.is_floating_point():
        _check_whole(given)
    elif given.numel() and _range(given)[1] > torch.iinfo(torch.int64).max:
        raise InputError(f"labels must be classes counted from 0: found {_range(given)[1]}")
    return given.to(torch.int64), ""


def read_items(items: Sequence[object]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The items of a Dataset, each ``(image, label)``, as images, labels and notes.

    A label may be a number, or a tensor or array of one. Raises :class:`InputError` as
    :func:`read_images` and :func:`read_labels` do, and for items that are not alike.
    """
    pairs: list[tuple[object, object]] = []
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(
                f"the Dataset's items must be (image tensor, label), got {_what(item)}"
            )
        pairs.append((item[0], item[1]))
    parts = [_real(image, "images") for image, _ in pairs]
    if len(kinds := sorted({_kind(part) for part in parts})) > 1:
        raise InputError(f"the Dataset's images are of different types: {', '.join(kinds)}")
    if len(shapes := sorted({tuple(part.shape) for part in parts})) > 1:
        raise InputError(
            f"the Dataset's images are of different shapes: {list(shapes[0])} and {list(shapes[1])}"
        )
    images, note = read_images(torch.stack(parts) if parts else torch.zeros(0, 1))
    labels, said = _label_of_each([label for _, label in pairs])
    return images, labels, tuple(filter(None, [note, said]))


def _label_of_each(labels: Sequence[object]) -> tuple[Tensor, str]:
    whole = [label for label in labels if type(label) is int]
    if len(whole) == len(labels):  # the usual case, and the fastest
        for extreme in (min(whole, default=0), max(whole, default=0)):
            if abs(extreme) > torch.iinfo(torch.int64).max:  # numpy would make them float64
                raise InputError(f"labels must be classes counted from 0: found {extreme}")
        return torch.tensor(whole, dtype=torch.int64), ""
    read = [read_labels(label) for label in labels]
    for label, _ in read:
        if label.numel() != 1:
            raise InputError(
                f"an item's label must be one class, got numbers of shape {list(label.shape)} "
                "(one-hot targets, masks and boxes are not)"
            )
    return torch.stack([label.reshape(()) for label, _ in read]), read[0][1]


def _real(values: object, what: str) -> Tensor:
    """A dense tensor of real numbers; all that is more than that is refused, not dropped."""
    if isinstance(values, Image.Image) or (
        isinstance(values, tuple | list) and any(isinstance(one, Image.Image) for one in values)
    ):
        raise InputError(
            f"{what} must be tensors or arrays, got a Pillow image: torchvision's ToTensor, or "
            "torch.as_tensor(numpy.array(image)), makes a tensor of one"
        )
    if np.ma.is_masked(values) or isinstance(values, torch.masked.MaskedTensor):
        raise InputError(f"{what} are masked, and the mask would be lost: fill or leave out")
    tensor = values if isinstance(values, Tensor) else _from_array(values, what)
    if tensor.is_complex():
        raise InputError(
            f"{what} are complex numbers ({_kind(tensor)}), and networks read real ones: give "
            "their size, or the real and the imaginary part as channels"
        )
    if tensor.is_quantized:
        raise InputError(f"{what} are quantised ({_kind(tensor)}): give tensor.dequantize()")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        raise InputError(f"{what} must be a dense tensor that holds its numbers")
    return tensor.detach()


def _from_array(values: object, what: str) -> Tensor:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biufc":
            got = _what(values) if array.dtype == object else f"type {array.dtype}"
            raise TypeError(f"got {got}")
        native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} must be tensors or arrays of numbers: {first_line(error)}"
        ) from error


def _check_whole(labels: Tensor) -> None:
    if not torch.isfinite(labels).all():
        raise InputError("labels must be whole numbers, counted from 0: these are not all finite")
    if not torch.equal(labels, labels.round()):
        raise InputError("labels must be whole numbers, counted from 0: these are fractions")
    exact = round(2 / torch.finfo(labels.dtype).eps)
    if labels.numel() and float(labels.abs().max()) >= exact:
        raise InputError(
            f"labels of type {_kind(labels)} are exact below {exact:,} only: give them as int64"
        )


def _largest_change(given: Tensor, rounded: Tensor) -> float:
    """The largest difference, infinite where a finite number is not finite any more."""
    if given.dtype == rounded.dtype:
        return 0.0
    largest = 0.0
    parts = (torch.atleast_1d(t).split(_PIECE) for t in (given, rounded))
    for before, after in zip(*parts, strict=True):
        change = (after.double() - before.double()).abs().nan_to_num(nan=0.0, posinf=float("inf"))
        largest = max(largest, float(change.max()) if change.numel() else 0.0)
    return largest


def _range(values: Tensor) -> tuple[int, int]:
    """The smallest and the largest of whole numbers; numpy compares those torch does not."""
    array = values.cpu().numpy()
    return (int(array.min()), int(array.max())) if array.size else (0, 0)


def _kind(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _what(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
