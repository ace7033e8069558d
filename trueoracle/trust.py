"""Decides which files may run code: only those of the user or those the user trusts.

A study file may name a network, task, criterion or training procedure as ``module:attribute``, and
naming it runs it; a recorded study names what it was made with. Files in the current project are
the user's own unless they belong to another user, and so is whatever the user types. Any other file
is trusted only where the user says so: by ``--allow-code``, by ``Study(…, allow_code=True)``, or
once and for all in the configuration.
"""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from trueoracle.errors import InputError, first_line

__all__ = [
    "AROUND",
    "believe",
    "check_trusted",
    "check_within",
    "configuration",
    "is_own",
    "note_code",
    "project",
    "vouch",
]

AROUND = "around:"
"""The start of ``pruning.candidates`` where it names the criterion that they are drawn around."""

_MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg")

_doubted: dict[str, tuple[Path, str]] = {}
"""Texts with a colon in files that are not the user's own, each with a file that has it, and why
that file is not the user's own."""

_vouched: set[str] = set()
"""Texts with a colon that the user typed, or that a file of the user's own has."""

_allowed = False


def believe() -> None:
    """Trust every file from here on, in this process."""
    global _allowed
    _allowed = True


def project() -> Path:
    """The current project's folder: the nearest with version control or packaging, or this one.

    The user's home folder, what is above it, and a folder that all users share (/tmp) are no
    projects: whatever was downloaded lies there.
    """
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if _holds_anything(folder):
            break
        if any((folder / mark).exists() for mark in _MARKS):
            return folder
    return here


def configuration() -> Path:
    """The user's configuration, which may have the line ``allow_code = ["FOLDER", …]``."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "trueoracle" / "config.toml"


def vouch(fields: object) -> None:
    """Trust the code that these fields of a study name, since the user typed them."""
    _vouched.update(_named(fields))


def note_code(path: Path, fields: Mapping[str, object]) -> None:
    """Note the code that a file (or a run's folder) names: own code is trusted, other is doubted.

    Code may be named in any field, so any text with a colon counts.
    """
    named = {*_named(fields)}
    if not named:
        return
    why = _whose(path)
    if not why:
        _vouched.update(named)
        return
    for name in named:
        _doubted.setdefault(name, (path, why))


def check_trusted(kind: str, name: str) -> None:
    """Refuse to import code (``module:attribute``) named by a file that is not the user's own.

    Names in Python's standard library are refused whoever names them: it holds no network, task or
    criterion, and much that does harm. Raises :class:`InputError` that says which file names the
    code.
    """
    if name.partition(":")[0].partition(".")[0] in sys.stdlib_module_names:
        raise InputError(
            f"the {kind} {name!r} is looked for in Python's standard library, which has none"
        )
    if _allowed or any(_is_of(text, name) for text in _vouched):
        return
    for path, why in (doubt for text, doubt in _doubted.items() if name in text):
        raise InputError(
            f"{path} would run {name!r} as the {kind}, and {why}: --allow-code runs it, or the "
            f'line allow_code = ["{path.resolve().parent}"] in {configuration()}'
        )


def check_within(path: Path, named: Path) -> None:
    """Refuse a file that another one extends and that lies outside the other one's folder.

    This holds for files that are not the user's own: they read nothing but what came with them.
    Raises :class:`InputError`.
    """
    why = _whose(path)
    if _allowed or not why or named.resolve().is_relative_to(path.resolve().parent):
        return
    raise InputError(
        f"{path} extends {named}, which lies outside of its folder, and {why}: --allow-code reads "
        "it all the same"
    )


def is_own(path: Path) -> bool:
    """Whether a file is the user's own: in the current project, or in a folder that is allowed.

    A repository within the project (cloned or unpacked there) is not the user's own, nor is what
    belongs to another user.
    """
    return not _whose(path)


def _whose(path: Path) -> str:
    """Why a file is not the user's own, in words that follow its name; empty where it is."""
    path, own = path.resolve(), project()
    if any(path.is_relative_to(folder) for folder in _configured()):
        return ""
    within = path.is_relative_to(own) and not any(
        (folder / ".git").exists() for folder in path.parents if own in folder.parents
    )
    if not within or (_holds_anything(own) and path.parent != own):
        return f"lies outside of the current project ({own})"
    return "belongs to another user" if _is_anothers(path) else ""


def _is_anothers(path: Path) -> bool:
    """Whether a file belongs to another user than this one and root; to root, all is its own."""
    try:
        owner = path.stat().st_uid
    except OSError:  # what is not there says nothing
        return False
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    return user != 0 and owner not in (user, 0)


def _holds_anything(folder: Path) -> bool:
    """Whether a folder is the home folder or above it, or one that all users share."""
    try:
        mode = folder.stat().st_mode
        is_shared = bool(mode & stat.S_ISVTX and mode & stat.S_IWOTH)
        return is_shared or Path.home().resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # there is no home
        return False


def _is_of(text: str, name: str) -> bool:
    """Whether a text names this code: maybe with "around:" before it, and parameters after it."""
    return any(f"{one}:".startswith(f"{name}:") for one in (text, text.removeprefix(AROUND)))


def _named(fields: object) -> Iterator[str]:
    """Every text that may name code as ``module:attribute``, in arms and grids, too."""
    if isinstance(fields, Mapping):
        for value in fields.values():
            yield from _named(value)
    elif isinstance(fields, list | tuple):
        for value in fields:
            yield from _named(value)
    elif isinstance(fields, str) and ":" in fields:
        yield fields


def _configured() -> list[Path]:
    """The folders that the configuration allows; raises :class:`InputError` if it is damaged."""
    path = configuration()
    try:
        folders = tomllib.loads(path.read_text(encoding="utf-8")).get("allow_code", [])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(folders, list) or not all(isinstance(one, str) for one in folders):
        raise InputError(f"{path}: allow_code is a list of folders, got {folders!r}")
    return [Path(one).expanduser().resolve() for one in folders]
