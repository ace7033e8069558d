"""Letters and digits of 466 open fonts: harder than handwritten digits, with more to test on.

``scripts/render_glyphs.py`` drew them once. The splits divide fonts, not images, and superfamilies
stay together, so that the test images are of new designs. ``rendered/fonts.csv`` has the fonts'
names and licences.
"""

from __future__ import annotations

import csv
import string
from importlib.resources import files

import numpy as np
from PIL import Image

from trueoracle.errors import InputError

__all__ = ["CHARACTERS", "SIDE", "Arrays", "read_glyphs"]

Arrays = tuple[np.ndarray, np.ndarray]

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""The classes, in order: the first 10 are digits, the next 26 capitals."""

SIDE = 28
PARTS = ("train", "validation", "test")


def read_glyphs(
    classes: int = len(CHARACTERS), fonts: int | None = None, noise: float = 0.0
) -> tuple[Arrays, Arrays, Arrays]:
    """The training, validation and test part: uint8 images ``[N, 28, 28]`` and classes ``[N]``.

    ``classes`` is how many of :data:`CHARACTERS` are taken, the first ones; ``fonts`` how many of
    the training fonts (the other parts stay whole). ``noise`` is the standard deviation of normal
    noise (ink is 1) that is added to every image, the same at every reading. Raises
    :class:`InputError` for values out of range.
    """
    folder = files("trueoracle.data") / "rendered"
    with (folder / "fonts.csv").open(encoding="utf-8") as listed:
        parts = np.array([row["split"] for row in csv.DictReader(listed)])
    most = int((parts == "train").sum())
    _check(classes, fonts, most, noise)
    with (folder / "glyphs.png").open("rb") as file, Image.open(file) as sheet:
        levels = np.asarray(sheet)  # 16 levels of grey
    drawn = levels.reshape(len(parts), SIDE, len(CHARACTERS), SIDE).swapaxes(1, 2) * np.uint8(17)
    few = np.random.default_rng(0).permutation(most)[: fonts or most]
    chosen = {part: np.flatnonzero(parts == part) for part in PARTS}
    chosen["train"] = np.sort(chosen["train"][few])
    train, validation, test = (
        _part(drawn[chosen[part], :classes], noise, seed) for seed, part in enumerate(PARTS)
    )
    return train, validation, test


def _part(drawn: np.ndarray, noise: float, seed: int) -> Arrays:
    """Images ``[fonts, classes, H, W]`` as one list, and their classes."""
    fonts, classes = drawn.shape[:2]
    images = drawn.reshape(-1, SIDE, SIDE)
    if noise:
        drawn_noise = np.random.default_rng(seed).normal(0, 255 * noise, images.shape)
        images = np.rint(np.clip(images + drawn_noise, 0, 255)).astype(np.uint8)
    return images, np.tile(np.arange(classes, dtype=np.int64), fonts)


def _check(classes: int, fonts: int | None, most: int, noise: float) -> None:
    expected = {
        "classes": (classes, 2, len(CHARACTERS)),
        "fonts": (fonts, 2, most),
        "noise": (noise, 0, 1),
    }
    for name, (value, low, high) in expected.items():
        is_whole = name == "noise" or isinstance(value, int)
        if value is None or (not isinstance(value, bool) and is_whole and low <= value <= high):
            continue
        raise InputError(
            f"data.arguments: {name} of 'glyphs' lies between {low} and {high}, got {value!r}"
        )
