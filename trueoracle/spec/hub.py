"""Networks by the names of other libraries: ``hf:``, ``timm:`` and ``torchvision:``.

This module finds the files of ``hf:FOLDER`` and ``hf:ORGANISATION/NAME`` and their hash, by which
a study identifies them; it needs no torch. On request, huggingface_hub downloads what the hub's
cache lacks: configs, tokenizers and safetensors, never a pickle or code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from trueoracle.errors import InputError, first_line
from trueoracle.files import parse_json

__all__ = [
    "CONFIG",
    "HF",
    "TIMM",
    "TORCHVISION",
    "commit_of",
    "files_sha256",
    "folder_of",
    "is_of_library",
    "snapshot_of",
]

HF, TIMM, TORCHVISION = "hf:", "timm:", "torchvision:"
CONFIG = "config.json"

_WEIGHTS = "*.safetensors"
_READ = ("*.json", "*.txt", "*.model", "*.jinja", _WEIGHTS)
"""The files of a repository that are downloaded: none that could run code when it is read."""

_NOT_READ = ("*/*",)
"""The files that are not downloaded: subfolders hold the same network for other programs."""

Say = Callable[[str], None]


def is_of_library(name: str) -> bool:
    """Whether a network's name is that of another library, which has weights for the network."""
    return name.startswith((HF, TIMM, TORCHVISION))


def folder_of(name: str, revision: str | None = None, download: Say | None = None) -> Path:
    """The folder that holds the files of a network: a local one, or one in the hub's cache.

    ``name`` is what follows ``hf:``, ``revision`` a branch, tag or commit on the hub. With
    ``download``, what the cache lacks is downloaded, and ``download`` is called with a line that
    says what and how much. Raises :class:`InputError` where there is no such folder, or it holds no
    network.
    """
    folder = snapshot_of(name, revision, download)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{HF}{name} is no network: {folder} has no {CONFIG}")
    return folder


def snapshot_of(
    name: str, revision: str | None = None, download: Say | None = None, *, weights: bool = True
) -> Path:
    """The folder of a repository's files, of any kind, as :func:`folder_of` finds it.

    Without ``weights``, files of weights are neither needed nor downloaded.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        if revision is not None:
            raise InputError(
                f"revision = {revision!r} is of the hub, and {HF}{name} is a folder here"
            )
        return local
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{HF}{name}: there is no such folder, and the hub is read through "
            "huggingface_hub: pip install '.[transformers]'"
        ) from error
    wanted: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [one for one in _READ if weights or one != _WEIGHTS],
        "ignore_patterns": list(_NOT_READ),
    }
    try:
        # Cached files are used as they are, so that a branch that moves on changes no study here.
        found = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **wanted))
        if not weights or _has_weights(found):
            return found
    except ValueError as error:  # a name that no repository can have
        raise InputError(
            f"{HF}{name} is neither a folder nor a name of the hub: {first_line(error)}"
        ) from error
    except OSError:
        pass
    if download is None or huggingface_hub.constants.HF_HUB_OFFLINE:
        of = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{HF}{name} is neither a folder nor whole in the hub's cache, and nothing is "
            f"downloaded now: 'hf download {name}{of}' puts it there"
        )
    return _downloaded(name, wanted, download, weights)


def commit_of(folder: Path) -> str | None:
    """The commit that a folder in the hub's cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


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
    """The SHA-256 of one state of a file, kept so that gigabytes are read only once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_weights(folder: Path) -> bool:
    """Whether a cached folder has all its weights, since other programs may have put only some."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob(_WEIGHTS))
    try:
        named = set(parse_json(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False
    return all((folder / str(one)).is_file() for one in named)


def _downloaded(name: str, wanted: dict[str, Any], say: Say, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _quietly():
        try:
            listed = snapshot_download(name, dry_run=True, **wanted)
            left = [one.file_size for one in listed if one.will_download]
            if weights and not any(one.filename.endswith(".safetensors") for one in listed):
                raise InputError(
                    f"{HF}{name} holds no safetensors, and weights in pickles are not read: ask "
                    "for a revision that has them"
                )
            at = f" at {listed[0].commit_hash[:12]}" if listed else ""
            say(f"downloading {HF}{name}{at}: {len(left)} files, {sum(left) / 1e6:,.1f} MB")
            return Path(snapshot_download(name, **wanted))
        except InputError:
            raise
        except Exception as error:  # an error of the network, the hub or the disk
            raise InputError(_refused(name, wanted["revision"], error)) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress huggingface_hub's bars and remarks, since our own lines report on downloads."""
    from huggingface_hub import utils

    library: Any = utils
    verbosity, had_bars = library.logging.get_verbosity(), not library.are_progress_bars_disabled()
    library.logging.set_verbosity_error()
    library.disable_progress_bars()
    try:
        yield
    finally:
        library.logging.set_verbosity(verbosity)
        if had_bars:
            library.enable_progress_bars()


def _refused(name: str, revision: str | None, error: Exception) -> str:
    """Why the hub does not hand out a repository, and what to do."""
    from huggingface_hub import constants, errors

    found = error.__cause__ if isinstance(error, errors.DryRunError) else error
    if isinstance(found, errors.GatedRepoError):
        return (
            f"{HF}{name} is gated: accept its conditions at {constants.ENDPOINT}/{name}, and log "
            "in by 'hf auth login'"
        )
    if isinstance(found, errors.RevisionNotFoundError):
        return f"{HF}{name} has no revision {revision!r} on the hub"
    if isinstance(found, errors.RepositoryNotFoundError):
        return (
            f"{HF}{name} is neither a folder nor a name that {constants.ENDPOINT} knows; where it "
            "is private, log in by 'hf auth login'"
        )
    return (
        f"{HF}{name} is not here, and cannot be downloaded from {constants.ENDPOINT}: "
        f"{first_line(found or error)}"
    )
