"""Resolves a reference to its studies, of which one file may span several."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trueoracle.errors import InputError, unknown
from trueoracle.spec.file import (
    Published,
    Reference,
    StudyFile,
    is_own_file,
    merged,
    override,
    parse_reference,
    read_file,
    read_published,
    replaced_by,
    spec_from,
    split_key,
)
from trueoracle.spec.spec import DESCRIPTIVE, StudySpec
from trueoracle.trust import vouch

__all__ = ["Variant", "grid_digest", "load_spec", "load_variant", "variants"]

_MOST_POINTS = 200
_MOST_SHOWN = 12


@dataclass(frozen=True)
class Variant:
    """One concrete study that a reference resolves to.

    ``grid`` is the name of the grid where the reference names a whole grid, and empty for a single
    study. ``label`` (``width-20``) is a point's part of the study's name, ``GRID+width-20``;
    ``values`` has the point's place in the grid by axis (such as ``width``). ``published`` are the
    values of the study's own file.
    """

    spec: StudySpec
    grid: str = ""
    label: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    @property
    def title(self) -> str:
        """The name of the grid, or else of the study, for headings."""
        small = " (small scale)" if self.spec.scale == "small" else ""
        return f"{self.grid}{small}" if self.grid else self.spec.title


@dataclass(frozen=True)
class _Step:
    """One value on an axis: the changes that it makes in the study, and its part of the label.

    ``fields`` are the changed ones, each by its keys.
    """

    axis: str
    value: Any
    label: str
    fields: tuple[tuple[str, ...], ...]
    changes: Mapping[str, Any]


def variants(reference: str, overrides: Mapping[str, Any] | None = None) -> list[Variant]:
    """The studies that a reference names: one, or all of a grid, the last axis changing fastest.

    A reference is a shipped name or the path of a ``.toml``, with ``+POINT`` for one study of a
    grid and ``@ARM`` for arms, which are laid one on another: ``STUDY@small@as-released``.
    ``overrides`` maps dotted fields to values; they are set last, in all of the studies. Raises
    :class:`InputError`, in one line, where a file makes no study or an override sets what the grid
    spans.
    """
    named = parse_reference(reference)
    vouch(overrides or {})
    file = read_file(named)
    if file.grid:
        points = _points(file, overrides or {}, is_own=is_own_file(reference))
        return [_point(named, points)] if named.point else points
    if named.point:
        raise InputError(f"{named.base!r} is no grid: its file has no table [grid]")
    spec = _overridden(file.fields, overrides or {}, is_own=is_own_file(reference))
    own_name = spec.name.partition("@")[0]
    return [Variant(spec, published=read_published(reference, own_name, file.published))]


def load_variant(reference: str, overrides: Mapping[str, Any] | None = None) -> Variant:
    """The one study that a reference names; raises :class:`InputError` for a whole grid."""
    found = variants(reference, overrides)
    if not found[0].grid:
        return found[0]
    named = parse_reference(reference)
    names = [str(replace(named, point=point.label)) for point in found]
    shown = ", ".join(names[:_MOST_SHOWN]) + (", …" if len(names) > _MOST_SHOWN else "")
    raise InputError(
        f"{reference!r} is a grid of studies: 'trueoracle run {reference}' runs them all; one of "
        f"its points is meant here: {shown}"
    )


def load_spec(reference: str, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """The one study that a reference names (:func:`load_variant`)."""
    return load_variant(reference, overrides).spec


def grid_digest(points: Sequence[Variant]) -> str:
    """12 hex digits over the digests of all points."""
    return hashlib.sha256(" ".join(p.spec.digest for p in points).encode()).hexdigest()[:12]


def _overridden(
    fields: Mapping[str, Any], overrides: Mapping[str, Any], *, is_own: bool
) -> StudySpec:
    """The study of a file's fields with some overridden; of a user's file, it says which."""
    spec = spec_from(fields, overrides)
    if not (is_own and overrides):
        return spec
    try:
        changed = tuple(spec.differences(spec_from(fields)))
    except InputError:  # the file alone makes no study
        changed = tuple(overrides)
    return spec.model_copy(update={"changed": changed}) if changed else spec


def _point(named: Reference, points: Sequence[Variant]) -> Variant:
    by_label = {point.label: replace(point, grid="") for point in points}
    if named.point not in by_label:
        whole = replace(named, point="")
        raise unknown(f"point of the grid '{whole}'", named.point, by_label)
    return by_label[named.point]


def _points(file: StudyFile, overrides: Mapping[str, Any], *, is_own: bool) -> list[Variant]:
    """All points of a grid."""
    name, grid = str(file.fields["name"]), file.grid
    words = Counter(map(_word, grid))
    axes = [_axis(name, key, values, words) for key, values in grid.items()]
    count = math.prod(map(len, axes))
    if count > _MOST_POINTS:
        raise InputError(f"{name}: the grid has {count:,} points, at most {_MOST_POINTS} are run")
    for changed, step in itertools.product(overrides, itertools.chain.from_iterable(axes)):
        if any(_overlap(split_key(changed), spanned) for spanned in step.fields):
            raise InputError(f"--set {changed}: the grid {name!r} spans it by {step.axis!r}")
    base, at, arms = name.partition("@")
    points = []
    for steps in itertools.product(*axes):
        fields = merged(file.fields, *(step.changes for step in steps))
        label = "+".join(step.label for step in steps)
        fields["name"] = f"{base}+{label}{at}{arms}"
        values = {step.axis: step.value for step in steps}
        spec = _overridden(fields, overrides, is_own=is_own)
        points.append(Variant(spec, name, label, values))
    _check_differ(name, points)
    return points


def _word(key: str) -> str:
    """The short name of a field: its last word, but the first of data.name and network.name."""
    if key.partition(".")[0] not in StudySpec.model_fields:
        return key
    return key.removesuffix(".name").rpartition(".")[2].strip('"')


def _axis(grid: str, key: str, values: object, words: Mapping[str, int]) -> list[_Step]:
    """The steps of one axis: values of a dotted field, or tables of changes under a name.

    A table is labelled by its ``value``, or else by the first of its changes. ``words`` says how
    many fields of the grid share each short name.
    """
    if not isinstance(values, list) or not values:
        raise InputError(f"{grid}: grid.{key} takes a list of values, got {values!r}")
    if key.partition(".")[0] in StudySpec.model_fields:
        if key.partition(".")[0] in DESCRIPTIVE:
            raise InputError(f"{grid}: grid.{key} changes no number, and the points are named")
        # Two fields may share a short name, such as learning_rate: then the whole name is needed.
        word = _word(key) if words[_word(key)] == 1 else key.replace('"', "")
        axis = word = word.removeprefix("pruning.layers.")
        if key.startswith("pruning.layers."):
            axis = f"pruning ratio of {word}"
        fields = (tuple(split_key(key)),)
        return [
            _Step(axis, _plain(value), _label(word, value), fields, override({}, {key: value}))
            for value in values
        ]
    steps = []
    for value in values:
        if not isinstance(value, dict) or not value:
            raise InputError(
                f"{grid}: grid.{key} is no field of a study, so each of its points is a table of "
                f"fields, such as {{ data.name = 'mnist' }}, got {value!r}"
            )
        changes = {field: change for field, change in value.items() if field != "value"}
        leaves = _leaves(changes)
        shown = value.get("value", leaves[0][1] if leaves else None)
        fields = tuple(path for path, _ in leaves)
        steps.append(_Step(key, _plain(shown), _label(key, shown), fields, changes))
    return steps


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[Any, Any]]:
    """The dotted paths of a table and their values, in the table's order."""
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
    """A label such as ``width-20``, of characters that a name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{axis}-{_text(value)}").strip("-")


def _overlap(field: Sequence[str], spanned: Sequence[str]) -> bool:
    """Whether setting one field, given by its keys, changes the other."""
    ours, theirs = replaced_by(field), replaced_by(spanned)
    return all(one == other for one, other in zip(ours, theirs, strict=False))


def _check_differ(grid: str, points: Sequence[Variant]) -> None:
    digests: dict[str, str] = {}
    labels: set[str] = set()
    for point in points:
        if point.label in labels:
            raise InputError(f"{grid}: two points of the grid are called {point.label!r}")
        labels.add(point.label)
        if (other := digests.setdefault(point.spec.digest, point.label)) != point.label:
            raise InputError(f"{grid}: the points {other!r} and {point.label!r} are the same study")
