"""Files of candidates: ``candidates.json``, and the combination files of the paper's code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueoracle.errors import InputError, StoreError, first_line, shown
from trueoracle.files import parse_json, write_bytes
from trueoracle.pickled import read_pickle

__all__ = [
    "LISTING_FORMAT",
    "Listing",
    "read_combinations",
    "read_listing",
    "write_listing",
]

LISTING_FORMAT = 1

COMBINATION_BYTES = 2**26
"""The largest combination file that is read: 1,000 candidates of VGG-19 take 7 MB."""


@dataclass(frozen=True)
class Listing:
    """Candidates in values that JSON can hold: a header, and one entry per candidate.

    The header names the groups, layers or weights from which the candidates prune.
    """

    header: Mapping[str, Any]
    candidates: Sequence[Any]


def write_listing(listing: Listing, path: Path) -> None:
    """Write a listing, one candidate per line; the file is replaced whole or not at all.

    Raises :class:`StoreError` where the file cannot be written.
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
        content = parse_json(_bytes_of(path).decode("utf-8"))
    except ValueError as error:  # no text, or no JSON
        raise InputError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("candidates"), list):
        raise InputError(f"{path} holds no list of candidates, such as a run's candidates.json")
    if content.get("format") != LISTING_FORMAT:
        raise InputError(
            f"{path} has format {shown(content.get('format'))}, and this trueoracle reads "
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


def read_combinations(path: Path, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The entries of a combination file, one per candidate: what it prunes of each of ``layers``.

    The paper's code writes such a file as ``ARCH-DATA-LR-combination.pkl``: a pickled list with one
    tuple per candidate, which holds one tuple of pruned filters per pruned layer, in the network's
    order. The file is read without running any code. The filters are passed on as they stand in
    the file, not checked to be whole numbers. Raises :class:`InputError`, in one line, for a file
    that is missing, too large, no pickle, empty, or of another layout.
    """
    what = "a pickled list of candidates, each a tuple with one tuple of filters a layer"
    data = _bytes_of(path, COMBINATION_BYTES)
    try:
        content = read_pickle(data)
    except ValueError as error:
        raise InputError(f"{path} is not {what}: {first_line(error)}") from error
    if not isinstance(content, list | tuple):
        raise InputError(f"{path} is not {what}: it holds {shown(content)}")
    if not content:
        raise InputError(f"{path} lists no candidates")
    for place, entry in enumerate(content, start=1):
        if not isinstance(entry, list | tuple):
            raise InputError(f"{path} is not {what}: candidate {place} is {shown(entry)}")
        # Checked before any part is read, since a harmful file may have parts without end.
        if len(entry) != len(layers):
            raise InputError(
                f"{path}: candidate {place} has {len(entry)} entries, expected {len(layers)}: one "
                f"tuple of filters for each layer of pruning.layers ({_listed(layers)})"
            )
        yield dict(zip(layers, entry, strict=True))


def _bytes_of(path: Path, most: int = -1) -> bytes:
    """The content of a file, refused where it has more than ``most`` bytes (-1: no limit)."""
    try:
        with path.open("rb") as file:
            data = file.read(most if most < 0 else most + 1)
    except FileNotFoundError as error:
        raise InputError(f"no file of candidates {path}") from error
    except OSError as error:
        raise InputError(f"cannot read the candidates {path}: {error}") from error
    if 0 <= most < len(data):
        raise InputError(f"{path} has more than {most:,} bytes: it is no list of candidates")
    return data


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _sha256(content: Mapping[str, Any]) -> str:
    """The checksum of a listing that does not contain one."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(value: object) -> str:
    """A header's value in one line, shortened where it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return _listed([f"{name} ({number})" for name, number in value.items()]) or "nothing"
    return shown(value)
