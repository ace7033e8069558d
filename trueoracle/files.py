"""Writes files whole or not at all, and reads them back checked by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from trueoracle.errors import StoreError

__all__ = [
    "check_writable",
    "checked_json",
    "make_folder",
    "new_draft",
    "parse_json",
    "read_checked",
    "read_checked_json",
    "remove_drafts",
    "replacing",
    "sha256_of",
    "tensors_sha256",
    "write_bytes",
    "write_checked",
    "write_text",
]

_DRAFT = ".trueoracle-{token}{suffix}"
_IS_DRAFT = re.compile(r"\.trueoracle-[0-9a-f]{32}(\.[A-Za-z0-9]{1,16})?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty draft beside ``path``, with the same ending, that replaces it after the block.

    The draft's name cannot be guessed and the draft is opened exclusively, so that it is nobody
    else's file or link. It has the permissions of any new file. It reaches the disk before it
    replaces ``path``, so that whatever happens, ``path`` is either complete or what it was before.
    If the block raises, the draft is removed. Raises :class:`StoreError` where ``path`` cannot be
    written.
    """
    draft: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"cannot write {path}: it is no file")
        draft = new_draft(path)
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
    """Write a file as :func:`replacing` does; raises :class:`StoreError` where that fails."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, making its folder; raises :class:`StoreError` where that fails."""
    make_folder(path.parent)
    write_bytes(path, text.encode("utf-8"))


def make_folder(folder: Path) -> None:
    """Make a folder where there is none; raises :class:`StoreError` where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write in {folder}: {error.strerror or error}") from error


def write_checked(path: Path, content: bytes) -> None:
    """Write a file that begins with the SHA-256 of its content, as :func:`read_checked` reads it.

    Raises :class:`StoreError` where the file cannot be written.
    """
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_checked(path: Path) -> bytes | None:
    """The content of such a file; None where the file is missing or is not what was written."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    digest, content = whole[:size], whole[size:]
    return content if hashlib.sha256(content).digest() == digest else None


def checked_json(fields: Mapping[str, Any], indent: int | None = None) -> str:
    """Fields as JSON, with the SHA-256 of all of them as a last field, ``sha256``."""
    whole = {**fields, "sha256": _sha256_of_fields(fields)}
    return json.dumps(whole, allow_nan=False, indent=indent)


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON holds; raises :class:`ValueError` for any text that cannot be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def read_checked_json(text: str) -> dict[str, Any]:
    """The fields of such a text, without the checksum, which older versions did not write.

    Raises :class:`ValueError` for other text, and where the fields are not what was written.
    """
    fields = parse_json(text)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds {type(fields).__name__}, expected an object")
    digest = fields.pop("sha256", None)
    if digest is not None and digest != _sha256_of_fields(fields):
        raise ValueError("it does not have the checksum of what was written")
    return fields


def tensors_sha256(file: BinaryIO) -> tuple[str, str | None]:
    """The SHA-256 of what a safetensors file holds, and the one that its metadata has, ``sha256``.

    That of the metadata does not count; it is None where there is none. Raises :class:`ValueError`
    where the file cannot be read.
    """
    header = parse_json(file.read(int.from_bytes(file.read(8), "little")))
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is no object")
    noted = header.get("__metadata__", {}).pop("sha256", None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest(), noted


def _sha256_of_fields(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_writable(path: Path) -> None:
    """Raise :class:`OSError` where no file could be written beside ``path``; nothing is left."""
    new_draft(path).unlink()


def remove_drafts(folder: Path) -> None:
    """Remove drafts that a killed process left in ``folder``, whose lock the caller must hold.

    Only plain files with the names that :func:`replacing` gives are removed.
    """
    with suppress(OSError):  # drafts in a folder that cannot be read do no harm
        for path in folder.iterdir():
            if _IS_DRAFT.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes; raises :class:`OSError` where the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_draft(path: Path) -> Path:
    """An empty file beside ``path`` that nobody else has; :func:`remove_drafts` knows its name."""
    # The ending is kept, since writers choose the format by it. The rest of the name is short,
    # since the name of ``path`` may be as long as the file system allows.
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
