"""A user's own numbers as inputs and targets: kept as they are, or refused.

Nothing is dropped in silence. Numbers that tensors of float32 and int64 cannot hold raise
:class:`InputError`; numbers that a user may have meant otherwise come with a note.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trueoracle.errors import InputError, first_line
from trueoracle.tasks.base import INPUT, TARGET, TARGETS, Targets, is_positional

__all__ = ["read_inputs", "read_items", "read_targets"]

_EXACT_IN_FLOAT32 = 2**24
"""The number up to which float32 holds every whole number."""

_PIECE = 1024
"""How many images are compared at a time, so that the comparison takes little memory."""


def read_inputs(values: object, name: str, uint8: str | None = None) -> tuple[Tensor, str]:
    """A network's input as a tensor of the same shape, and a note on how it was read.

    Real numbers become float32. Whole numbers stay int64 where they are tokens: sequences
    ``[N, T]`` of int64, or fields of a mapping. For bytes, the user has to choose: ``uint8`` is
    ``"scale"`` (divide by 255) or ``"keep"``. The note continues a sentence that begins with the
    split's name ("train input is int32: …"), and may be empty. Raises :class:`InputError` where
    float32 cannot hold the numbers.
    """
    given = _real(values, name)
    kind = _kind(given)
    named = not is_positional(name)
    if given.dtype == torch.int64 and (named or given.ndim <= 2):
        said = "" if named else f"{name} is int64: read as tokens, not as real numbers"
        return given, said
    numbers = given.to(torch.float32)
    if given.dtype == torch.bool:
        if named:  # a mask
            return given, ""
        return numbers, f"{name} is bool: False is read as 0, True as 1"
    if given.dtype == torch.uint8:
        if uint8 is None:
            raise InputError(
                f"{name} is uint8, whole numbers up to {_range(given)[1]}: say data.uint8 = "
                "'scale' to divide by 255, or 'keep' to read them as they are"
            )
        scaled = numbers / 255 if uint8 == "scale" else numbers
        how = (
            "divided by 255" if uint8 == "scale" else "read as it is, neither scaled nor normalised"
        )
        return scaled, f"{name} is uint8: {how}"
    if not given.is_floating_point():
        low, high = _range(given)
        if max(abs(low), abs(high)) > _EXACT_IN_FLOAT32:
            raise InputError(
                f"{name} holds {kind} numbers from {low} to {high}, and networks read float32, "
                f"which is exact up to {_EXACT_IN_FLOAT32:,} only: scale them first"
            )
        return numbers, f"{name} is {kind}: read as it is, neither scaled nor normalised"
    return numbers, _rounded(given, numbers, name)


def read_targets(values: object, kind: Targets = "classes") -> tuple[Tensor, str]:
    """Targets of the same shape, and a note like that of :func:`read_inputs`.

    Whole numbers become int64, real numbers float32. Raises :class:`InputError` for different
    numbers that these types cannot tell apart, and for targets of another ``kind``.
    """
    given = _real(values, "targets")
    if kind == "any":
        kind = "numbers" if given.is_floating_point() else "indices"
    if kind == "numbers":
        numbers = given.to(torch.float32)
        if given.is_floating_point():
            return numbers, _rounded(given, numbers, "targets")
        low, high = _range(given)
        if max(abs(low), abs(high)) > _EXACT_IN_FLOAT32:
            raise InputError(f"targets hold whole numbers up to {high}, which float32 rounds")
        return numbers, ""
    if kind == "classes" and given.ndim == 2 and given.shape[1] > 1:
        if _is_one_hot(given):
            return given.to(torch.float32), "labels are one-hot: read as class probabilities"
        if given.is_floating_point():
            return given.to(torch.float32), ""
    return read_labels(given)


def _widened(value: Tensor, kind: torch.dtype) -> Tensor:
    """One number as another type; raises :class:`InputError` where the type cannot hold it."""
    widened = value.to(kind).reshape(())
    if kind.is_floating_point and not value.is_floating_point() and int(widened) != int(value):
        raise InputError(f"targets mix fractions and {int(value)}, which {kind} does not hold")
    return widened


def _is_one_hot(values: Tensor) -> bool:
    ones = (values == 1).sum(1)
    return bool(((values == 0) | (values == 1)).all() and (ones == 1).all())


def _rounded(given: Tensor, numbers: Tensor, name: str) -> str:
    if not (changed := _largest_change(given, numbers)):
        return ""
    if changed == float("inf"):
        raise InputError(
            f"{name} holds {_kind(given)} numbers beyond float32's largest, 3.4e38: scale them "
            "first"
        )
    return f"{name} is {_kind(given)}: rounded to float32, by up to {changed:.1e}"


def read_labels(values: object) -> tuple[Tensor, str]:
    """Labels as int64 of the same shape, and a note like that of :func:`read_inputs`.

    Raises :class:`InputError` for fractions, for numbers that are not finite, and for numbers that
    their type, or int64, cannot tell apart.
    """
    given = _real(values, "labels")
    if given.dtype == torch.bool:
        return given.to(torch.int64), "labels are bool: False is read as class 0, True as class 1"
    if given.is_floating_point():
        _check_whole(given)
    elif given.numel() and _range(given)[1] > torch.iinfo(torch.int64).max:
        raise InputError(f"labels must be classes counted from 0: found {_range(given)[1]}")
    return given.to(torch.int64), ""


def read_items(
    items: Sequence[object], columns: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The items of a Dataset, tuples or mappings that are alike, as fields ``[N, ...]``.

    ``columns`` renames fields of mappings, and leaves out all others. Raises :class:`InputError`
    for items that are not alike.
    """
    if not items:
        raise InputError("a split needs at least one example")
    first = items[0]
    if isinstance(first, Mapping):
        names = {str(name): str(name) for name in first} if columns is None else dict(columns)
        for item in items:
            if not isinstance(item, Mapping) or not names.keys() <= item.keys():
                raise InputError(
                    f"the Dataset's items must be alike, with {', '.join(names)}: one is "
                    f"{_what(item)}"
                )
        mappings = cast(Sequence[Mapping[str, object]], items)
        return {new: _stacked([item[old] for item in mappings], new) for old, new in names.items()}
    for item in items:
        if not isinstance(item, tuple | list) or not 2 <= len(item) == _length(first):
            raise InputError(
                f"the Dataset's items must be (input, target), or mappings, got {_what(item)}"
            )
    parts = zip(*cast(Sequence[Sequence[object]], items), strict=True)
    names_of = [INPUT, *(f"{INPUT}_{place}" for place in range(1, _length(first) - 1)), TARGET]
    return {name: _stacked(list(part), name) for name, part in zip(names_of, parts, strict=True)}


def _length(item: object) -> int:
    return len(item) if isinstance(item, tuple | list) else 0


def _stacked(parts: Sequence[object], name: str) -> object:
    """One field of all items as one tensor, where they are of one type and shape."""
    whole = [part for part in parts if type(part) is int]
    if len(whole) == len(parts):  # labels usually are plain numbers; this path is the fastest
        for extreme in (min(whole), max(whole)):
            if abs(extreme) > torch.iinfo(torch.int64).max:  # numpy would turn these to float64
                raise InputError(f"labels must be classes counted from 0: found {extreme}")
        return torch.tensor(whole, dtype=torch.int64)
    tensors = [_real(part, name) for part in parts]
    if name in TARGETS and all(tensor.numel() == 1 for tensor in tensors):
        wide = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors})
        tensors = [_widened(tensor, wide) for tensor in tensors]
    if len(kinds := sorted({_kind(tensor) for tensor in tensors})) > 1:
        raise InputError(f"the Dataset's {name} is of different types: {', '.join(kinds)}")
    if len(shapes := sorted({tuple(tensor.shape) for tensor in tensors})) > 1:
        raise InputError(
            f"the Dataset's {name} is of different shapes: {list(shapes[0])} and "
            f"{list(shapes[1])}: a DataLoader's collate function may pad them"
        )
    stacked = torch.stack(tensors)
    return stacked[:, 0] if name in TARGETS and stacked.shape[1:] == (1,) else stacked


def _real(values: object, what: str) -> Tensor:
    """A dense tensor of real numbers; anything beyond real numbers is refused, not dropped."""
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
    """The largest difference; infinite where a finite number has become infinite."""
    if given.dtype == rounded.dtype:
        return 0.0
    largest = 0.0
    parts = (torch.atleast_1d(t).split(_PIECE) for t in (given, rounded))
    for before, after in zip(*parts, strict=True):
        change = (after.double() - before.double()).abs().nan_to_num(nan=0.0, posinf=float("inf"))
        largest = max(largest, float(change.max()) if change.numel() else 0.0)
    return largest


def _range(values: Tensor) -> tuple[int, int]:
    """The smallest and the largest whole number; numpy compares types that torch does not."""
    array = values.cpu().numpy()
    return (int(array.min()), int(array.max())) if array.size else (0, 0)


def _kind(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _what(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
