"""The compiled kernels, found and loaded; or the reason why there are none."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Block", "Kernel", "Optimizer", "Unit", "kernels", "missing"]

INTERFACE = 2
_NAMES = {"win32": "trueoracle.dll", "darwin": "libtrueoracle.dylib"}
_ADVICE = (
    "retraining on the CPU will be several times slower: install a C++ compiler "
    "(g++ or clang++) and reinstall trueoracle (pip install --force-reinstall --no-cache-dir "
    "--no-deps)"
)


def _whole(*names: str) -> list[tuple[str, type[ctypes.c_int64]]]:
    return [(name, ctypes.c_int64) for name in names]


class Block(ctypes.Structure):
    """Convolution, activation and pooling in a row: ``Block`` of network.hpp, field by field."""

    _fields_ = (
        *_whole("has_conv", "has_bias", "weight_at", "bias_at", "C", "H", "W", "F", "KH", "KW"),
        *_whole("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "OH", "OW"),
        *_whole("activation", "pool", "pool_h", "pool_w", "pool_stride_h", "pool_stride_w"),
        *_whole("pool_pad_h", "pool_pad_w", "counts_padding", "PH", "PW"),
        *(("alpha", ctypes.c_double), ("beta", ctypes.c_double)),
        *_whole("keeps_before", "pools_first"),
    )


class Unit(ctypes.Structure):
    """Work on one group of lanes: ``Unit`` of api.hpp."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("pixels", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("shared", ctypes.c_int64),
        ("steps_before", ctypes.c_int64),
        ("loss", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class Optimizer(ctypes.Structure):
    """``Optimizer`` of network.hpp."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("learning_rate", "momentum", "weight_decay")),
        *((name, ctypes.c_double) for name in ("label_smoothing", "gradient_clip")),
    )


@dataclass(frozen=True)
class Kernel:
    """The kernels compiled for one instruction set; ``index`` is the library's number for it."""

    name: str
    index: int
    library: ctypes.CDLL

    def lanes(self, is_double: bool) -> int:
        """How many networks stand side by side in one vector register."""
        return int(self.library.trueoracle_lanes(self.index, is_double))


def kernels() -> tuple[Kernel, ...]:
    """The kernels that this processor can run, the fastest first; empty if none are installed."""
    return _load()[0]


def missing() -> str | None:
    """Why there are no kernels and what to do about it; None where there are some."""
    return _load()[1]


@cache
def _load() -> tuple[tuple[Kernel, ...], str | None]:
    found = [path for folder in _folders() for path in folder.glob(_name()) if path.is_file()]
    if not found:
        return (), f"the native kernels were not built when trueoracle was installed; {_ADVICE}"
    try:
        library = ctypes.CDLL(str(found[0]))
        interface = int(library.trueoracle_interface())
    except (OSError, AttributeError) as error:
        return (), f"the native kernels cannot be loaded ({error}); {_ADVICE}"
    if interface != INTERFACE:
        return (), f"the native kernels are of another version of trueoracle; {_ADVICE}"
    _declare(library)
    usable: list[Kernel] = []
    while name := library.trueoracle_kernel_name(len(usable)):
        usable.append(Kernel(name.decode(), len(usable), library))
    return tuple(usable), None


def _name() -> str:
    return _NAMES.get(sys.platform, "libtrueoracle.so")


def _folders() -> list[Path]:
    """The folders to look in: that of this file, and the one where an editable install builds."""
    import trueoracle.native

    given = os.environ.get("TRUEORACLE_NATIVE")  # for developers: a library built by hand
    return [Path(given)] if given else [Path(folder) for folder in trueoracle.native.__path__]


def _declare(library: ctypes.CDLL) -> None:
    """Declare the types, so that pointers and 64-bit numbers are not cut to 32 bits."""
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    signatures = {
        "trueoracle_kernel_name": (ctypes.c_char_p, [whole]),
        "trueoracle_lanes": (whole, [whole, whole]),
        "trueoracle_network": (pointer, [whole, whole, whole, pointer]),
        "trueoracle_free": (None, [pointer]),
        "trueoracle_bytes": (whole, [whole, whole, pointer, whole]),
        "trueoracle_run": (
            whole,
            [whole, whole, pointer, whole, pointer, whole, whole, whole, whole, pointer],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
