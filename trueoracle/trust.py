"""Decides which study files may run code: only those of the user or those the user trusts.

A study file may name a network, task, criterion or training procedure as ``module:attribute``, and
naming it runs it. Files in the current project are the user's own, and so is whatever the user
types. Any other file is trusted only where the user says so: by ``--allow-code``, by
``Study(…, allow_code=True)``, or once and for all in the configuration.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from trueoracle.errors import InputError, first_line

__all__ = ["believe", "check_trusted", "configuration", "note_code", "project"]

_CODE = re.compile(r"(?:around:)?([^:]+:.*?)(?::[^:]*=[^:]*)?", re.DOTALL)
"""A name ``module:attribute`` that would be imported, without a criterion's parameters."""
_PLACES = {"around", "candidates", "criteria", "name", "network", "procedure", "task"}
"""The fields that can name code."""

_MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg")

_doubted: dict[str, Path] = {}
"""Code named by files that are not the user's own, and a file that names it."""

_allowed = False


def believe() -> None:
    """Trust every study file from here on, in this process."""
    global _allowed
    _allowed = True


def project() -> Path:
    """The current project's folder: the nearest with version control or packaging, or this one."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if any((folder / mark).exists() for mark in _MARKS):
            return folder
    return here


def configuration() -> Path:
    """The user's configuration, which may have the line ``allow_code = ["FOLDER", …]``."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "trueoracle" / "config.toml"


def note_code(path: Path, fields: Mapping[str, object]) -> None:
    """Note the code that a study file names, where the file is not the user's own."""
    named = {*_named(fields)}
    if named and not _is_own(path.resolve()):
        for name in named:
            _doubted.setdefault(name, path)


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
    if not _allowed and (path := _doubted.get(name)) is not None:
        raise InputError(
            f"{path} would run {name!r} as the {kind}, and lies outside of the current project "
            f"({project()}): --allow-code runs it, or the line allow_code = "
            f'["{path.resolve().parent}"] in {configuration()}'
        )


def _named(fields: object, place: str = "") -> Iterator[str]:
    """What fields name as ``module:attribute``, including those of arms and grids."""
    if isinstance(fields, Mapping):
        for key, value in fields.items():
            yield from _named(value, str(key).rpartition(".")[2])
    elif isinstance(fields, list):
        for value in fields:
            yield from _named(value, place)
    elif place in _PLACES and isinstance(fields, str) and (found := _CODE.fullmatch(fields)):
        yield found[1]


def _is_own(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in (project(), *_configured()))


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
