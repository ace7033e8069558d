"""Things that are known by name, and that a user may add to or name as ``module:attribute``."""

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
"""Whose networks are known by name: a folder of that name is none of theirs."""


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names to ``T`` whose look-up also takes ``module:attribute``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def add(self, name: str, entry: T, made_by: Callable[..., object]) -> None:
        """Register ``entry``; raises :class:`InputError` where another one has the name.

        A later definition of the function that it is made by replaces it: a notebook's cell may
        be run again.
        """
        if ":" in name:
            raise InputError(f"the {self.kind} name {name!r} must not hold a colon")
        named = made_by if hasattr(made_by, "__qualname__") else type(made_by)
        origin = f"{named.__module__}.{named.__qualname__}"
        if self._origins.setdefault(name, origin) != origin:
            raise InputError(f"there is a {self.kind} named {name!r} already")
        self._entries[name] = entry

    def find(self, name: str) -> T:
        """The entry of that name; raises :class:`InputError` with the nearest names."""
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
    """A module that is installed, or lies where the user stands.

    A command's path starts at its script. The working folder is searched last, so that nothing in
    it stands in for what is installed; and not at all for another library's networks.
    """
    if name.partition(".")[0] not in _LIBRARIES:
        with suppress(OSError):  # which may be no more
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.append(here)
                importlib.invalidate_caches()
    return importlib.import_module(name)


def _hidden(name: str) -> str:
    """What to say of a module of that name in the working folder that another one hides."""
    top = name.partition(".")[0]
    found = getattr(sys.modules.get(top), "__file__", None)
    with suppress(OSError):
        own = next((path for path in (Path(f"{top}.py"), Path(top)) if path.exists()), None)
        if found and own and not Path(found).resolve().is_relative_to(Path.cwd().resolve()):
            return f"{found} is meant, not the {own} of this folder, which needs another name"
    return ""
