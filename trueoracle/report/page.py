"""The report: figures, a summary and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from trueoracle.analysis.numbers import many, number, p_value, percent
from trueoracle.errors import StoreError
from trueoracle.figures.scatter import FORMATS, save_figure
from trueoracle.report.summary import cost_in_words, summarise
from trueoracle.study.progress import duration
from trueoracle.study.results import Results, find_short
from trueoracle.study.scale import changes_in_words, titled

__all__ = ["WrittenReport", "as_source", "render", "slug", "write_report", "write_text"]


@dataclass(frozen=True)
class WrittenReport:
    """What was written where, and the summaries: the study's own first, then its arms'."""

    page: Path
    summary: Path
    figures: tuple[Path, ...]
    summaries: tuple[dict[str, Any], ...]


def write_report(
    results: Results, arms: list[Results], out: Path, rule: str = "last"
) -> WrittenReport:
    """Write ``report.html``, ``summary.json`` and ``figures/`` below ``out``.

    ``arms`` are other recorded variants of the study, shown beside it. Raises
    :class:`StoreError` where the disk does not take it.
    """
    figures: list[Path] = []
    summaries, sections = [], []
    for one in (results, *arms):
        short = find_short(one, (results, *arms))
        summary = summarise(one, rule, short)
        summaries.append(summary)
        to_draw = [(r, one.plot(r["criterion"], r["metric"], rule)) for r in summary["relations"]]
        if short is not None:
            after = summary["short_retraining"]["relations"]
            to_draw += [(r, one.plot_after(short, r["metric"], rule)) for r in after]
        drawn = []
        for relation, figure in to_draw:
            stem = f"{one.spec.name}-{slug(relation['criterion'])}-{relation['metric']}"
            written = save_figure(figure, out / "figures" / stem, FORMATS)
            figures.extend(written)
            drawn.append({"relation": relation, "source": as_source(written)})
        sections.append({"summary": summary, "figures": drawn})
    page, summary_path = out / "report.html", out / "summary.json"
    write_text(page, render("page.html", sections=sections))
    write_text(summary_path, json.dumps(summaries, indent=2, allow_nan=False) + "\n")
    return WrittenReport(page, summary_path, tuple(figures), tuple(summaries))


def as_source(written: Iterable[Path]) -> str:
    """A figure's SVG as the source of an image.

    An image of its own, so that ids inside one figure cannot meet another's.
    """
    svg = next(path for path in written if path.suffix == ".svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"


def render(template: str, **values: Any) -> str:
    """One of the templates with its values."""
    return _environment().get_template(template).render(**values)


def write_text(path: Path, text: str) -> None:
    """Write a file; raises :class:`StoreError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error


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
        "p_value": p_value,
        "percent": percent,
        "duration": duration,
        "cost": cost_in_words,
        "filters": pruned_in_words,
        "titled": titled,
    }
    return environment


def pruned_in_words(pruned: dict[str, Any]) -> str:
    """Such as ``"conv1 2, 7; conv2 0, 3"``; of single weights ``"mask 9f86d081884c7d65"``."""
    if isinstance(pruned.get("mask"), str):
        return f"mask {pruned['mask']}"
    return "; ".join(f"{name} {', '.join(map(str, which))}" for name, which in pruned.items())


def slug(criterion: str) -> str:
    """A criterion's name for a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in criterion)
