"""What a criterion is, and how one is registered."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.data.splits import Split, Splits
from trueoracle.errors import InputError, NotApplicableError, TrueOracleError, first_line, shown
from trueoracle.pruning.candidates import CandidateList, Units
from trueoracle.registry import Registry
from trueoracle.sources import code_fingerprint
from trueoracle.training.recipe import Retraining

__all__ = [
    "BASES",
    "CRITERIA",
    "Criterion",
    "as_criterion",
    "criterion",
    "find_criterion",
    "given_criterion",
    "split_settings",
]

Scores = np.ndarray | Tensor | list[float]
ScoreFunction = Callable[..., Scores]
"""A function of the dense network, candidates, data and, if it ``uses_recipe``, the retraining."""

EVERY: tuple[Units, ...] = ("filters", "weights", "layers")
BASES = ("as published", "as released", "derived", "ours")
"""Where a criterion's definition comes from: a paper, a paper's released code, a paper's definition
that was extended to a case which the paper does not treat, or this package."""
_IN_WORDS = {"filters": "filters", "weights": "single weights", "layers": "whole layers"}


@dataclass(frozen=True)
class Criterion:
    """A function of candidates before retraining: lower means "prune this one".

    - ``name``: what studies call the criterion;
    - ``label``: what its scores are called in figures and sentences; ``{units}`` in it stands for
      what is pruned (filters, weights or layers), or there is one label for each;
    - ``source``: the paper that it comes from;
    - ``function``: takes the dense network (which it leaves unchanged), P candidates and the data,
      and returns scores ``[P]``;
    - ``separable``: a candidate's score does not depend on which others are scored with it, so that
      scoring can go piece by piece and resume;
    - ``at_once``: scoring piece by piece would repeat most of the work for each piece, for example
      because that work is the importance of every filter;
    - ``applies_to``: whose pruning it can score: filters, single weights, whole layers;
    - ``conditional``: it may refuse for other reasons too, by :class:`NotApplicableError`;
    - ``uses_data``: scores depend on images;
    - ``uses_recipe``: scores depend on how the candidates are retrained, and ``function`` also
      takes that :class:`Retraining`;
    - ``basis``: begins with one of :data:`BASES` and may continue: "as released: T = 200";
    - ``version``: is raised when a shipped criterion's scores change, so that recorded scores are
      not taken for new ones;
    - ``settings``: the values of the function's keyword-only parameters that differ from their
      defaults; in a study they follow the name: ``taylor:batch=64``.

    Raises :class:`InputError` for any other ``basis``.
    """

    name: str
    source: str
    function: ScoreFunction
    separable: bool = False
    at_once: bool = False
    applies_to: tuple[Units, ...] = EVERY
    conditional: bool = False
    uses_data: bool = True
    uses_recipe: bool = False
    label: str | Mapping[Units, str] = ""
    basis: str = ""
    version: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for an unknown basis."""
        if self.basis and not self.basis.startswith(BASES):
            raise InputError(
                f"criterion {self.name!r}: basis is {self.basis!r}, expected it to begin with "
                f"{', '.join(map(repr, BASES[:-1]))} or {BASES[-1]!r}"
            )

    def __call__(
        self,
        dense: nn.Module,
        candidates: CandidateList,
        data: Splits,
        recipe: Retraining | None = None,
    ) -> np.ndarray:
        """Scores float64 ``[P]``, NaN where a candidate has none.

        ``recipe`` is how the candidates are retrained; by default :class:`Retraining`'s defaults.
        Raises :class:`NotApplicableError` where the criterion does not apply, and
        :class:`InputError` where the function fails or returns another shape.
        """
        self.check(candidates)
        also = (recipe or Retraining(),) if self.uses_recipe else ()
        before = _versions(data)
        self._check_arguments(3 + len(also))
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):  # functions may change the mode
                scores = self.function(dense, candidates, data, *also, **self.settings)
            values = _as_numbers(scores)
        except NotApplicableError as error:
            raise NotApplicableError(
                f"criterion {self.name!r}: {error}", of_images=error.of_images
            ) from error
        except InputError as error:  # the function itself says what it needs
            raise InputError(f"criterion {self.name!r}: {error}") from error
        except (MemoryError, torch.OutOfMemoryError) as error:  # a later run may have more memory
            raise TrueOracleError(
                f"criterion {self.name!r} ran out of memory: {first_line(error)}"
            ) from error
        except (Exception, SystemExit) as error:  # a user's function: anything can come out
            raise InputError(
                f"criterion {self.name!r} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
        if _versions(data) != before:
            raise InputError(
                f"criterion {self.name!r} changed the images or labels that it was given: all that "
                "comes after would see them; work on a copy"
            )
        if values.shape != (len(candidates),):
            raise InputError(
                f"criterion {self.name!r} gave scores of shape {list(values.shape)}, "
                f"expected [{len(candidates)}]: one per candidate"
            )
        return values

    def _check_arguments(self, count: int) -> None:
        """Raise :class:`InputError` where the function does not take ``count`` arguments."""
        try:
            signature = inspect.signature(self.function)
        except (ValueError, TypeError):  # of something compiled
            return
        try:
            signature.bind(*[None] * count)
        except TypeError as error:
            takes = "dense, candidates, data" + (", recipe" if self.uses_recipe else "")
            hint = (
                ""
                if self.uses_recipe
                else " (and the retraining recipe, where @trueoracle.criterion(…, "
                "uses_recipe=True) makes it)"
            )
            raise InputError(
                f"criterion {self.name!r} is called with ({takes}){hint}: {error}"
            ) from error

    def check(self, candidates: CandidateList) -> None:
        """Raise :class:`NotApplicableError` where the criterion cannot score such pruning."""
        if candidates.units not in self.applies_to:
            known = " and ".join(_IN_WORDS[units] for units in self.applies_to)
            raise NotApplicableError(
                f"criterion {self.name!r}: it is of {known}, and {_IN_WORDS[candidates.units]} are "
                "pruned"
            )

    def label_of(self, candidates: CandidateList) -> str | None:
        """What the scores of these candidates are called; None where there is no label."""
        units = candidates.units
        label = self.label if isinstance(self.label, str) else self.label.get(units, "")
        label = label.replace("{units}", units)
        if label and self.settings:
            label += f" ({', '.join(f'{name} {value}' for name, value in self.settings.items())})"
        return label or None

    @property
    def parameters(self) -> dict[str, Any]:
        """The function's keyword-only parameters that have a plain default, with their values."""
        try:
            named = inspect.signature(self.function).parameters.values()
        except (ValueError, TypeError):  # of something compiled
            return {}
        plain = (p for p in named if p.kind is p.KEYWORD_ONLY and type(p.default) in _READ_AS)
        return {p.name: self.settings.get(p.name, p.default) for p in plain}

    def with_settings(self, text: str) -> Criterion:
        """The criterion with other parameters, from ``text`` such as ``"batch=64,raw=true"``.

        Raises :class:`InputError` for a parameter that the criterion does not have, and for a value
        of another type than the default's.
        """
        name = f"{self.name}:{text}"
        known = self.parameters
        settings = dict(self.settings)
        for part in text.split(","):
            key, _, value = (one.strip() for one in part.partition("="))
            if key not in known:
                has = ", ".join(f"{n}={v!r}" for n, v in known.items())
                has = f"its parameters: {has}" if known else "it has none"
                raise InputError(f"criterion {name!r}: no parameter {key!r} ({has})")
            read, expected = _READ_AS[type(known[key])]
            try:
                settings[key] = read(value)
            except (ValueError, KeyError):
                raise InputError(
                    f"criterion {name!r}: {key} is {value!r}, expected {expected}"
                ) from None
        return replace(self, name=name, settings=settings)

    @property
    def documentation(self) -> str:
        """The function's docstring: a summary line, then the details."""
        return inspect.getdoc(self.function) or ""

    @property
    def is_shipped(self) -> bool:
        """Whether the criterion comes with the package."""
        return str(getattr(self.function, "__module__", "")).startswith("trueoracle.")

    @property
    def fingerprint(self) -> str:
        """A hash that changes with the criterion's code; empty where the code cannot be found.

        For a user's own function, it covers the text of its module and of the user's modules that
        it imports, its plain defaults and its closure; for a shipped criterion, its ``version``.
        """
        if self.is_shipped:
            return "shipped" if self.version == 1 else f"shipped, version {self.version}"
        return code_fingerprint(self.function) if inspect.isfunction(self.function) else ""


def _as_numbers(scores: object) -> np.ndarray:
    """Scores as float64; raises :class:`InputError` unless they are a column of real numbers."""
    if scores is None or isinstance(scores, Mapping | Set | str | bytes):
        raise InputError(f"it gave {_a(scores)}, expected numbers in the order of the candidates")
    if isinstance(scores, Tensor):
        return _exact(_array(scores))
    if isinstance(scores, np.ndarray) and scores.dtype != object:
        return _exact(scores)
    each = scores.ravel().tolist() if isinstance(scores, np.ndarray) else scores
    numbers = np.array([_number(one) for one in cast(Iterable[Any], each)], dtype=np.float64)
    return numbers.reshape(scores.shape) if isinstance(scores, np.ndarray) else numbers


def _number(one: object) -> float:
    """One score of a list: a real number, or a tensor or array that holds one."""
    if not isinstance(one, Tensor | np.ndarray | np.generic | bool | int | float | complex):
        raise InputError(f"it gave {_a(one)} for a candidate, expected a number")
    if type(one) is int:  # with any number of digits
        number = float(one) if abs(one) < 2**1000 else math.inf
        if number != one:
            raise InputError(_TOO_LARGE)
        return number
    array = _exact(_array(one) if isinstance(one, Tensor) else np.asarray(one))
    if array.size != 1:
        raise InputError(f"it gave {array.size} numbers for one candidate, expected one")
    return float(array.item())


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array; floats become float64, since numpy has no bfloat16."""
    found = tensor.detach().cpu()
    return np.asarray((found.double() if found.is_floating_point() else found).numpy())


_NO_SCORES = {
    "c": "complex numbers, of which none is the lowest",
    "b": "true and false, expected numbers",
}


_TOO_LARGE = (
    "it gave whole numbers that float64 does not tell apart (beyond 2^53): scale them first"
)


def _exact(given: np.ndarray) -> np.ndarray:
    """Real numbers as float64, where float64 can tell all of them apart."""
    if np.ma.is_masked(given):
        raise InputError("it gave a masked array, whose mask would be lost: put NaN there")
    if given.dtype.kind not in "iuf":
        raise InputError(f"it gave {_NO_SCORES.get(given.dtype.kind, f'type {given.dtype}')}")
    numbers = given.astype(np.float64)
    if given.dtype.kind in "iu" and any(
        int(after) != before for after, before in zip(numbers.flat, given.flat, strict=True)
    ):
        raise InputError(_TOO_LARGE)
    return numbers


def _a(scores: object) -> str:
    return "nothing (None)" if scores is None else f"a {type(scores).__name__}"


def _versions(data: Splits) -> list[int]:
    """How often the tensors of images in memory have been written to."""
    splits = (data.train, data.validation, data.test, data.measured)
    return [
        tensor._version
        for split in splits
        if isinstance(split, Split)
        for tensor in split.fields.values()
        if not tensor.is_inference()  # inference tensors cannot be written to and have no count
    ]


_READ_AS: Mapping[type, tuple[Callable[[str], Any], str]] = {
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a word"),
}
"""How parameters are read from text, by the type of their default, and what is expected."""

CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str,
    *,
    label: str | Mapping[Units, str] = "",
    source: str = "",
    separable: bool = False,
    at_once: bool = False,
    applies_to: tuple[Units, ...] = EVERY,
    conditional: bool = False,
    uses_data: bool = True,
    uses_recipe: bool = False,
    basis: str = "",
    version: int = 1,
) -> Callable[[ScoreFunction], Criterion]:
    """Decorator: register ``function(dense, candidates, data) -> [P]`` as a criterion.

    The options are :class:`Criterion`'s fields. Keyword-only parameters of the function with a
    default (true or false, a number, a word) are parameters of the criterion.

    >>> @criterion("fewest-first", source="an example")
    ... def fewest_first(dense, candidates, data):
    ...     return [float(sum(way[0])) for way in candidates]
    """

    def register(function: ScoreFunction) -> Criterion:
        made = Criterion(
            name,
            source or inspect.getdoc(function) or "",
            function,
            separable=separable,
            at_once=at_once,
            applies_to=applies_to,
            conditional=conditional,
            uses_data=uses_data,
            uses_recipe=uses_recipe,
            label=label,
            basis=basis,
            version=version,
        )
        CRITERIA.add(name, made, function)
        return made

    return register


def find_criterion(name: str) -> Criterion:
    """A criterion by registered name or ``module:attribute`` (a criterion or a plain function).

    Parameters may follow: ``taylor:batch=64``, ``module:attribute:scale=2,raw=true``.
    """
    base, settings = split_settings(name)
    found = as_criterion(base, CRITERIA.find(base))
    return found.with_settings(settings) if settings else found


def given_criterion(given: object) -> object:
    """The name of a criterion given in Python; a function becomes one of its own name.

    The record knows the criterion by that name and by a hash of its code. A study is resumed with
    the function given again; where its code has changed, its scores are made anew. Anything else
    than a function or a criterion is returned as it is. Raises :class:`InputError` for a function
    without a name, and where another criterion has the name.
    """
    if isinstance(given, str) or not callable(given):
        return given
    if isinstance(given, Criterion):
        if CRITERIA.get(given.name) is not given and ":" not in given.name:
            CRITERIA.add(given.name, given, given.function)
        return given.name
    name = getattr(given, "__name__", "")
    if not name.isidentifier():
        raise InputError(
            f"criterion {shown(given)} has no name: define it by def, or register it by "
            "@trueoracle.criterion('name')"
        )
    CRITERIA.add(name, as_criterion(name, given), given)
    return name


def split_settings(name: str) -> tuple[str, str]:
    """A name without its parameters, and the parameters, which follow a colon and hold ``=``."""
    base, _, last = name.rpartition(":")
    return (base, last) if "=" in last and base else (name, "")


def as_criterion(name: str, found: object) -> Criterion:
    """The object that a user's name refers to, as a criterion; a plain function gets that name."""
    if isinstance(found, Criterion):
        return found
    if inspect.isclass(found):
        raise InputError(
            f"criterion {name!r} is a class: name a function, or an object of it that can be called"
        )
    if callable(found):
        return Criterion(name, inspect.getdoc(found) or "", found)
    raise InputError(f"criterion {name!r} is a {type(found).__name__}, which cannot be called")
