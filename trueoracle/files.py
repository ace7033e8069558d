"""Files that the product writes: whole or not at all, and known by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trueoracle.errors import StoreError

__all__ = [
    "check_writable",
    "checked_json",
    "make_folder",
    "read_checked",
    "read_checked_json",
    "remove_drafts",
    "replacing",
    "sha256_of",
    "write_bytes",
    "write_checked",
    "write_text",
]

_DRAFT = ".trueoracle-{token}{suffix}"
_IS_DRAFT = re.compile(r"\.trueoracle-[0-9a-f]{32}(\.[A-Za-z0-9]{1,16})?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, of the same ending, that takes its place after the block.

    Its name cannot be guessed and it is opened exclusively, so that it is no file or link of
    somebody's. It has the rights that new files have here. It reaches the disk before it takes the
    place, so that ``path`` is whole, or what it was, whatever happens. Where the block raises, it
    is removed. Raises :class:`StoreError` where ``path`` cannot be written.
    """
    draft: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"cannot write {path}: it is no file")
        draft = _new_draft(path)
        yield draft
        _reach_disk(draft)
        draft.replace(path)
        with suppress(OSError):  # not every system lets a folder be opened
            _reach_disk(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as :func:`replacing` does; raises :class:`StoreError` where it cannot."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, making its folder; raises :class:`StoreError` where it cannot."""
    make_folder(path.parent)
    write_bytes(path, text.encode("utf-8"))


def make_folder(folder: Path) -> None:
    """Make a folder where there is none; raises :class:`StoreError` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write in {folder}: {error.strerror or error}") from error


def write_checked(path: Path, content: bytes) -> None:
    """Write a file that begins with the SHA-256 of its content, as :func:`read_checked` reads it.

    Raises :class:`StoreError` where it cannot.
    """
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_checked(path: Path) -> bytes | None:
    """The content of such a file; None where it is missing, or is not what was written."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    digest, content = whole[:size], whole[size:]
    return content if hashlib.sha256(content).digest() == digest else None


def checked_json(fields: Mapping[str, Any]) -> str:
    """Fields as JSON, with the SHA-256 of all others as their last, ``sha256``."""
    return json.dumps({**fields, "sha256": _sha256_of_fields(fields)}, allow_nan=False)


def read_checked_json(text: str) -> dict[str, Any]:
    """The fields of such a text, without their checksum; one of an older version has none.

    Raises :class:`ValueError` for other text, and where the fields are not what was written.
    """
    try:
        fields = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
    if not isinstance(fields, dict):
        raise ValueError(f"it holds {type(fields).__name__}, expected an object")
    digest = fields.pop("sha256", None)
    if digest is not None and digest != _sha256_of_fields(fields):
        raise ValueError("it does not have the checksum of what was written")
    return fields


def _sha256_of_fields(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_writable(path: Path) -> None:
    """Raise :class:`OSError` where no file could be written beside ``path``; nothing is left."""
    _new_draft(path).unlink()


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left half written in ``folder``, whose lock the caller holds.

    Only plain files by the names that :func:`replacing` gives.
    """
    with suppress(OSError):  # a folder that cannot be read holds nothing that is in the way
        for path in folder.iterdir():
            if _IS_DRAFT.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes; raises :class:`OSError` where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_draft(path: Path) -> Path:
    # The ending is kept, since writers go by it; the rest is short, since names may be long.
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,16}", path.suffix) else ""
    draft = path.parent / _DRAFT.format(token=secrets.token_hex(16), suffix=suffix)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return draft


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
