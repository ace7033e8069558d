"""Reads the tensors of a PyTorch checkpoint, however they are wrapped, without running its code.

Training scripts save a ``state_dict`` under various names, beside numbers, optimisers and, as the
paper's code does, the whole network as an object. A file that holds only tensors and plain values
is read by PyTorch's own safe reader. A file that also holds objects is read as data
(:mod:`trueoracle.pickled`), and tensors are made from the numbers that it stores.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from trueoracle.errors import InputError, first_line
from trueoracle.pickled import Call, Name, Stored, read_pickle

__all__ = ["EXTRA_STATE", "check_stored", "read_checkpoint"]

EXTRA_STATE = "_extra_state"
"""The ending of the names under which modules keep what is no tensor (``get_extra_state``)."""

_USUAL = ("state_dict", "model", "model_state_dict", "net", "network")
"""Names that training scripts give to the network; they take precedence over other names."""

_MOST_LAYERS, _DEEPEST = 1_000_000, 500
"""The most layers that a network may have, and the deepest level at which anything is read."""

_ZIP = b"PK\x03\x04"

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def check_stored(file: IO[bytes]) -> None:
    """Refuse an archive whose content is packed: PyTorch packs nothing, and a few bytes could
    become more than there is memory. Raises an exception for such an archive, or a damaged one.
    """
    if file.read(4) == _ZIP:
        with zipfile.ZipFile(file) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("it is packed, and PyTorch writes its files unpacked")
    file.seek(0)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The ``state_dict`` that a checkpoint holds: tensors by name.

    The ``state_dict`` may be the whole content, or stand in a mapping (of mappings) beside other
    things, under any name; the usual names take precedence. Instead of a ``state_dict`` there may
    be a network itself. Values other than tensors occur only under names that end in
    ``_extra_state``. Raises :class:`InputError`, in one line, for a file that is missing or
    damaged, holds no ``state_dict``, or holds several of which none has a usual name.
    """
    try:
        # Training scripts often save their arguments beside the weights: these are plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and deprecated types
            with path.open("rb") as file:
                check_stored(file)
            content: object = torch.load(path, map_location="cpu", weights_only=True)
            objects = None
    except FileNotFoundError as error:
        raise InputError(f"no weights file {path}") from error
    except Exception as error:  # a damaged pickle can raise anything
        objects = _objects_of(path, error)
    if objects is None:
        return _find(path, content, None)
    with objects:
        return _find(path, objects.content, objects)


def _objects_of(path: Path, reason: Exception) -> _Objects:
    """A checkpoint that PyTorch refuses to read safely (for ``reason``), read as data."""
    what = f"{path} is no safetensors file or PyTorch checkpoint that can be read safely"
    if not zipfile.is_zipfile(path):
        # PyTorch's own message advises, in many lines, to read the file unsafely.
        is_refused = isinstance(reason, pickle.UnpicklingError) and "only" in str(reason)
        why = "it is damaged, or holds more than tensors" if is_refused else first_line(reason)
        raise InputError(f"{what}: {why[:160]}") from reason
    try:
        return _Objects(path)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{what}: {first_line(error)[:160]}") from error


def _find(path: Path, content: object, objects: _Objects | None) -> dict[str, Any]:
    """The ``state_dict`` in a checkpoint's content, among those at the least depth."""
    level: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: dict[int, object] = {}  # keeps the values alive, so that no id is given to another one
    odd = ""
    for _ in range(_DEEPEST):
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        below: list[tuple[tuple[str, ...], object]] = []
        for place, value in level:
            if id(value) in seen:  # a mapping may hold itself
                continue
            seen[id(value)] = value
            mapping = _mapping(path, value, objects)
            if _is_state_dict(mapping):
                found[place] = mapping
                continue
            odd = odd or _odd_one(mapping)
            below += [((*place, k), v) for k, v in mapping.items() if not isinstance(v, Tensor)]
        if found:
            return _chosen(path, found)
        level = below
    raise InputError(f"{path} holds no state_dict (a mapping of names to tensors){odd}")


def _chosen(path: Path, found: Mapping[tuple[str, ...], dict[str, Any]]) -> dict[str, Any]:
    """The network among several mappings: the one with a usual name, or the only one."""
    usual = [place for place in found if all(name in _USUAL for name in place)]
    places = usual or list(found)
    first = found[places[0]]
    if all(_equal(first, found[place]) for place in places[1:]):
        return first
    shown = [repr(".".join(place)) for place in places]
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    raise InputError(
        f"{path} holds {len(places)} different mappings of names to tensors "
        f"({', '.join(shown[:6])}{more}): save the one that is meant by itself"
    )


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two mappings hold the same tensors in the same order, whatever their names."""
    ours, theirs = (
        [value for value in each.values() if isinstance(value, Tensor)] for each in (one, other)
    )
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.dtype != other.dtype or one.layout != other.layout or one.is_quantized:
        return False
    if one.layout != torch.strided or one.shape != other.shape:
        return False
    if any(tensor.numel() > _held(tensor) for tensor in (one, other)):
        return False  # a number that is repeated without end takes no room in a file
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _held(tensor: Tensor) -> int:
    """How many numbers are behind a tensor."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _is_state_dict(mapping: Mapping[str, Any]) -> bool:
    tensors = [isinstance(value, Tensor) for value in mapping.values()]
    extra = [name.endswith(EXTRA_STATE) for name in mapping]
    return any(tensors) and all(a or b for a, b in zip(tensors, extra, strict=True))


def _odd_one(mapping: Mapping[str, Any]) -> str:
    """What keeps a mapping with tensors from being a ``state_dict``, in words."""
    if not any(isinstance(value, Tensor) for value in mapping.values()):
        return ""
    name, value = next((k, v) for k, v in mapping.items() if not isinstance(v, Tensor))
    return f": {name!r} in it is no tensor, but {_kind(value)}"


def _kind(value: object) -> str:
    if isinstance(value, Call):
        return "something made by code that is not run"
    return f"of type {type(value).__name__}"


def _mapping(path: Path, value: object, objects: _Objects | None) -> dict[str, Any]:
    """The content of a value by name; empty where the value is no mapping with strings as keys."""
    if objects is not None:
        value = objects.native(path, value)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return {}
    if objects is None:
        return dict(value)
    return {key: objects.native(path, one) for key, one in value.items()}


class _Objects:
    """A checkpoint whose objects are read as descriptions (:class:`Call`); tensors are built."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            check_stored(file)
        self._archive = zipfile.ZipFile(path)
        self._stored: dict[str, bytearray] = {}
        names = self._archive.namelist()
        roots = [n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("torch.save did not write it")
        self._root = roots[0]
        order: str = sys.byteorder
        if f"{self._root}byteorder" in names:
            order = self._read("byteorder").decode()
        if order != sys.byteorder:
            raise ValueError("its bytes are in another order than this machine's")
        self.content = read_pickle(self._read("data.pkl"))

    def __enter__(self) -> _Objects:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def _read(self, name: str) -> bytes:
        return self._archive.read(self._root + name)

    def native(self, path: Path, value: object) -> object:
        """What a description stands for: a tensor, a mapping, or the tensors of a network.

        Any other value is returned as it is.
        """
        if not isinstance(value, Call):
            return value
        if (made := self._tensor(path, value)) is not None:
            return made
        if _is_network(value):
            return dict(self._named_tensors(path, value))
        return value.items or value

    def _tensor(self, path: Path, value: object) -> Tensor | None:
        """The tensor that a call would make; None where it would make something else."""
        while isinstance(value, Call) and isinstance(value.of, Name):
            if value.of.text not in (_TENSOR, *_PARAMETERS):
                break
            if not isinstance(value.arguments, tuple) or not value.arguments:
                break
            if value.of.text == _TENSOR:
                try:
                    return self._made(value.arguments)
                except Exception as error:  # a damaged file can raise anything
                    raise InputError(
                        f"{path} is damaged: a tensor in it cannot be made: {first_line(error)}"
                    ) from error
            value = value.arguments[0]
        return None

    def _made(self, arguments: tuple[Any, ...]) -> Tensor:
        stored, offset, size, stride = arguments[:4]
        if not isinstance(stored, Stored) or not isinstance(stored.identity, tuple):
            raise ValueError("its numbers are not in the file")
        _, kind, key, *_ = stored.identity
        dtype = _DTYPES[kind.text.removeprefix("torch.")]
        # Tensors that share numbers share them here, too: a file may name the same ones often.
        if (numbers := self._stored.get(key)) is None:
            numbers = self._stored[key] = bytearray(self._read(f"data/{key}"))
        flat = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
        return flat.as_strided(size, stride, offset)

    def _named_tensors(self, path: Path, network: Call) -> Iterator[tuple[str, Any]]:
        """The tensors of a network by the names that its ``state_dict`` would give them."""
        waiting: deque[tuple[str, Call, frozenset[int]]] = deque([("", network, frozenset())])
        count = 0
        while waiting:
            prefix, module, above = waiting.popleft()
            if id(module) in above or len(above) == _DEEPEST:
                raise InputError(f"{path} is damaged: its layers are nested without an end")
            fields = cast(dict[object, Any], module.state)
            hidden = fields.get("_non_persistent_buffers_set")
            hidden = hidden if isinstance(hidden, list) else []
            for kind in ("_parameters", "_buffers"):
                for name, value in _items(fields.get(kind)):
                    if value is not None and not (kind == "_buffers" and name in hidden):
                        made = self._tensor(path, value)
                        yield f"{prefix}{name}", value if made is None else made
            for name, child in _items(fields["_modules"]):
                count += 1
                if count > _MOST_LAYERS:
                    raise InputError(f"{path} is damaged: it has more layers than can be")
                if _is_network(child):
                    waiting.append((f"{prefix}{name}.", child, above | {id(module)}))


_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}


def _is_network(value: object) -> bool:
    """Whether a description is of an ``nn.Module``, judged by its attributes."""
    fields = value.state if isinstance(value, Call) else None
    return isinstance(fields, dict) and {"_parameters", "_modules"} <= set(fields)


def _items(value: object) -> list[tuple[str, Any]]:
    """The items of a dictionary, or of the description of an ordered one."""
    items = value.items if isinstance(value, Call) else value
    if not isinstance(items, dict):
        return []
    return [(key, one) for key, one in items.items() if isinstance(key, str)]
