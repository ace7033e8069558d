"""Networks by the names of other libraries: ``hf:``, ``timm:`` and ``torchvision:``.

Where the files of ``hf:FOLDER`` and ``hf:ORGANISATION/NAME`` lie, and their hash, by which a study
knows them; without torch.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from trueoracle.errors import InputError, first_line

__all__ = ["CONFIG", "HF", "TIMM", "TORCHVISION", "files_sha256", "folder_of", "is_of_library"]

HF, TIMM, TORCHVISION = "hf:", "timm:", "torchvision:"
CONFIG = "config.json"


def is_of_library(name: str) -> bool:
    """Whether a network's name is one of another library's, which has weights for it."""
    return name.startswith((HF, TIMM, TORCHVISION))


def folder_of(name: str, revision: str | None = None) -> Path:
    """The folder that holds the files of a network: a local one, or one of the hub's cache.

    ``name`` is what follows ``hf:``, ``revision`` a branch, tag or commit of the hub's. Nothing is
    downloaded. Raises :class:`InputError` where there is no such folder, or it holds no network.
    """
    local = Path(name).expanduser()
    folder = local if local.is_dir() else _cached(name, revision)
    if local.is_dir() and revision is not None:
        raise InputError(f"revision = {revision!r} is of the hub, and {HF}{name} is a folder here")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{HF}{name} is no network: {folder} has no {CONFIG}")
    return folder


def files_sha256(folder: Path) -> str:
    """The SHA-256 over a network's config and weights, wherever the folder lies.

    Raises :class:`InputError` where a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in [folder / CONFIG, *sorted(folder.glob("*.safetensors"))]:
        try:
            about = path.stat()
            content = _file_sha256(path, about.st_size, about.st_mtime_ns)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, changed: int) -> str:
    """Of one state of a file: gigabytes are read once for all that ask."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{HF}{name}: there is no such folder, and the hub's cache is read through "
            "huggingface_hub: pip install 'trueoracle[transformers]'"
        ) from error
    of = f" --revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except OSError as error:
        raise InputError(
            f"{HF}{name} is neither a folder nor in the hub's cache: 'hf download {name}{of}' "
            "puts it there"
        ) from error
    except ValueError as error:  # no name that the hub could have
        raise InputError(
            f"{HF}{name} is neither a folder nor a name of the hub: {first_line(error)}"
        ) from error
