"""Small scale and other changes in words, since a study that was cut down is not the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueoracle.analysis.numbers import many
from trueoracle.errors import InputError
from trueoracle.spec.grid import load_spec
from trueoracle.spec.spec import NetworkSpec, StudySpec

__all__ = [
    "badge_of",
    "changes_from_file",
    "changes_in_words",
    "differences_in_words",
    "scale_in_words",
    "scale_of",
    "titled",
]


def changes_from_file(spec: StudySpec) -> dict[str, Any]:
    """The dotted fields, with values, in which a study differs from the file of its name.

    The name includes the arms. For a shipped study, that is the shipped file; for another one, the
    file as it was when the study was read, which the study remembers.
    """
    shipped = _shipped(spec.name)
    if shipped is not None:
        return {field: ours for field, (ours, _) in spec.differences(shipped).items()}
    values = spec.leaves()
    return {field: values.get(field) for field in spec.changed}


def badge_of(spec: StudySpec) -> str:
    """In which fields a study is not what its name promises, in words; empty where it is."""
    said = (changes_in_words(changes_from_file(spec)), scale_in_words(spec))
    return "; ".join(filter(None, said))


def scale_of(spec: StudySpec) -> str:
    """``"full"``, ``"small"`` or, where fields of the file were changed, ``"changed"``."""
    return "changed" if spec.scale == "full" and changes_from_file(spec) else spec.scale


def titled(spec: StudySpec) -> str:
    """The title of a study's figures; changed fields are named on a second line."""
    return "\n".join(filter(None, (spec.title, changes_in_words(changes_from_file(spec)))))


def changes_in_words(changes: Mapping[str, Any]) -> str:
    """Changes, as in ``"changed: retraining.epochs 3, data.name mnist-5k"``; empty without any."""
    said = ", ".join(f"{field} {_value(field, value)}" for field, value in changes.items())
    return f"changed: {said}" if said else ""


_MOST_OF_OTHERS = 3


def differences_in_words(spec: StudySpec, main: StudySpec) -> str:
    """How a study differs from the one it stands beside: ``"retraining.epochs 3, not 15"``.

    Of an arm all fields are named, of another study a few: its name is another, too.
    """
    said = [
        f"{field} {_value(field, ours)}, not {_value(field, theirs)}"
        for field, (ours, theirs) in spec.differences(main).items()
    ]
    is_other = spec.name.partition("@")[0] != main.name.partition("@")[0]
    if is_other and len(said) > _MOST_OF_OTHERS:
        others = many(len(said) - _MOST_OF_OTHERS, "other field")
        said = [*said[:_MOST_OF_OTHERS], f"and {others}"]
    return ", ".join(said)


def scale_in_words(*specs: StudySpec) -> str:
    """What small-scale studies have in place of the full-scale ones; empty at full scale.

    An example is ``"small scale: mnist-5k in place of cifar10, 24 candidates in place of 1,000"``.
    For several studies (the points of a grid), it is everything that any of them has.
    """
    small = [spec for spec in specs if spec.scale == "small"]
    if not small:
        return ""
    said: dict[str, None] = {}  # keeps the order
    for spec in small:
        full = _shipped(spec.without("small"))
        if full is not None:  # it is None for a user's own study, whose file is not known
            said |= dict.fromkeys(_in_place(spec, full))
    return f"small scale: {', '.join(said)}" if said else "small scale"


def _shipped(name: str) -> StudySpec | None:
    try:
        return load_spec(name)
    except InputError:
        return None


def _in_place(spec: StudySpec, full: StudySpec) -> list[str]:
    """What a study has in place of another, in words."""
    pairs = [
        (_network(spec.network), _network(full.network)),
        (spec.data.name, full.data.name),
        (_size(spec.data.image_size), _size(full.data.image_size)),
        (_images(spec.data.train_images), _images(full.data.train_images)),
        (_candidates(spec), _candidates(full)),
        (_epochs(spec), _epochs(full)),
        (_seeds(spec), _seeds(full)),
    ]
    said = [f"{ours} in place of {theirs}" for ours, theirs in pairs if ours != theirs]
    if spec.network.weights != full.network.weights:
        said.append(f"{_weights(spec.network)} in place of {_weights(full.network)}")
    for field, (ours, theirs) in spec.differences(full).items():
        if field in _SAID or field.startswith("network."):
            continue
        if field.startswith("dense.") and full.network.arrives_trained:
            continue  # a network that arrives trained makes no use of the recipe
        words = field.replace(".", " ").replace("_", " ")
        said.append(f"{words} {_value(field, ours)} in place of {_value(field, theirs)}")
    return said


_SAID = {
    "data.name",
    "data.image_size",
    "data.train_images",
    "pruning.candidates",
    "retraining.epochs",
    "retraining.seeds",
}
"""The fields that are described in words of their own."""


_ABSENT = {"test_images": "all", "image_size": "its own", "train_images": "all"}


def _value(field: str, value: object) -> str:
    """A value of a study's field in words."""
    if value is None:
        return _ABSENT.get(field.rpartition(".")[2], "none")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(field, one)}" for key, one in value.items()) or "none"
    if isinstance(value, tuple | list):
        return " and ".join(_value(field, one) for one in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _network(network: NetworkSpec) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in network.arguments.items())
    return f"{network.name} ({arguments})" if arguments else network.name


def _weights(network: NetworkSpec) -> str:
    return network.weights or "a dense network trained here"


def _size(pixels: int | None) -> str:
    return f"images of {pixels} pixels" if pixels else "their own size"


def _images(count: int | None) -> str:
    return f"{count:,} training images" if count else "all"


def _epochs(spec: StudySpec) -> str:
    return many(spec.retraining.epochs, "epoch")


def _seeds(spec: StudySpec) -> str:
    return many(len(spec.retraining.seeds), "seed")


def _candidates(spec: StudySpec) -> str:
    count = spec.pruning.candidates
    if count == "all":
        return "every way to prune"
    return f"{count:,} candidates" if isinstance(count, int) else f"the candidates of {count}"
