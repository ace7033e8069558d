"""Hashes of a user's own code, so that results of changed code are not taken for the same."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import torch
from torch import Tensor

__all__ = ["code_fingerprint", "content_in_words", "named_fingerprint"]


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
    return _hash(f"{sources}{made_by.__qualname__}{values!r}")


def named_fingerprint(found: object, name: str = "") -> str:
    """A hash that changes with the code of anything that a study names; empty where unknown.

    It is that of :func:`code_fingerprint` where there is one. Otherwise (a decorated function, a
    partial, an object) it covers the text of the modules that define ``found`` and its parts, that
    of the module in ``name`` (``module:attribute``), and what an object holds.
    """
    if (inspect.isfunction(found) or inspect.isclass(found)) and (code := code_fingerprint(found)):
        return code
    sources: dict[str, str] = {}
    parts: list[str] = []
    try:
        place = sys.modules.get(name.partition(":")[0])
        if place is not None and getattr(place, "__file__", None) is not None:
            _own_sources(place, sources)
        for one in _definitions(found, set()):
            # What else a function holds may change as it runs, such as a list of times.
            plain = {k: v for k, v in _held(one).items() if isinstance(v, str | int | float)}
            parts.append(f"{one.__qualname__}{plain}")
            module = inspect.getmodule(one)
            if module is None or getattr(module, "__file__", None) is None:
                typed = _typed(one, {}) if isinstance(one, FunctionType) else _typed_class(one)
                if typed is None:
                    return ""
                parts.append(str(typed))
            elif module.__name__ not in sources:
                _own_sources(module, sources)
    except (OSError, TypeError, SyntaxError):
        return ""
    if not sources and not parts:  # as for what is compiled
        return ""
    content = "" if inspect.isfunction(found) else content_in_words(_held(found))
    return _hash(f"{sources}{parts}{content}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _definitions(found: object, seen: set[int]) -> Iterator[FunctionType | type]:
    """The functions and classes that something consists of, without installed ones."""
    if id(found) in seen:
        return
    seen.add(id(found))
    if inspect.ismethod(found):
        yield from _definitions(found.__func__, seen)
        yield from _definitions(found.__self__, seen)
    elif inspect.isfunction(found) or inspect.isclass(found):
        module = inspect.getmodule(found)
        if module is None or not _is_installed(module):
            yield found
    elif callable(found) or hasattr(found, "__dict__"):
        yield from _definitions(type(found), seen)
    for value in _held(found).values():
        if callable(value):
            yield from _definitions(value, seen)


def _held(found: object) -> dict[str, object]:
    """The values that a function, a partial, a method or an object holds, by name."""
    if inspect.isfunction(found):
        values = [cell.cell_contents for cell in found.__closure__ or ()]
        values += [*(found.__defaults__ or ()), *(found.__kwdefaults__ or {}).values()]
        return {str(place): value for place, value in enumerate(values)}
    if isinstance(found, functools.partial):
        given = {str(place): value for place, value in enumerate(found.args)}
        return {"function": found.func} | given | found.keywords
    if inspect.ismethod(found):
        return _held(found.__self__)
    return {} if inspect.isclass(found) else dict(getattr(found, "__dict__", {}))


def content_in_words(value: object) -> str:
    """What a value holds, in full, since torch abbreviates long tensors when it prints them."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        numbers = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{plain.dtype} {list(plain.shape)} {hashlib.sha256(numbers).hexdigest()}"
    if isinstance(value, Mapping):
        return str({str(name): content_in_words(one) for name, one in value.items()})
    if isinstance(value, list | tuple):
        return str([content_in_words(one) for one in value])
    if isinstance(value, set | frozenset) and all(isinstance(one, str) for one in value):
        return str(sorted(value))  # a set of texts has another order in each process
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _typed_class(kind: type) -> dict[str, str] | None:
    """The text of the methods of a notebook's class, by name; None where unknown."""
    known: dict[str, str] = {}
    for base in kind.__mro__:
        if base.__module__ != kind.__module__:
            continue
        for name, value in vars(base).items():
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(inner):
                if (text := _typed(inner, {kind.__name__: ""})) is None:
                    return None
                known[f"{base.__name__}.{name}"] = str(text)
            elif not name.startswith("__"):
                known[f"{base.__name__}.{name}"] = content_in_words(value)
    return known


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
    """Whether a module is the user's own and has a file."""
    return getattr(module, "__file__", None) is not None and not _is_installed(module)


def _is_installed(module: ModuleType) -> bool:
    """Whether a module is Python's, installed, or of this package."""
    name, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
    if name in sys.stdlib_module_names or name == "trueoracle":
        return True
    return bool({"site-packages", "dist-packages"} & set(Path(file or "").parts))
