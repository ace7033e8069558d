"""Reads the fields of a study from a study file, with arms and overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from trueoracle.errors import InputError, first_line, shown, unknown
from trueoracle.spec.hub import HF, files_sha256, folder_of
from trueoracle.spec.spec import Role, StudySpec
from trueoracle.training.recipe import Frozen
from trueoracle.trust import check_within, note_code

__all__ = [
    "PAPER",
    "Published",
    "Reference",
    "StudyFile",
    "arm_for",
    "arms_of",
    "field_paths",
    "is_own_file",
    "is_reference",
    "merged",
    "override",
    "parse_overrides",
    "parse_reference",
    "read_file",
    "read_published",
    "replaced_by",
    "shipped_grids",
    "shipped_studies",
    "spec_from",
    "split_key",
    "with_files",
    "without_arms",
]

SHIPPED = Path(__file__).parent.parent / "studies"
"""The folder of shipped studies, one file each; a base, whose name begins with an underscore, may
hold several in a table ``[studies]``."""

_STUDIES = "studies"
_TOML = ".toml"

_DEEPEST = 20
"""The deepest nesting of tables and lists: the arguments of an arm's network are five deep."""

_REPLACED_WHOLE: Set[str] = frozenset({"layers"})
"""Tables that replace those of a base as a whole: a study's ratios by layer belong together."""

_NAMED = {"network", "data"}
"""Tables that a name may stand for: another name replaces the base's table, not a field of it."""


PAPER = "Is Oracle Pruning the True Oracle? (arXiv 2412.00143)"


class Published(Frozen):
    """One published scatter with the values that are printed in it, or a setting without any.

    ``study`` is the study that repeats the scatter. ``x`` is what is related to ``y``: the pruned
    train loss, or the accuracy of a short retraining (the study's arm with that role). ``p_value``
    is as printed, to five digits, so that 0 means less than half of the last digit.
    ``anomaly_ratio`` is a fraction, absent where none is printed. Where the paper names a setting
    without a scatter, all values are absent.
    """

    setting: str
    study: str
    n: int | None = Field(None, ge=2)
    kendall_tau: float | None = Field(None, ge=-1, le=1)
    p_value: float | None = Field(None, ge=0, le=1)
    anomaly_ratio: float | None = Field(None, ge=0, le=1)
    x: Literal["pruned train loss", "short retraining"] = "pruned train loss"
    y: Literal["test accuracy"] = "test accuracy"

    @model_validator(mode="after")
    def _all_values_or_none(self) -> Published:
        printed = {name: getattr(self, name) for name in ("n", "kendall_tau", "p_value")}
        missing = [name for name, value in printed.items() if value is None]
        if missing and (len(missing) < len(printed) or self.anomaly_ratio is not None):
            raise ValueError(f"{missing[0]} is missing")
        return self

    @property
    def has_values(self) -> bool:
        """Whether a scatter of the setting was published."""
        return self.kendall_tau is not None

    @property
    def source(self) -> str:
        """Where the setting was published."""
        if not self.has_values:
            return f"{PAPER}, named there; no scatter on its project page"
        return f"{PAPER}, scatter {self.setting!r} on its project page"

    @property
    def needs_short(self) -> bool:
        """Whether the setting takes two studies: the full retraining and a short one."""
        return self.x == "short retraining"


@dataclass(frozen=True)
class Reference:
    """What names a study: ``BASE`` or a grid's ``BASE+POINT``, and arms, each after an ``@``.

    ``base`` is a shipped name or the path of a ``.toml``.
    """

    base: str
    point: str = ""
    arms: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "@".join([f"{self.base}+{self.point}" if self.point else self.base, *self.arms])


@dataclass(frozen=True)
class StudyFile:
    """A study file with all that it extends and the arms that were laid on it.

    ``fields`` are those of the study, including its name. ``arms``, ``grid`` and ``published`` are
    in the file beside the study, and are no part of the study or its digest.
    """

    fields: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    grid: Mapping[str, Any]
    published: tuple[Mapping[str, Any], ...]


def shipped_studies() -> dict[str, Path]:
    """The files of the studies that come with the package, by the studies' names."""
    files = {path.stem: path for path in SHIPPED.glob(f"[!_]*{_TOML}")}
    for path in _bases().values():
        files |= dict.fromkeys(_parsed(path).get(_STUDIES, ()), path)
    return dict(sorted(files.items()))


def shipped_grids() -> dict[str, Path]:
    """The files of the grids that come with the package, by the grids' names."""
    return {path.stem: path for path in sorted((SHIPPED / "grids").glob(f"*{_TOML}"))}


def is_reference(text: str) -> bool:
    """Whether a text names a study file: a ``.toml``, a shipped study or grid, or its point."""
    base = parse_reference(text).base
    return base.endswith(_TOML) or base in shipped_studies() | shipped_grids()


def is_own_file(text: str) -> bool:
    """Whether a reference names a user's file, which cannot be looked up again by its name."""
    return parse_reference(text).base.endswith(_TOML)


def parse_reference(text: str) -> Reference:
    """Split a text into the parts of a reference, without looking any of them up."""
    folder, slash, name = text.rpartition("/")
    words = name.split("@")
    ways = [(folder + slash + "@".join(words[:n]), words[n:]) for n in range(1, len(words) + 1)]
    # A file may have an @ in its own name.
    named, arms = next((way for way in reversed(ways[1:]) if _is_there(way[0])), ways[0])
    file, joint, point = named.partition(f"{_TOML}+")
    if joint and not named.endswith(_TOML):
        return Reference(file + _TOML, point, tuple(arms))
    base, _, point = named.partition("+")
    if point and base in shipped_grids():
        return Reference(base, point, tuple(arms))
    return Reference(named, "", tuple(arms))


def _is_there(named: str) -> bool:
    """Whether a study file exists, or the file of a grid's point."""
    file, ending, point = named.rpartition(_TOML)
    if not ending or "@" in point or (point and not point.startswith("+")):
        return False
    try:
        return Path(file + ending).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def without_arms(reference: str) -> str:
    """The reference without its arms, which names the study itself."""
    return str(replace(parse_reference(reference), arms=()))


def arms_of(reference: str) -> list[str]:
    """The names of the arms that a study's file offers."""
    return list(_read(parse_reference(reference).base).arms)


def arm_for(reference: Reference, role: Role) -> str:
    """The name of a file's arm with ``role``; the role itself where no arm has it."""
    arms = read_file(reference).arms
    return next((arm for arm in arms if arms[arm].get("role", arm) == role), role)


def read_file(reference: Reference) -> StudyFile:
    """Read a study file and lay the arms on it, one on another; a grid's point is ignored.

    Raises :class:`InputError`, in one line, for a file that is missing or no TOML, for an unknown
    name, arm or role, and for an arm that would undo another.
    """
    file, roles = _read(reference.base), {}
    for arm in reference.arms:
        if arm not in file.arms:
            raise unknown(f"arm of {reference.base!r}", arm, file.arms)
        role = file.arms[arm].get("role", arm)
        if role in get_args(Role):
            roles[arm] = role
        elif role != arm:
            raise unknown(f"role of the arm {arm!r}", str(role), get_args(Role))
        if role == "small" and "short" in roles.values():
            # The arm that is laid last prevails, and small sets the epochs, too.
            order = (arm, *(one for one in reference.arms if one != arm))
            raise InputError(
                f"'{reference}' would not be short: lay {arm} first: "
                f"'{replace(reference, arms=order)}'"
            )
        file = _with_arm(file, arm, reference.base)
    named = {"name": "@".join([str(file.fields["name"]), *reference.arms])}
    return replace(file, fields={**file.fields, **named} | ({"roles": roles} if roles else {}))


def _with_arm(file: StudyFile, arm: str, where: str) -> StudyFile:
    # An arm changes what is beside the study, too, since other arms are laid on it.
    beside = {"arms": file.arms, "grid": file.grid, "published": [*file.published]}
    changes = {field: value for field, value in file.arms[arm].items() if field != "role"}
    return _split(merged({**file.fields, **beside}, changes), where)


def spec_from(fields: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """A study from plain fields; raises :class:`InputError`, in one line, where they make none."""
    given = override(fields, overrides or {})
    if wrong := _unfit(given):
        raise InputError(f"the study {wrong}")
    try:
        return with_files(StudySpec.model_validate(given))
    except ValidationError as error:
        raise InputError(_one_line(error)) from None  # which holds all that pydantic says


def with_files(spec: StudySpec, download: Callable[[str], None] | None = None) -> StudySpec:
    """The study with the hash of its network's files, where they are at hand.

    With ``download``, missing files are downloaded from the hub, and ``download`` is called with a
    line that says so; raises :class:`InputError` where that is impossible.
    """
    network, files = spec.network, None
    if network.name.startswith(HF):
        revision = network.arguments.get("revision")
        name, wanted = network.name.removeprefix(HF), None if revision is None else str(revision)
        # A study can be listed without its files: missing ones are an error when they are needed.
        with suppress(InputError) if download is None else nullcontext():
            files = files_sha256(folder_of(name, wanted, download))
    if files == network.files:
        return spec
    return spec.model_copy(update={"network": network.model_copy(update={"files": files})})


def override(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The ``fields`` with dotted fields set to the values of ``changes``."""
    nested = []
    for field, value in changes.items():
        for key in reversed(split_key(field)):
            value = {key: value}
        nested.append(value)
    return merged(fields, *nested)


def merged(fields: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with ``changes`` merged in, tables within tables too.

    Ratios by layer replace those of ``fields``, but several changes add up to one table of them.
    """
    result, whole = dict(fields), _REPLACED_WHOLE
    for change in changes:
        result = _merged(result, change, whole)
        pruning = change.get("pruning")
        if isinstance(pruning, Mapping):
            whole = whole - pruning.keys()
    return result


def _merged(
    fields: Mapping[str, Any], changes: Mapping[str, Any], whole: Set[str]
) -> dict[str, Any]:
    """``fields`` with one table of changes; those of the keys in ``whole`` replace its tables."""
    result = dict(fields)
    for key, value in changes.items():
        old = result.get(key)
        if key in _NAMED and isinstance(old, str):
            old = {"name": old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key not in whole:
            result[key] = _merged(old, value, whole)
        else:
            result[key] = value
    return result


def replaced_by(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys of what setting a field replaces: of a layer's ratio, those of all ratios."""
    ends = [place for place, key in enumerate(keys, start=1) if key in _REPLACED_WHOLE]
    return tuple(keys[: min(ends, default=len(keys))])


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Values by field from ``field=value`` texts; a value that is no TOML is taken as a string."""
    values = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or not field.strip():
            raise InputError(f"--set takes field=value, got {setting!r}")
        try:
            read = _toml(f"value = {text}")
        except tomllib.TOMLDecodeError:
            read = {}
        except ValueError as error:
            raise InputError(f"--set {field.strip()}: the value {error}") from error
        # More TOML may follow a new line: then the text is not a single value.
        values[field.strip()] = read["value"] if list(read) == ["value"] else text.strip()
    return values


def read_published(
    where: str, study: str, tables: Iterable[Mapping[str, Any]]
) -> tuple[Published, ...]:
    """The published values of a study from a file's tables; raises :class:`InputError`."""
    try:
        return tuple(Published.model_validate({"study": study, **one}) for one in tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(["published", *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ").lower()
        raise InputError(f"{where}: {field}: {message}") from error


def _bases() -> dict[str, Path]:
    return {path.stem: path for path in SHIPPED.glob(f"_*{_TOML}")}


def _read(base: str) -> StudyFile:
    """The file of a shipped name or a path, without arms."""
    return _split(_fields(base), base)


def _fields(name: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields in the file of a shipped name or a path, on top of the file that it extends.

    ``seen`` are the files that extend this one.
    """
    path = Path(name)
    if not name.endswith(_TOML):
        known = shipped_studies() | (_bases() if seen else shipped_grids())
        if name not in known:
            raise unknown("study to extend" if seen else "study", name, known)
        path = known[name]
        if path.stem != name:  # the study is in the table of its base
            return _extended(_fields(str(path)), {"name": name, **_parsed(path)[_STUDIES][name]})
    fields = _parsed(path, seen)
    if path.parent == SHIPPED:
        fields.pop(_STUDIES, None)
    elif path.parent.parent != SHIPPED:  # a user's file: shipped grids lie in a subfolder
        note_code(path, fields)
    if "name" not in fields and "@" in path.stem and not seen:  # it would be taken for an arm
        raise InputError(f"{path}: {_no_name(path.stem)}")
    fields.setdefault("name", path.stem)
    base = fields.pop("extends", None)
    _split(fields, str(path))  # checks each file by itself, so that an error names the file
    if base is None:
        return fields
    if not isinstance(base, str):
        raise InputError(f"{path}: extends takes a shipped study or a .toml, got {base!r}")
    above = base
    if base.endswith(_TOML):
        check_within(path, path.parent / base)
        above = str(path.parent / base)
    return _extended(_fields(above, (*seen, path.resolve())), fields)


def _extended(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    # These fields say what the base itself is, and do not hold for a study that extends it.
    not_inherited = ("name", "purpose", "grid", "published")
    return merged({k: v for k, v in base.items() if k not in not_inherited}, fields)


def _parsed(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a TOML file; raises :class:`InputError` in one line."""
    try:
        if path.resolve() in seen:
            raise InputError(f"{path} extends itself")
        if path.exists() and not path.is_file():  # reading a pipe might wait for ever
            raise InputError(f"cannot read the study file {path}: it is no file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"no study file {path}") from error
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no text, no name, a loop of links
        raise InputError(f"cannot read the study file {path}: {first_line(error)}") from error
    try:
        return dict(_content(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except ValueError as error:
        raise InputError(f"{path} {error}") from error


@lru_cache(maxsize=64)
def _content(text: str) -> dict[str, Any]:
    """The content of a file, kept since a base is read for every study in it."""
    return _toml(text)


def _split(fields: Mapping[str, Any], where: str) -> StudyFile:
    """Separate the study from what the file has beside it, and check the form of the latter."""
    study = dict(fields)
    arms, grid = study.pop("arms", {}), study.pop("grid", {})
    published = study.pop("published", [])
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
        raise InputError(f"{where}: arms are tables of fields, such as [arms.short.retraining]")
    if not isinstance(grid, dict):
        raise InputError(f"{where}: [grid] is a table of fields, each with a list of values")
    if not isinstance(published, list) or not all(isinstance(one, dict) for one in published):
        raise InputError(f"{where}: each published value is a table [[published]]")
    read_published(where, "", published)  # wrong values are an error for every reader of the file
    return StudyFile(study, arms, grid, tuple(published))


def _toml(text: str) -> dict[str, Any]:
    """The values of a TOML text; raises ValueError saying what is wrong where they are unusable."""
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # a number that Python cannot read
        raise ValueError("holds a number of too many digits") from error
    if wrong := _unfit(read):
        raise ValueError(wrong)
    return read


def _unfit(fields: Mapping[str, Any]) -> str:
    """What is wrong with values that no study can hold, in any field; empty where there are none.

    A file's name cannot have a null character, and a text cannot have half a character.
    """
    left: list[tuple[object, int]] = [(fields, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            return "is nested too deeply"
        if isinstance(value, Mapping):
            left += [(one, depth + 1) for pair in value.items() for one in pair]
        elif isinstance(value, list | tuple):
            left += [(one, depth + 1) for one in value]
        elif isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            return f"holds a character that no text can hold: {shown(value)}"
    return ""


def split_key(field: str) -> list[str]:
    """The keys of a dotted field such as ``pruning.layers."layer1.0"``, by TOML's own rules."""
    try:
        nested: object = _toml(f"{field} = 0")
        keys = []
        while isinstance(nested, dict):
            ((key, nested),) = nested.items()
            keys.append(key)
    except ValueError as error:  # no TOML, or a comment
        raise InputError(f"{field!r} is not a field, such as retraining.epochs") from error
    return keys


def field_paths(model: type[BaseModel] = StudySpec) -> list[str]:
    """Every field of a study by its dotted path, such as ``retraining.epochs``, in their order."""
    found = []
    for name, one in model.model_fields.items():
        kinds = (one.annotation, *get_args(one.annotation))
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        found += [name] if inner is None else [f"{name}.{path}" for path in field_paths(inner)]
    return found


def _unknown_field(field: str) -> InputError:
    """The error for a field that no study has, which names the nearest ones by their whole paths.

    A field is near by its own name or by its whole path: of ``epochs`` there are two, and that of
    retraining is named first.
    """

    def likeness(path: str) -> float:
        own, its = (one.rpartition(".")[2] for one in (field, path))
        whole = SequenceMatcher(None, field, path).ratio()
        return max(whole, SequenceMatcher(None, own, its).ratio())

    paths = list(reversed(field_paths()))
    best = sorted(paths, key=likeness, reverse=True)[:3]
    near = [path for path in best if likeness(path) > max(0.65, likeness(best[0]) - 0.08)]
    tables = {path.partition(".")[0] for path in paths if "." in path}
    return unknown(
        "field", field, (f"{n}.…" if n in tables else n for n in StudySpec.model_fields), near
    )


def _no_name(text: str) -> str:
    return (
        f"{shown(text)} is no name of a study, which has at most 100 letters and digits of ASCII "
        'and, but at its start, . _ - and +: set name = "…" in the study file'
    )


def _one_line(error: ValidationError) -> str:
    """The first error in one line, with the nearest fields where one is unknown."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    field = ".".join(where)
    if first["type"] == "extra_forbidden":
        inner = first["input"]
        while isinstance(inner, Mapping) and len(inner) == 1:  # a whole table is unknown
            ((key, inner),) = inner.items()
            field += f".{key}"
        return str(_unknown_field(field))
    if first["type"] == "missing":
        return f"the study lacks the field {field}"
    if field == "name" and first["type"] in ("string_pattern_mismatch", "string_too_long"):
        return f"name: {_no_name(first['input'])}"
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    got = "" if first["type"] == "value_error" else f", got {shown(first['input'])}"
    return f"{field}: {message[0].lower()}{message[1:]}{got}" if field else message
