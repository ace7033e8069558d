"""Reads a pickle as data: no function is called, no class is instantiated, nothing is imported.

Python's own ``pickle`` builds objects by calling what the file names. Here a name stays a name and
a call stays a description of a call, so a file can do no harm. The caller picks out the parts that
it recognises.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Name", "Stored", "read_pickle"]


@dataclass(frozen=True, repr=False)
class Name:
    """A class or function that the file names, such as ``collections.OrderedDict``."""

    text: str

    def __repr__(self) -> str:
        return repr(self.text)  # which escapes control characters that a terminal would obey


@dataclass(eq=False, repr=False)
class Call:
    """An object that the file would make by calling ``of`` with ``arguments`` and filling it.

    ``state`` is what the object's ``__setstate__`` or ``__dict__`` would be given, ``items`` are
    the keys and values that would be set, ``entries`` the values that would be appended.
    """

    of: object
    arguments: object
    state: object = None
    items: dict[object, Any] = field(default_factory=dict)
    entries: list[object] = field(default_factory=list)

    def __repr__(self) -> str:  # without its contents, which may be endless
        return f"<a call of {self.of!r}>" if isinstance(self.of, Name) else "<a call>"


@dataclass(eq=False, repr=False)
class Stored:
    """Something that is kept outside the pickle, by the identity that the pickle gives it."""

    identity: object

    def __repr__(self) -> str:
        return "<something kept elsewhere>"


def read_pickle(data: bytes) -> object:
    """The object of a pickle, of any protocol.

    Numbers, strings, ``bytes``, None, lists, tuples and dictionaries are read as they are; sets and
    frozensets become lists; everything else becomes a :class:`Name`, :class:`Call` or
    :class:`Stored`. Objects may be shared, nested to any depth, or contain themselves, so callers
    must walk them with care. Raises ``ValueError`` for data that is damaged or no pickle.
    """
    reader = _Reader()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about how texts are written
            reader.run(data)
        return reader.stack.pop()
    except (IndexError, KeyError) as error:  # the stack is too short, or a memo entry is missing
        raise ValueError("it takes what was never put") from error
    except (AttributeError, OverflowError, TypeError, UnicodeError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error


class _Reader:
    """The stack machine whose program a pickle is."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self, data: bytes) -> None:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _VALUES:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise ValueError(f"its opcode {opcode.name} is not read")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        start = len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def memoise(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def call(self, of: object, arguments: object) -> None:
        is_set = isinstance(of, Name) and of.text in _SETS
        if is_set and isinstance(arguments, tuple):
            # Protocols before 4 write a set as a call with the list of its elements.
            if not arguments:
                return self.stack.append([])
            if len(arguments) == 1 and isinstance(arguments[0], list):
                return self.stack.append(arguments[0])
        return self.stack.append(Call(of, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(made := self.stack[-1], Call):
            made.state = state

    def append(self, entries: list[Any]) -> None:
        onto = self.stack[-1]
        (onto.entries if isinstance(onto, Call) else onto).extend(entries)

    def dictionary(self) -> None:
        flat = self.since_mark()
        self.stack.append({})
        self.set(flat)

    def set(self, flat: list[Any]) -> None:
        onto = self.stack[-1]
        items = onto.items if isinstance(onto, Call) else onto
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Other keys are compared by identity, not by content, which may be nested in such a
            # way that reading all of it never ends.
            items[key if isinstance(key, _KEYS) else Stored(key)] = value

    def name(self, module: str, name: str) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        self.stack.append(Name(f"{module}.{name}"))


_KEYS = (str, bytes, int, float, type(None), Name)
_SETS = {f"{home}.{kind}" for home in ("builtins", "__builtin__") for kind in ("set", "frozenset")}

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    "BYTEARRAY8",
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
"""The opcodes that push their argument."""


def _instance(reader: _Reader, argument: str) -> None:
    arguments = tuple(reader.since_mark())
    module, _, name = argument.partition(" ")
    reader.call(Name(f"{module}.{name}"), arguments)


def _object(reader: _Reader) -> None:
    of, *arguments = reader.since_mark()
    reader.call(of, tuple(arguments))


_STEPS: dict[str, Callable[[_Reader, Any], object]] = {
    "PROTO": lambda r, a: None,
    "FRAME": lambda r, a: None,
    "STOP": lambda r, a: None,
    "READONLY_BUFFER": lambda r, a: None,
    "NONE": lambda r, a: r.stack.append(None),
    "NEWTRUE": lambda r, a: r.stack.append(True),
    "NEWFALSE": lambda r, a: r.stack.append(False),
    "MARK": lambda r, a: r.marks.append(len(r.stack)),
    "POP": lambda r, a: r.stack.pop(),
    "POP_MARK": lambda r, a: r.since_mark(),
    "DUP": lambda r, a: r.stack.append(r.stack[-1]),
    "PUT": lambda r, a: r.memoise(a),
    "BINPUT": lambda r, a: r.memoise(a),
    "LONG_BINPUT": lambda r, a: r.memoise(a),
    "MEMOIZE": lambda r, a: r.memoise(len(r.memo)),
    "GET": lambda r, a: r.stack.append(r.memo[a]),
    "BINGET": lambda r, a: r.stack.append(r.memo[a]),
    "LONG_BINGET": lambda r, a: r.stack.append(r.memo[a]),
    "EMPTY_TUPLE": lambda r, a: r.stack.append(()),
    "TUPLE": lambda r, a: r.stack.append(tuple(r.since_mark())),
    "TUPLE1": lambda r, a: r.stack.append(tuple(r.last(1))),
    "TUPLE2": lambda r, a: r.stack.append(tuple(r.last(2))),
    "TUPLE3": lambda r, a: r.stack.append(tuple(r.last(3))),
    "EMPTY_LIST": lambda r, a: r.stack.append([]),
    "LIST": lambda r, a: r.stack.append(r.since_mark()),
    "APPEND": lambda r, a: r.append(r.last(1)),
    "APPENDS": lambda r, a: r.append(r.since_mark()),
    "EMPTY_SET": lambda r, a: r.stack.append([]),
    "FROZENSET": lambda r, a: r.stack.append(r.since_mark()),
    "ADDITEMS": lambda r, a: r.append(r.since_mark()),
    "EMPTY_DICT": lambda r, a: r.stack.append({}),
    "DICT": lambda r, a: r.dictionary(),
    "SETITEM": lambda r, a: r.set(r.last(2)),
    "SETITEMS": lambda r, a: r.set(r.since_mark()),
    "GLOBAL": lambda r, a: r.name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda r, a: r.name(*r.last(2)),
    "INST": _instance,
    "OBJ": lambda r, a: _object(r),
    "REDUCE": lambda r, a: r.call(*r.last(2)),
    "NEWOBJ": lambda r, a: r.call(*r.last(2)),
    "NEWOBJ_EX": lambda r, a: r.call(*r.last(3)[:2]),
    "BUILD": lambda r, a: r.build(),
    "PERSID": lambda r, a: r.stack.append(Stored(a)),
    "BINPERSID": lambda r, a: r.stack.append(Stored(r.stack.pop())),
}
