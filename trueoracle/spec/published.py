"""The paper's published values, and which of them belong to a study."""

from __future__ import annotations

import tomllib
from pathlib import Path

from trueoracle.spec.file import Published, read_published
from trueoracle.spec.grid import load_spec, load_variant

__all__ = ["all_settings", "published"]

PUBLISHED = Path(__file__).parent / "published.toml"


def all_settings() -> list[Published]:
    """Every setting of the paper, those without values last; a shipped study repeats each."""
    return sorted(_in_file(), key=lambda one: (not one.has_values, one.setting))


def _in_file() -> tuple[Published, ...]:
    tables = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))
    found = [
        {"setting": setting, "x": x, **values}
        for x, settings in tables.items()
        for setting, values in settings.items()
    ]
    return read_published(PUBLISHED.name, "", found)


def published(study: str) -> list[Published]:
    """The published values of the study that a reference names.

    They are the values in the study's own file, if it has any, and otherwise those of the shipped
    study that has the same digest. Raises :class:`InputError` in one line.
    """
    variant = load_variant(study)
    if variant.published:
        return list(variant.published)
    settings, digest = _in_file(), variant.spec.digest
    same = {one for one in {s.study for s in settings} if load_spec(one).digest == digest}
    return [one for one in settings if one.study in same and one.has_values]
