"""Hashes of a user's own code, so that results of changed code are not taken for the same."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

__all__ = ["code_fingerprint"]


def code_fingerprint(made_by: FunctionType | type) -> str:
    """A hash that changes with the code of a function or class; empty where it cannot be made.

    It covers the text of its module and of the user's own modules imported there; for a function
    also its defaults and closure, which must be plain values.
    """
    values: list[object] = []
    if inspect.isfunction(made_by):
        cells = [cell.cell_contents for cell in made_by.__closure__ or ()]
        defaults = [*(made_by.__defaults__ or ()), *(made_by.__kwdefaults__ or {}).values()]
        values = [*cells, *defaults]
    module = inspect.getmodule(made_by)
    if not all(isinstance(v, str | int | float | None) for v in values) or module is None:
        return ""
    try:
        inspect.getsource(module)
        sources = _own_sources(module, {})
    except (OSError, TypeError, SyntaxError):  # code typed at a prompt, or in a notebook
        if not inspect.isfunction(made_by) or (typed := _typed(made_by, {})) is None:
            return ""
        sources = typed
    code = f"{sources}{made_by.__qualname__}{values!r}"
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _typed(function: FunctionType, found: dict[str, str]) -> dict[str, str] | None:
    """The text of a notebook's function and of what it uses there, by name; None where unknown.

    What it uses must be functions of the same kind, plain values, modules or another module's.
    """
    try:
        found[function.__name__] = inspect.getsource(function)
    except (OSError, TypeError):
        return None
    for name in _names_in(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, str | int | float):
            found[name] = repr(value)
        elif (
            name not in found
            and getattr(value, "__module__", None) == function.__module__
            and (not inspect.isfunction(value) or _typed(value, found) is None)
        ):
            return None
    return found


def _names_in(code: CodeType) -> set[str]:
    """The names that a function's code looks up, those of functions within it too."""
    inner = [_names_in(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)


def _own_sources(module: ModuleType, found: dict[str, str]) -> dict[str, str]:
    """Hashes of the files of a module and of the user's own modules that it imports, by name."""
    path = Path(str(module.__file__))
    content = path.read_bytes()
    found[module.__name__] = hashlib.sha256(content).hexdigest()
    if path.suffix != ".py":  # a compiled module does not show what it imports
        return found
    names: set[str] = set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (module.__package__ or "").split(".")
            inner = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (inner, node.module) if part)
            names |= {base, *(f"{base}.{one.name}" for one in node.names)}
    for name in sorted(names):
        other = sys.modules.get(name)
        if other is not None and name not in found and _is_own(other):
            _own_sources(other, found)
    return found


def _is_own(module: ModuleType) -> bool:
    """Whether a module is the user's own: not Python's, not installed and not of this package."""
    name, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
    if file is None or name in sys.stdlib_module_names or name == "trueoracle":
        return False
    return not {"site-packages", "dist-packages"} & set(Path(file).parts)
