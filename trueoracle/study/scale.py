"""Small scale, said plainly: a study cut to what a laptop holds is not the paper's."""

from __future__ import annotations

from typing import Literal

from trueoracle.errors import InputError
from trueoracle.study.spec import NetworkSpec, StudySpec, load_spec

__all__ = ["SMALL", "scale_in_words", "scale_of", "titled"]

SMALL = "small"
"""The arm of a study that is cut to what a laptop holds."""


def scale_of(name: str) -> Literal["small", "full"]:
    """The scale of a study by its name, which its arms are a part of."""
    return "small" if SMALL in name.split("@")[1:] else "full"


def titled(name: str) -> str:
    """A study's name for headings: small scale is said in words as well."""
    return f"{name} (small scale)" if scale_of(name) == SMALL else name


def scale_in_words(spec: StudySpec) -> str:
    """What a study at small scale has in place of the full one's; empty at full scale.

    Such as ``"small scale: mnist-5k in place of cifar10, 24 candidates in place of 1,000"``.
    """
    if scale_of(spec.name) != SMALL:
        return ""
    try:
        full = load_spec("@".join(part for part in spec.name.split("@") if part != SMALL))
    except InputError:  # a user's own, whose file is not known by its name
        return "small scale"
    told = [
        (_network(spec.network), _network(full.network)),
        (spec.data.name, full.data.name),
        (_size(spec.data.image_size), _size(full.data.image_size)),
        (_images(spec.data.train_images), _images(full.data.train_images)),
        (_candidates(spec), _candidates(full)),
        (_many(spec.retraining.epochs, "epoch"), _many(full.retraining.epochs, "epoch")),
        (_many(len(spec.retraining.seeds), "seed"), _many(len(full.retraining.seeds), "seed")),
    ]
    return "small scale: " + ", ".join(f"{ours} in place of {t}" for ours, t in told if ours != t)


def _network(network: NetworkSpec) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in network.arguments.items())
    return f"{network.name} ({arguments})" if arguments else network.name


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _size(pixels: int | None) -> str:
    return f"images of {pixels} pixels" if pixels else "their own size"


def _images(count: int | None) -> str:
    return f"{count:,} training images" if count else "all"


def _candidates(spec: StudySpec) -> str:
    count = spec.pruning.candidates
    return f"{count:,} candidates" if isinstance(count, int) else "every way to prune"
