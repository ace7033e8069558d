"""One file that spans several studies: width, depth, data set, ratio."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueoracle.errors import InputError, unknown
from trueoracle.spec.spec import (
    StudySpec,
    file_fields,
    merged,
    override,
    shipped_grids,
    spec_from,
    split_arm,
)

__all__ = ["GridPoint", "expand", "find_point", "grid_digest", "is_grid", "refuse_grid"]

_MOST_POINTS = 200
_MOST_SHOWN = 12
_FILE = ".toml"


@dataclass(frozen=True)
class GridPoint:
    """One study of a grid.

    ``values`` says by axis (such as ``width``) where in the grid it lies; ``label`` says it in a
    name (``width-20``), behind a ``+`` in the study's own: ``GRID+width-20``.
    """

    grid: str
    label: str
    values: Mapping[str, Any]
    spec: StudySpec


@dataclass(frozen=True)
class _Step:
    """One value on an axis: what it changes in the study, and its part of the label."""

    axis: str
    value: Any
    label: str
    fields: tuple[str, ...]
    changes: Mapping[str, Any]


def is_grid(study: str) -> bool:
    """Whether a shipped name or ``.toml`` is a grid; raises :class:`InputError` for neither."""
    return _as_point(study) is None and bool(file_fields(study)["grid"])


def expand(study: str, overrides: Mapping[str, Any] | None = None) -> list[GridPoint]:
    """The studies of a grid, the last axis changing fastest.

    ``overrides`` change all of them. Raises :class:`InputError`, in one line, where the file has no
    grid, an override sets what the grid spans, or a point makes no study.
    """
    fields = file_fields(study)
    name, grid = str(fields["name"]), fields["grid"]
    if not grid:
        raise InputError(f"{study!r} is no grid: its file has no table [grid]")
    plain = {k: v for k, v in fields.items() if k not in ("arms", "grid", "published")}
    words = Counter(map(_word, grid))
    axes = [_axis(name, key, values, words) for key, values in grid.items()]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > _MOST_POINTS:
        raise InputError(f"{name}: the grid has {count:,} points, at most {_MOST_POINTS} are run")
    for field in overrides or {}:
        for step in itertools.chain.from_iterable(axes):
            if any(_overlap(field, spanned) for spanned in step.fields):
                raise InputError(f"--set {field}: the grid {name!r} spans it by {step.axis!r}")
    base, at, arms = name.partition("@")
    points = []
    for steps in itertools.product(*axes):
        made = dict(plain)
        for step in steps:
            made = merged(made, step.changes)
        label = "+".join(step.label for step in steps)
        made["name"] = f"{base}+{label}{at}{arms}"
        values = {step.axis: step.value for step in steps}
        points.append(GridPoint(name, label, values, spec_from(made, overrides)))
    _check_differ(name, points)
    return points


def find_point(study: str, overrides: Mapping[str, Any] | None = None) -> GridPoint | None:
    """The point that ``GRID+POINT`` names, GRID being shipped or a ``.toml``; None where none is.

    Arms follow: ``GRID+POINT@small``. Raises :class:`InputError` for an unknown point.
    """
    found = _as_point(study)
    if found is None:
        return None
    grid, label = found
    points = {point.label: point for point in expand(grid, overrides)}
    if label not in points:
        raise unknown(f"point of the grid {grid!r}", label, points)
    return points[label]


def refuse_grid(study: str) -> None:
    """Raise :class:`InputError`, which names the points, where one study is needed, not a grid."""
    if not is_grid(study):
        return
    reference, arms = split_arm(study)
    behind = f"@{arms}" if arms else ""
    names = [f"{reference}+{point.label}{behind}" for point in expand(study)]
    shown = ", ".join(names[:_MOST_SHOWN]) + (", …" if len(names) > _MOST_SHOWN else "")
    raise InputError(
        f"{study!r} is a grid of studies: 'trueoracle run {study}' runs them all; one of its "
        f"points is meant here: {shown}"
    )


def grid_digest(points: Sequence[GridPoint]) -> str:
    """12 hex digits over the digests of all points."""
    return hashlib.sha256(" ".join(p.spec.digest for p in points).encode()).hexdigest()[:12]


def _as_point(study: str) -> tuple[str, str] | None:
    """The grid (with arms) and label of a point's name."""
    reference, arms = split_arm(study)
    file, own, label = reference.partition(f"{_FILE}+")
    if own and not reference.endswith(_FILE):
        grid = file + _FILE
    else:
        grid, _, label = reference.partition("+")
        if not label or grid not in shipped_grids():
            return None
    return (f"{grid}@{arms}" if arms else grid), label


def _word(key: str) -> str:
    """What a field is called in short: its last word, or that before, which says more.

    data.name is a data set, network.name a network.
    """
    if key.partition(".")[0] not in StudySpec.model_fields:
        return key
    return key.removesuffix(".name").rpartition(".")[2].strip('"')


def _axis(grid: str, key: str, values: object, words: Mapping[str, int]) -> list[_Step]:
    """The steps of one axis: values of a dotted field, or tables of changes under a name.

    Such a table is known by its ``value``, or else by the first of its changes. ``words`` counts
    the fields of the grid that have a short name in common.
    """
    if not isinstance(values, list) or not values:
        raise InputError(f"{grid}: grid.{key} takes a list of values, got {values!r}")
    if key.partition(".")[0] in StudySpec.model_fields:
        if key in ("name", "purpose"):
            raise InputError(f"{grid}: grid.{key} changes no number, and the points are named")
        # Where two fields have one in common, such as learning_rate, only the whole tells.
        word = _word(key) if words[_word(key)] == 1 else key.replace('"', "")
        axis = word = word.removeprefix("pruning.layers.")
        if key.startswith("pruning.layers."):
            axis = f"pruning ratio of {word}"
        return [
            _Step(axis, _plain(value), _label(word, value), (key,), override({}, {key: value}))
            for value in values
        ]
    steps = []
    for value in values:
        if not isinstance(value, dict) or not value:
            raise InputError(
                f"{grid}: grid.{key} is no field of a study, so that each of its points is a table "
                f"of fields, such as {{ data.name = 'mnist' }}, got {value!r}"
            )
        changes = {field: change for field, change in value.items() if field != "value"}
        leaves = _leaves(changes)
        shown = value.get("value", leaves[0][1] if leaves else None)
        fields = tuple(".".join(path) for path, _ in leaves)
        steps.append(_Step(key, _plain(shown), _label(key, shown), fields, changes))
    return steps


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[Any, Any]]:
    """The dotted paths of a table and their values, in its order."""
    found: list[tuple[Any, Any]] = []
    for key, value in table.items():
        deeper = isinstance(value, Mapping) and value
        found += _leaves(value, (*path, key)) if deeper else [((*path, key), value)]
    return found


def _plain(value: object) -> Any:
    """A value for an axis: numbers and strings as they are, tables and lists as text."""
    return value if isinstance(value, int | float | str) else _text(value)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)


def _label(axis: str, value: object) -> str:
    """Such as ``width-20``: what a name may hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{axis}-{_text(value)}").strip("-")


def _overlap(field: str, spanned: str) -> bool:
    """Whether one dotted field is, or lies within, the other."""
    return f"{field}.".startswith(f"{spanned}.") or f"{spanned}.".startswith(f"{field}.")


def _check_differ(grid: str, points: Sequence[GridPoint]) -> None:
    digests: dict[str, str] = {}
    labels: set[str] = set()
    for point in points:
        if point.label in labels:
            raise InputError(f"{grid}: two points of the grid are called {point.label!r}")
        labels.add(point.label)
        if (other := digests.setdefault(point.spec.digest, point.label)) != point.label:
            raise InputError(f"{grid}: the points {other!r} and {point.label!r} are the same study")
