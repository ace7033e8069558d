"""Registries of entries by name; users may add entries or name one as ``module:attribute``."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from trueoracle.errors import InputError, first_line, unknown
from trueoracle.trust import check_trusted

__all__ = ["Registry"]

T = TypeVar("T")

_LIBRARIES = {"timm", "torchvision", "transformers"}
"""Libraries whose networks are found by name; a local folder of that name is not the library."""


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names to ``T`` whose look-up also takes ``module:attribute``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def add(self, name: str, entry: T, made_by: Callable[..., object]) -> None:
        """Register ``entry``; raises :class:`InputError` where another entry has the name.

        An entry is replaced where the same function or class ``made_by`` is defined again, since a
        notebook's cell may be run twice.
        """
        if ":" in name:
            raise InputError(f"the {self.kind} name {name!r} must not hold a colon")
        named = made_by if hasattr(made_by, "__qualname__") else type(made_by)
        origin = f"{named.__module__}.{named.__qualname__}"
        if self._origins.setdefault(name, origin) != origin:
            raise InputError(f"there is a {self.kind} named {name!r} already")
        self._entries[name] = entry

    def find(self, name: str) -> T:
        """The entry of that name; raises :class:`InputError` that suggests the nearest names."""
        if ":" in name:
            return self._imported(name)
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def _imported(self, name: str) -> T:
        check_trusted(self.kind, name)
        module_name, _, attribute = name.partition(":")
        try:
            found = _import(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (
            Exception,
            SystemExit,
        ) as error:  # it runs the user's module
            clash = f" ({hidden})" if (hidden := _hidden(module_name)) else ""
            raise InputError(
                f"cannot import the {self.kind} {name!r}: {first_line(error)}{clash}"
            ) from error
        if hidden := _hidden(module_name):
            warnings.warn(f"{self.kind} {name!r}: {hidden}", stacklevel=2)
        return found  # type: ignore[return-value]

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _import(name: str) -> ModuleType:
    """Import a module that is installed or lies in the working folder.

    A command's search path starts at its script, so the working folder is added. It is searched
    last, so that nothing in it shadows an installed module, and not at all for the networks of
    other libraries.
    """
    if name.partition(".")[0] not in _LIBRARIES:
        with suppress(OSError):  # the working folder may have been deleted
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.append(here)
                importlib.invalidate_caches()
    return importlib.import_module(name)


def _hidden(name: str) -> str:
    """A hint where another module hides the one of that name in the working folder; else empty."""
    top = name.partition(".")[0]
    found = getattr(sys.modules.get(top), "__file__", None)
    with suppress(OSError):
        own = next((path for path in (Path(f"{top}.py"), Path(top)) if path.exists()), None)
        if found and own and not Path(found).resolve().is_relative_to(Path.cwd().resolve()):
            return f"{found} is meant, not the {own} of this folder, which needs another name"
    return ""
