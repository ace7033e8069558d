"""What a report leaves out where it is written for others (``report --share``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueoracle.record.results import Results

__all__ = ["recorded_name", "without_places"]

_LEFT_OUT = {"address", "host", "hostname", "node", "pid", "user"}
"""Facts of a machine or its user by the names that a record gives them."""

_START = r"(?:~[^/\\]*|\.\.|[A-Za-z]:)?[/\\]"
_WHOLE = re.compile(rf"((?:[a-z-]+:)?)(?!//)(?={_START})(?:.*[/\\])?([^/\\]+)[/\\]*")
"""A text that is a path out of the working folder, maybe with ``hf:`` before it."""
_WITHIN = re.compile(rf"(?<![\w.:/\\]){_START}(?:[^\s/\\'\",;)\]]+[/\\])+([^\s/\\'\",;)\]]*)")
"""Such a path within a sentence."""


def without_places(value: Any) -> Any:
    """Plain values without the names of host and user, and with the last name alone of each path.

    Paths within the working folder stay as they are, but for a run's own folder, of which only the
    name stays.
    """
    if isinstance(value, Mapping):
        return {
            without_places(key): _name(one) if key == "folder" else without_places(one)
            for key, one in value.items()
            if key not in _LEFT_OUT
        }
    if isinstance(value, list | tuple):
        return type(value)(without_places(one) for one in value)
    if not isinstance(value, str):
        return value
    if "\n" not in value and (found := _WHOLE.fullmatch(value)):
        return f"{found[1]}{found[2]}"
    return _WITHIN.sub(r"\1", value)


def recorded_name(results: Results, shown: str) -> str:
    """The recorded name of a criterion that a summary names, maybe without its place."""
    return next((one for one in results.criteria if without_places(one) == shown), shown)


def _name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
