"""Things that are known by name, and that a user may add to or name as ``module:attribute``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from trueoracle.errors import InputError, first_line, unknown

__all__ = ["Registry"]

T = TypeVar("T")


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
        module_name, _, attribute = name.partition(":")
        # A command's path starts at its script: a user's own module lies where the user stands.
        with suppress(OSError):  # which may be no more
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
        try:
            found = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (
            Exception,
            SystemExit,
        ) as error:  # it runs the user's module
            raise InputError(
                f"cannot import the {self.kind} {name!r}: {first_line(error)}"
            ) from error
        return found  # type: ignore[return-value]

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
