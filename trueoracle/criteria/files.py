"""Criteria from a user's own files."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from trueoracle.criteria.base import Criterion, as_criterion, find_criterion, split_settings
from trueoracle.errors import InputError, first_line

__all__ = ["load_criterion"]


def load_criterion(reference: str) -> Criterion:
    """A criterion by ``file.py`` or ``file.py:attribute``, else as :func:`find_criterion` does.

    Where no attribute is named, the file must hold one criterion made by the decorator, or else
    one function. Parameters may follow, as in :func:`find_criterion`. Raises :class:`InputError`,
    with a message of one line, where the file holds neither or cannot be run.
    """
    base, settings = split_settings(reference)
    if settings:
        return load_criterion(base).with_settings(settings)
    file, colon, attribute = reference.partition(".py:")
    if not colon and not reference.endswith(".py"):
        return find_criterion(reference)
    path = Path(file + ".py" if colon else reference)
    module = _run(path)
    if colon:
        if not hasattr(module, attribute):
            raise InputError(f"{path} has no {attribute!r}")
        return as_criterion(attribute, getattr(module, attribute))
    criteria = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Criterion)
        and getattr(value.function, "__module__", None) == module.__name__
    }
    functions = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    found = criteria or functions
    if len(found) != 1:
        what = f"holds {len(found)} criteria" if found else "holds no criterion and no function"
        raise InputError(f"{path} {what}: name one as {path}:NAME{_names(found)}")
    ((name, value),) = found.items()
    return as_criterion(name, value)


def _names(found: Mapping[str, object]) -> str:
    return f" ({', '.join(found)})" if found else ""


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no file {path}")
    name = f"own_{path.stem}"  # the file may have the same name as a library
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect looks here for the source
    # The file can import modules beside it, as a script can; the folder comes last, so that none of
    # its modules hides an installed one.
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file runs: anything can come out
        del sys.modules[name]
        raise InputError(
            f"{path} cannot be run: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module
