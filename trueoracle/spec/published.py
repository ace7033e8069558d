"""The paper's published values, and which of them belong to a study."""

from __future__ import annotations

import tomllib
from pathlib import Path

from trueoracle.spec.file import Published, read_published
from trueoracle.spec.grid import load_spec, load_variant
from trueoracle.spec.spec import StudySpec

__all__ = ["PRINTED", "all_settings", "has_published_values", "published"]

PRINTED = 5e-6
"""What a p-value that is printed as 0.00000 is less than: half of its last digit."""

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


def has_published_values(spec: StudySpec) -> bool:
    """Whether a study is a published one, also at small scale or with the other wiring.

    Other arms of a published study, such as a short retraining, are experiments of their own.
    """
    return all(spec.role(arm) in ("small", "as-released") for arm in spec.arms)


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
