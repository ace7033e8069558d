"""Templates to pages: the headings of their sections, and the scripts that they hold."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from trueoracle.analysis.numbers import many, number, percent
from trueoracle.report.glossary import GLOSSARY, term_of
from trueoracle.spec.scale import changes_in_words

__all__ = [
    "HEADINGS",
    "navigation",
    "render",
]

HEADINGS = {
    "trend": ("Agreement over the grid", "trend"),
    "forest": ("All studies together", "together"),
    "scatter": ("Score against outcome", "scatter"),
    "found": ("What was found", "found"),
    "candidates": ("Candidates", "candidates"),
    "ladder": ("The criteria, best first", "criteria"),
    "numbers": ("The numbers", "numbers"),
    "curves": ("Learning curves", "curves"),
    "picked": ("Picked candidates", "picked"),
    "filters": ("Which filters matter", "filters"),
    "short": ("Short against full retraining", "short"),
    "arms": ("Side by side, on equal axes", "side by side"),
    "alike": ("The criteria beside each other", "agreement"),
    "published": ("Published beside ours", "published"),
    "costs": ("Costs and time", "costs"),
    "power": ("What the data cannot tell", "limits"),
    "glossary": ("Glossary", "glossary"),
    "provenance": ("Provenance", "provenance"),
}
"""The sections of pages by their id, in order: the heading, and its name in the navigation."""


def navigation(shown: Collection[str]) -> list[tuple[str, str]]:
    """The links to a page's sections, in their order: (id, name)."""
    return [(one, name) for one, (_, name) in HEADINGS.items() if one in shown]


def render(template: str, *, data: Mapping[str, Any], **values: Any) -> str:
    """One of the templates with its values; ``data`` is what its script draws from.

    No name in ``data`` can end the block that holds it, and the page's policy lets no script run
    but its own.
    """
    library, script = _scripts()
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in (library, script)]
    return (
        _environment()
        .get_template(template)
        .render(
            data=htmlsafe_json_dumps(data, dumps=_compact),
            library=Markup(library),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=" ".join(f"'sha256-{digest.decode()}'" for digest in digests),
            glossary=GLOSSARY,
            headings={one: heading for one, (heading, _) in HEADINGS.items()},
            **values,
        )
    )


def _compact(value: Any, **_: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


@cache
def _scripts() -> tuple[str, str]:
    """The plotting library, and the page's own script: its files in the order of their names."""
    here = files("trueoracle.report")
    own = sorted((here / "script").iterdir(), key=lambda file: file.name)
    texts = [one.read_text(encoding="utf-8") for one in own if one.name.endswith(".js")]
    library = (here / "vendor" / "plot.min.js").read_text(encoding="utf-8")
    return library, "\n".join(texts)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trueoracle.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "changes": changes_in_words,
        "many": many,
        "number": number,
        "percent": percent,
        "term": term_of,
    }
    return environment
