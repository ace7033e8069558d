"""What a report leaves out where it is written for others (``report --share``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueoracle.record.results import Results

__all__ = ["recorded_name", "shared_names", "without_places"]

_LEFT_OUT = {"address", "host", "hostname", "node", "pid", "user"}
"""Facts of a machine or its user by the names that a record gives them."""

_START = r"(?:~[^/\\]*|\.\.|[A-Za-z]:)?[/\\]"
_WHOLE = re.compile(rf"((?:[a-z-]+:)?)(?!//)(?={_START})(?:.*[/\\])?([^/\\]+)[/\\]*")
"""A text that is a path out of the working folder, maybe with ``hf:`` before it."""
_WITHIN = re.compile(rf"(?<![\w.:/\\]){_START}(?:[^\s/\\'\",;)\]]+[/\\])+([^\s/\\'\",;)\]]*)")
"""Such a path within a sentence."""


def without_places(value: Any, names: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Plain values without the names of host and user, and with the last name alone of each path.

    Paths within the working folder stay as they are, but for a run's own folder, of which only the
    name stays. ``names`` are texts with what stands in their place (:func:`shared_names`).
    """
    if isinstance(value, Mapping):
        return {
            without_places(key, names): _name(one)
            if key == "folder"
            else without_places(one, names)
            for key, one in value.items()
            if key not in _LEFT_OUT
        }
    if isinstance(value, list | tuple):
        return type(value)(without_places(one, names) for one in value)
    if not isinstance(value, str):
        return value
    if value in names:
        return names[value]
    if "\n" not in value and (found := _WHOLE.fullmatch(value)):
        return f"{found[1]}{found[2]}"
    return _WITHIN.sub(r"\1", value)


def shared_names(criteria: Sequence[str]) -> dict[str, str]:
    """What criteria are called without their places: each by a name of its own, maybe numbered."""
    found: dict[str, str] = {}
    for one in criteria:
        bare = name = str(without_places(one))
        number = 1
        while name in found.values():
            number += 1
            name = f"{bare} ({number})"
        found[one] = name
    return found


def recorded_name(results: Results, shown: str) -> str:
    """The recorded name of a criterion that a summary names, maybe without its place."""
    known = shared_names(results.criteria) if results.is_shared else {}
    return next((one for one, name in known.items() if name == shown), shown)


def _name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
