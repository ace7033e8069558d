"""What a study is: a frozen value read from TOML, with a digest over every field."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from trueoracle.errors import InputError, first_line, shown, unknown
from trueoracle.training.recipe import DenseTraining, Frozen, Retraining, Seed

__all__ = [
    "CANDIDATE_FILES",
    "DataSpec",
    "NetworkSpec",
    "PruningSpec",
    "StudySpec",
    "arms_of",
    "file_fields",
    "load_spec",
    "merged",
    "override",
    "parse_overrides",
    "shipped_grids",
    "shipped_studies",
    "spec_from",
    "split_arm",
]

DIGEST_FORMAT = 2
"""Raise when the meaning of a recorded number changes though no field does."""

MOST_IMAGES = 10**9
MOST_CANDIDATES = 10**9
"""Far more than a study has: numbers of no use are refused before anything is built for them."""

STREAMED = ("imagenet", "folder")
"""Data sets that are read from image files as they are needed: too large for memory."""

CANDIDATE_FILES = (".json", ".pkl")
"""What lists candidates: a file of another study's, or of the paper's code."""

SHIPPED = Path(__file__).parent.parent / "studies"

_DEEPEST = 20
"""Tables and lists within each other: an arm's network's arguments are five deep."""

_OF_THE_FILE: dict[str, type] = {"arms": dict, "grid": dict, "published": list}
"""What a study file says beside the study: no part of it, nor of its digest."""


_LARGEST = 10**18
"""Of a network's arguments, which only the network understands."""

Whole = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
Real = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]


class NetworkSpec(Frozen):
    """The dense network: its architecture, and its weights where it arrives trained."""

    name: str = Field(description="a registered network, or module:factory")
    arguments: dict[str, bool | Whole | Real | str | tuple[Whole | Real | str, ...]] = Field(
        {}, description="of the network, such as {width = 20}"
    )
    weights: str | None = Field(
        None,
        description="trained weights: a .safetensors or PyTorch file, or torchvision:NAME for "
        "those of its hub; none, or the word 'none': train it",
    )
    fingerprint: str | None = Field(
        None, description="set by Study for a network given in Python: hashes of it"
    )

    @field_validator("arguments", mode="before")
    @classmethod
    def _arguments_are_plain(cls, arguments: object) -> object:
        # Said here, because a union's own errors speak of each of its members.
        for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
            for one in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(one, int | float | str) or (
                    not isinstance(one, str) and not abs(one) <= _LARGEST
                ):
                    raise ValueError(
                        f"{name} takes text, true or false, a number up to {_LARGEST:.0e}, or a "
                        f"list of them, got {shown(value)}"
                    )
        return arguments

    @field_validator("weights")
    @classmethod
    def _none_takes_weights_away(cls, weights: str | None) -> str | None:
        # TOML has no null, and an arm may have to do without the weights of its study.
        return None if weights == "none" else weights

    @property
    def arrives_trained(self) -> bool:
        """Whether the dense network needs no training here."""
        return self.weights is not None or self.fingerprint is not None


class DataSpec(Frozen):
    """The data set and how its training images are split."""

    name: str = Field("mnist-5k", description="a registered data set, or folder for one's own")
    path: str | None = Field(
        None, description="of folder and imagenet: where train/ and val/ with a folder a class are"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="resize to this height and width; none: the data set's own",
    )
    train_images: int | None = Field(
        None,
        ge=1,
        le=MOST_IMAGES,
        description="at most so many training images, equally from each class",
    )
    test_images: int | None = Field(
        None, ge=1, le=MOST_IMAGES, description="the same of the test images"
    )
    validation_images: int = Field(
        500, ge=0, le=MOST_IMAGES, description="taken from the training images"
    )
    measured_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of the training images, equally from each class: those on which train loss is "
        "measured; imagenet's and folder's default is 0.1",
    )
    split_seed: Seed = Field(0, description="of all these draws")
    uint8: Literal["scale", "keep"] | None = Field(
        None,
        description="images given in Python as whole numbers from 0 to 255: divide by 255, or read "
        "them as they are; none: ask",
    )
    fingerprint: str | None = Field(
        None, description="set by Study for data given in Python: SHA-256 of images and labels"
    )

    @model_validator(mode="after")
    def _large_sets_are_measured_in_part(self) -> DataSpec:
        if self.name in STREAMED and "measured_fraction" not in self.model_fields_set:
            # A default, not a field that was set: what extends this has its own.
            self.__dict__["measured_fraction"] = 0.1
        return self


class PruningSpec(Frozen):
    """Which layers lose how many filters or weights, in which ways."""

    kind: Literal["structured", "unstructured"] = Field(
        "structured", description="unstructured: single weights are set to zero, and held there"
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="unstructured: the sparsity of each layer, or of all of them together"
    )
    layers: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        min_length=1,
        description="layer name or pattern to pruning ratio (or sparsity): {conv1 = 0.5}",
    )
    candidates: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] | str = Field(
        "all",
        description="all: every way to prune; a number: so many sampled without repeats; a .json "
        "file: those that another study wrote; a .pkl file: a combination file of the paper's code",
    )
    seed: Seed = Field(0, description="of the sample")
    surgery: Literal["exact", "as-released"] = Field(
        "exact", description="as-released: the wiring of the paper's released code"
    )

    @field_validator("candidates", mode="before")
    @classmethod
    def _all_or_a_number(cls, value: object) -> object:
        # Said here, because a union's own errors speak of each of its members.
        if value == "all" or (isinstance(value, str) and value.endswith(CANDIDATE_FILES)):
            return value
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not (1 <= value <= MOST_CANDIDATES)
        ):
            raise ValueError(
                f"expected 'all', a whole number from 1 to {MOST_CANDIDATES:,} or a .json or .pkl "
                f"file, got {shown(value)}"
            )
        return value

    @model_validator(mode="after")
    def _seed_belongs_to_a_sample(self) -> PruningSpec:
        if isinstance(self.candidates, str) and self.seed != 0:
            raise ValueError(f"seed does nothing while candidates = {self.candidates!r}")
        return self

    @model_validator(mode="after")
    def _unstructured_fits(self) -> PruningSpec:
        if self.kind == "structured":
            if self.scope != "layer":
                raise ValueError("scope = 'global' needs kind = 'unstructured'")
            return self
        if self.surgery != "exact":
            raise ValueError("surgery = 'as-released' needs kind = 'structured'")
        if self.candidates == "all":
            raise ValueError("kind = 'unstructured' needs a number of candidates to sample")
        if str(self.candidates).endswith(".pkl"):
            raise ValueError(f"{self.candidates} lists filters, which kind = 'structured' prunes")
        if self.scope == "global" and len(set(self.layers.values())) > 1:
            raise ValueError("scope = 'global' takes one sparsity for all layers")
        return self


class StudySpec(Frozen):
    """One dense network × one pruning × criteria × a retraining recipe × seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$", max_length=100)
    purpose: str = Field("", description="one line for the list of studies")
    task: str = Field(
        "classification",
        description="what is trained for: classification, multilabel, regression, segmentation, "
        "next-token, answers, or module:attribute of one's own",
        max_length=500,
    )
    network: NetworkSpec
    data: DataSpec = DataSpec()
    dense: DenseTraining = DenseTraining()
    pruning: PruningSpec
    criteria: tuple[str, ...] = Field(("oracle", "l1"), min_length=1)
    retraining: Retraining = Retraining()

    @field_validator("criteria")
    @classmethod
    def _criteria_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"criteria must differ, got {list(names)}")
        return names

    @property
    def digest(self) -> str:
        """12 hex digits over every field, defaults included; only name and purpose stand aside."""
        return _digest(self.model_dump(mode="json", exclude={"name", "purpose"}))

    @property
    def dense_digest(self) -> str:
        """What the dense network depends on: studies that agree in it share the network."""
        return _digest(self.model_dump(mode="json", include={"task", "network", "data", "dense"}))

    @property
    def score_digest(self) -> str:
        """What a criterion's score of one candidate depends on, besides the criterion."""
        return _digest([self.dense_digest, self.pruning.surgery])

    @property
    def outcome_digest(self) -> str:
        """What the retraining of one candidate with one seed depends on."""
        recipe = self.retraining.model_dump(mode="json", exclude={"seeds"})
        return _digest([self.dense_digest, self.pruning.surgery, recipe])

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.digest}"


def _digest(value: object) -> str:
    text = json.dumps([DIGEST_FORMAT, value], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, by name; names with an underscore are bases."""
    return {p.stem: p for p in sorted(SHIPPED.glob("*.toml")) if not p.stem.startswith("_")}


def shipped_grids() -> dict[str, Path]:
    """The grids of studies that come with the package, by name."""
    return {p.stem: p for p in sorted((SHIPPED / "grids").glob("*.toml"))}


def load_spec(study: str, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Read a study: a shipped name or the path of a ``.toml``, with ``@arm`` for one of its arms.

    Several arms are laid one on another: ``study@small@as-released``. ``overrides`` maps dotted
    fields to values and has the last word. A point of a shipped grid is ``grid+point``. Raises
    :class:`InputError`, in one line, for a file that is missing, is no TOML, or does not make a
    study.
    """
    from trueoracle.spec.grid import find_point  # which reads its points' studies by this

    if (point := find_point(study, overrides)) is not None:
        return point.spec
    fields = file_fields(study)
    if fields["grid"]:
        raise InputError(
            f"{study!r} is a grid of studies, not one: 'trueoracle run' and 'trueoracle report' "
            f"take it whole, and one of its points is {split_arm(study)[0]}+POINT"
        )
    return spec_from({k: v for k, v in fields.items() if k not in _OF_THE_FILE}, overrides)


def file_fields(study: str) -> dict[str, Any]:
    """What a study's file says, with its arms laid on, and all that it extends.

    Beside the fields of the study: ``arms``, ``grid`` (dotted field to values) and ``published``
    (a list of tables), empty where the file has none.
    """
    from trueoracle.reproduce.published import read_published  # which reads its studies by this

    reference, wanted = split_arm(study)
    fields = _read(_locate(reference))
    arms = wanted.split("@") if wanted else []
    if "short" in arms and "small" in arms[arms.index("short") :]:
        # What is laid last has the last word, and small says for how many epochs, too.
        in_order = "@".join(["small", *(arm for arm in arms if arm != "small")])
        raise InputError(f"{study!r} would not be short: lay small first: '{reference}@{in_order}'")
    for arm in arms:
        if arm not in fields["arms"]:
            raise unknown(f"arm of {reference!r}", arm, fields["arms"])
        # With arms of its own, an arm changes those that are laid on it.
        fields = merged(fields, fields["arms"][arm])
        _check_file(reference, fields)
        fields["name"] = f"{fields['name']}@{arm}"
    read_published(study, fields)  # a wrong value is told by whatever reads the file
    return fields


def arms_of(study: str) -> list[str]:
    """The names of the arms that a study's file offers."""
    return list(_read(_locate(split_arm(study)[0]))["arms"])


def split_arm(study: str) -> tuple[str, str]:
    """A study's name or path, and the arms that are named behind an ``@`` (empty: none)."""
    folder, slash, name = study.rpartition("/")
    reference, _, arm = name.partition("@")
    return folder + slash + reference, arm


def spec_from(fields: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """A study from plain fields; raises :class:`InputError` in one line."""
    given = override(fields, overrides or {})
    if wrong := _unfit(given):
        raise InputError(f"the study {wrong}")
    try:
        return StudySpec.model_validate(given)
    except ValidationError as error:
        raise InputError(_one_line(error)) from error


def override(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with dotted fields set to values."""
    plain = dict(fields)
    for field, value in changes.items():
        nested: Any = value
        for key in reversed(_split_key(field)):
            nested = {key: nested}
        plain = merged(plain, nested)
    return plain


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """``field=value`` texts to values, read as TOML; what is no TOML value is taken as a string."""
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
        # Behind a new line there may be more that is TOML: it is no value, then.
        values[field.strip()] = read["value"] if list(read) == ["value"] else text.strip()
    return values


def _toml(text: str) -> dict[str, Any]:
    """What TOML says; raises ValueError with what is wrong, where its values are of no use."""
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # a number that Python does not read
        raise ValueError("holds a number of too many digits") from error
    if wrong := _unfit(read):
        raise ValueError(wrong)
    return read


def _unfit(fields: Mapping[str, Any]) -> str:
    """What no study can hold, wherever in its fields it is; empty where there is nothing such.

    A null character can be in no name of a file, and half a character in no text.
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


def _locate(reference: str) -> Path:
    if reference.endswith(".toml"):
        return Path(reference)
    shipped = shipped_studies() | shipped_grids()
    if reference not in shipped:
        raise unknown("study", reference, shipped)
    return shipped[reference]


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a study file, on top of those of the file that it extends."""
    try:
        here = path.resolve()
        if here in seen:
            raise InputError(f"{path} extends itself")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"no study file {path}") from error
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no text, no name, a ring of links
        raise InputError(f"cannot read the study file {path}: {first_line(error)}") from error
    try:
        fields = _toml(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except ValueError as error:
        raise InputError(f"{path} {error}") from error
    base = fields.pop("extends", None)
    fields.setdefault("name", path.stem)
    for name, kind in _OF_THE_FILE.items():
        fields.setdefault(name, kind())
    _check_file(str(path), fields)
    if base is None:
        return fields
    if not isinstance(base, str):
        raise InputError(f"{path}: extends takes a shipped study or a .toml, got {base!r}")
    bases = {p.stem: p for p in SHIPPED.glob("*.toml")}
    if not base.endswith(".toml") and base not in bases:
        raise unknown("study to extend", base, bases)
    parent = path.parent / base if base.endswith(".toml") else bases[base]
    inherited = _read(parent, (*seen, here))
    for own in ("name", "purpose", "grid", "published"):  # what a base is, the study is not
        inherited.pop(own, None)
    return merged(inherited, fields)


def _check_file(path: str, fields: Mapping[str, Any]) -> None:
    """Check the form of what a file says beside the study."""
    arms, grid, published = (fields[name] for name in _OF_THE_FILE)
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
        raise InputError(f"{path}: arms are tables of fields, such as [arms.short.retraining]")
    if not isinstance(grid, dict):
        raise InputError(f"{path}: [grid] is a table of fields, each with a list of values")
    if not isinstance(published, list) or not all(isinstance(one, dict) for one in published):
        raise InputError(f"{path}: each published value is a table [[published]]")


# Ratios belong together: a study that names other layers does not mean to add to its base's.
_REPLACED_WHOLE = {"layers"}


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with ``changes`` merged in, tables within tables too."""
    result = dict(fields)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key not in _REPLACED_WHOLE:
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _split_key(field: str) -> list[str]:
    """``pruning.layers."layer1.0"`` to its keys, by TOML's own rules."""
    try:
        nested: object = _toml(f"{field} = 0")
        keys = []
        while isinstance(nested, dict):
            ((key, nested),) = nested.items()
            keys.append(key)
    except ValueError as error:  # no TOML, or a comment
        raise InputError(f"{field!r} is not a field, such as retraining.epochs") from error
    return keys


def _one_line(error: ValidationError) -> str:
    """The first thing wrong, with the nearest field where one is unknown."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    field = ".".join(where)
    if first["type"] == "extra_forbidden":
        model: Any = StudySpec
        for part in where[:-1]:
            annotation = model.model_fields[part].annotation
            model = annotation if isinstance(annotation, type) else model
        parent = ".".join(where[:-1]) or "the study"
        return str(unknown(f"field of {parent}", where[-1], model.model_fields))
    if first["type"] == "missing":
        return f"the study lacks the field {field}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {shown(first['input'])}"
    return f"{field}: {message[0].lower()}{message[1:]}{got}" if field else message
