"""What goes into a paper: figures as wide as its columns, and tables, each with its values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from trueoracle.analysis.cells import shown_cells
from trueoracle.errors import InputError, unknown
from trueoracle.figures.agreement import draw_agreement
from trueoracle.figures.ladder import draw_ladder
from trueoracle.figures.scatter import FORMATS, draw_scatter, save_figure
from trueoracle.files import write_text
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import Results
from trueoracle.report.drawings import (
    agreement_values,
    ladder_values,
    points_of,
    scatter_values,
    slug,
)
from trueoracle.report.headline import nothing_retrained
from trueoracle.report.table import TextTable, relations_table

__all__ = ["TABLES", "WIDTHS", "write_figures", "write_relations"]

WIDTHS = {1: 3.5, 2: 7.16}
"""Inches of one column and of both, in the two-column papers of most journals."""

_STYLE: dict[Any, Any] = {"font.size": 8, "axes.linewidth": 0.6, "lines.linewidth": 1.0}

Made = tuple[str, pd.DataFrame, Figure]
"""A figure: its name, its values and its drawing."""


def write_figures(
    results: Results,
    out: Path,
    formats: Sequence[str] = ("pdf",),
    columns: int = 1,
    rule: str = "last",
) -> list[Path]:
    """Write the study's figures, each as wide as ``columns`` of a paper, and its values as CSV.

    Figures are the ladder of criteria, a scatter for each criterion and outcome, and the rank
    agreement of criteria where there are several. PDF files hold the fonts, SVG files the letters'
    outlines, so that they look alike everywhere. Raises :class:`InputError` for an unknown format
    or width, and where nothing has been retrained; :class:`StoreError` where a file cannot be
    written.
    """
    for form in formats:
        if form not in FORMATS:
            raise unknown("format of figures", form, FORMATS)
    if columns not in WIDTHS:
        raise InputError(f"figures are 1 or 2 columns wide, got {columns}")
    written = []
    with mpl.rc_context(_STYLE):
        for name, values, figure in _figures(results, WIDTHS[columns], rule):
            stem = out / f"{results.spec.name}-{name}"
            written += save_figure(figure, stem, formats, outlines=True)
            written.append(_write_values(values, stem.parent / f"{stem.name}.csv"))
    return written


def _figures(results: Results, width: float, rule: str) -> Iterator[Made]:
    summary = results.summary(rule)
    relations = summary["relations"]
    if not relations:
        raise InputError(f"{results.spec.name}: {nothing_retrained(summary)}")
    if width > WIDTHS[1]:
        yield _ladder("criteria", relations, width)
    else:  # too narrow for two outcomes side by side
        for metric in dict.fromkeys(r["metric"] for r in relations):
            own = [r for r in relations if r["metric"] == metric]
            yield _ladder(f"criteria-{metric}", own, width)
    for relation in relations:
        yield _scatter(results, relation, width, rule)
    for compared in summary["comparison"].values():
        if (alike := compared.get("agreement")) is not None and len(alike["criteria"]) > 1:
            yield _agreement(alike, width)
            break  # it is among scores, the same for every outcome


def _ladder(name: str, relations: Sequence[Mapping[str, Any]], width: float) -> Made:
    names = ("agreement", "agreement_low", "agreement_high", "certain", "ceiling")
    values = pd.DataFrame(
        [
            {"outcome": r["outcome_name"], "criterion": r["criterion"]}
            | {name: r.get(name) for name in names}
            for r in relations
        ]
    )
    data = ladder_values(relations)
    return name, values, draw_ladder(data, (width, 0.9 + 0.22 * len(data.criteria)))


def _scatter(results: Results, relation: Mapping[str, Any], width: float, rule: str) -> Made:
    criterion, metric = relation["criterion"], relation["metric"]
    points = points_of(results, relation, rule)
    name = f"{slug(criterion)}-{metric}"
    if isinstance(results, PooledResults):  # one scatter for each dense network
        figure = results.plot(criterion, metric, rule)
        figure.set_size_inches(width, width * figure.get_figheight() / figure.get_figwidth())
        return name, points, figure
    data = scatter_values(results, relation, rule, points)
    return name, points, draw_scatter(data, (width, min(0.8 * width, 3.6)))


def _agreement(alike: Mapping[str, Any], width: float) -> Made:
    data = agreement_values(alike)
    values = pd.DataFrame(data.tau, columns=list(data.criteria))
    values.insert(0, "criterion", list(data.criteria))
    return "agreement", values, draw_agreement(data, (width, 0.8 * width))


def write_relations(results: Results, out: Path, form: str, rule: str = "last") -> list[Path]:
    """Write the table of criteria and outcomes as ``latex`` or ``markdown``, and its values as CSV.

    Raises :class:`InputError` where nothing has been retrained.
    """
    summary = results.summary(rule)
    relations = summary["relations"]
    if not relations:
        raise InputError(f"{results.spec.name}: {nothing_retrained(summary)}")
    made = relations_table([({"outcome": r["outcome_name"]}, r) for r in relations])
    ending, write = TABLES[form]
    paths = [out / f"relations.{ending}", out / "relations.csv"]
    write_text(paths[0], write(made))
    _write_values(results.correlate(rule=rule), paths[1])
    return paths


def _write_values(values: pd.DataFrame, path: Path) -> Path:
    content = shown_cells(values)
    write_text(path, content.to_csv(index=False))
    return path


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "τ": r"$\tau$", "–": "--", "…": r"\dots{}", "²": "$^2$", "×": r"$\times$",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


def _as_latex(made: TextTable) -> str:
    """A table for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        escaped = ("".join(_LATEX.get(one, one) for one in cell) for cell in cells)
        return f"{' & '.join(escaped)} \\\\"

    # A row that begins with a bracket would be read as the option of the line before.
    rows = [f"{{}}{line(row)}" if row[0].startswith("[") else line(row) for row in made.rows]
    places = "l" * made.texts + "r" * (len(made.headings) - made.texts)
    head = [f"\\begin{{tabular}}{{{places}}}", r"\toprule", line(made.headings), r"\midrule"]
    return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}", ""])


def _as_markdown(made: TextTable) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = (re.sub(r"([|\\`*_<])", r"\\\1", cell) for cell in cells)
        return f"| {' | '.join(escaped)} |"

    rule = ["---"] * made.texts + ["--:"] * (len(made.headings) - made.texts)
    return "\n".join([line(made.headings), f"| {' | '.join(rule)} |", *map(line, made.rows), ""])


TABLES = {"latex": ("tex", _as_latex), "markdown": ("md", _as_markdown)}
"""How the table of relations can be written: the ending of its file, and the function."""
