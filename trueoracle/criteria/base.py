"""What a criterion is, and how one is registered."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, first_line
from trueoracle.pruning.candidates import CandidateList
from trueoracle.registry import Registry

__all__ = ["CRITERIA", "Criterion", "criterion", "find_criterion"]

Scores = np.ndarray | Tensor | list[float]
ScoreFunction = Callable[[nn.Module, Any, Splits], Scores]
"""Its candidates are a :class:`CandidateList`, or only the kind of them that it knows."""


@dataclass(frozen=True)
class Criterion:
    """A function of candidates before retraining: lower means "prune this one".

    ``name`` is what studies call it, ``source`` the paper it comes from. ``function`` takes the
    dense network (which it leaves as it is), P candidates and the data, and gives scores ``[P]``.
    ``separable`` says that a candidate's score does not depend on which others are scored with it,
    so that scoring can go piece by piece and resume.
    """

    name: str
    source: str
    function: ScoreFunction
    separable: bool = False

    def __call__(self, dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
        """Scores float64 ``[P]``, NaN where there is none.

        Raises :class:`InputError` where the function fails or its answer has another shape.
        """
        try:
            scores = self.function(dense, candidates, data)
            if isinstance(scores, Tensor):
                values = scores.detach().cpu().double().numpy()
            else:
                values = np.array([float(score) for score in scores], dtype=np.float64)
        except InputError as error:  # it says itself what it needs
            raise InputError(f"criterion {self.name!r}: {error}") from error
        except Exception as error:  # a user's function runs: anything can come out
            raise InputError(
                f"criterion {self.name!r} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
        if values.shape != (len(candidates),):
            raise InputError(
                f"criterion {self.name!r} gave scores of shape {list(values.shape)}, "
                f"expected [{len(candidates)}]: one a candidate"
            )
        return values

    @property
    def is_shipped(self) -> bool:
        """Whether it comes with the package."""
        return str(getattr(self.function, "__module__", "")).startswith("trueoracle.")

    @property
    def fingerprint(self) -> str:
        """A hash that changes with the criterion's code; empty where that cannot be told.

        Of a user's own function: the text of its module, its plain defaults and closure. A shipped
        criterion's number changes only with ``spec.DIGEST_FORMAT``.
        """
        if self.is_shipped:
            return "shipped"
        function = self.function
        if not inspect.isfunction(function):  # an object, whose state is anybody's guess
            return ""
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        values = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        module = inspect.getmodule(function)
        if not all(isinstance(v, str | int | float | None) for v in values) or module is None:
            return ""
        try:
            text = inspect.getsource(module)
        except (OSError, TypeError):  # typed at a prompt
            return ""
        return hashlib.sha256(f"{text}{function.__qualname__}{values!r}".encode()).hexdigest()[:16]


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, *, source: str = "", separable: bool = False
) -> Callable[[ScoreFunction], Criterion]:
    """Decorator: register ``function(dense, candidates, data) -> [P]`` as a criterion.

    >>> @criterion("fewest-first", source="an example")
    ... def fewest_first(dense, candidates, data):
    ...     return [float(sum(way[0])) for way in candidates]
    """

    def register(function: ScoreFunction) -> Criterion:
        made = _from_function(name, function, source, separable)
        CRITERIA.add(name, made, function)
        return made

    return register


def find_criterion(name: str) -> Criterion:
    """A criterion by registered name or ``module:attribute`` (a criterion or a plain function)."""
    found = CRITERIA.find(name)
    if isinstance(found, Criterion):
        return found
    if callable(found):
        return _from_function(name, found)
    raise InputError(f"criterion {name!r} is a {type(found).__name__}, which cannot be called")


def _from_function(
    name: str, function: ScoreFunction, source: str = "", separable: bool = False
) -> Criterion:
    return Criterion(name, source or inspect.getdoc(function) or "", function, separable)
