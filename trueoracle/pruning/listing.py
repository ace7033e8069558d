"""Candidates as a file, so that studies can share theirs: ``candidates.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.files import write_bytes

__all__ = ["LISTING_FORMAT", "Listing", "read_listing", "write_listing"]

LISTING_FORMAT = 1


@dataclass(frozen=True)
class Listing:
    """Candidates in values that JSON knows: what is pruned at all, and one entry a candidate."""

    header: Mapping[str, Any]
    candidates: Sequence[Any]


def write_listing(listing: Listing, path: Path) -> None:
    """Write a listing, one candidate a line; the file is there whole, or as it was before.

    Raises :class:`StoreError` where it cannot be written.
    """
    header = {"format": LISTING_FORMAT, **listing.header}
    header["sha256"] = _sha256({**header, "candidates": list(listing.candidates)})
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in header.items()]
    entries = ",\n".join(f"    {json.dumps(entry)}" for entry in listing.candidates)
    text = "\n".join(["{", *lines, '  "candidates": [', entries, "  ]", "}", ""])
    try:
        is_there = path.is_file() and path.read_bytes() == text.encode()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
    if not is_there:
        write_bytes(path, text.encode())


def read_listing(path: Path, expected: Mapping[str, Any]) -> list[Any]:
    """The entries of a listing whose header has to be ``expected``.

    Raises :class:`InputError`, in one line, for a file that is missing, is no listing, is empty, or
    lists candidates of something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no file of candidates {path}") from error
    except OSError as error:
        raise InputError(f"cannot read the candidates {path}: {error}") from error
    except ValueError as error:  # no text, or no JSON
        raise InputError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("candidates"), list):
        raise InputError(f"{path} holds no list of candidates, such as a run's candidates.json")
    if content.get("format") != LISTING_FORMAT:
        raise InputError(
            f"{path} has format {content.get('format')!r}, and this trueoracle reads "
            f"{LISTING_FORMAT}"
        )
    digest = content.pop("sha256", None)
    if digest is not None and digest != _sha256(content):
        raise InputError(
            f"{path} is damaged: it is not what was written (if you changed it, take the line "
            "'sha256' out)"
        )
    for key, value in expected.items():
        if content.get(key) != value:
            raise InputError(
                f"{path} lists candidates of {key} {_shown(content.get(key))}, and this study's "
                f"are of {_shown(value)}"
            )
    if not content["candidates"]:
        raise InputError(f"{path} lists no candidates")
    return list(content["candidates"])


def _sha256(content: Mapping[str, Any]) -> str:
    """Of a listing without its checksum."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(value: object) -> str:
    """A header's value in one line of bearable length."""
    if isinstance(value, dict):
        parts = [f"{name} ({number})" for name, number in value.items()]
        more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
        return ", ".join(parts[:6]) + more or "nothing"
    return repr(value)
