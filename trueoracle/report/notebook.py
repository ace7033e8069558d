"""What a notebook shows of results: a little HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from trueoracle.figures.drawing import png_source
from trueoracle.record.results import Results
from trueoracle.report.table import brief_table
from trueoracle.report.words import verdicts

__all__ = ["results_html"]

# The text is escaped: names come from files of anybody's.
_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<div>
<strong>{{ title }}</strong>: {{ state }}, {{ retrained }} of {{ to_retrain }} networks retrained
{% if badge %}
<p><em>{{ badge }}</em></p>
{% endif %}
{% for sentence in sentences %}
<p>{{ sentence }}</p>
{% endfor %}
{% if made %}
<table>
<thead><tr>{% for one in made.headings %}<th>{{ one }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in made.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if picture %}
<img src="{{ picture }}" alt="{{ alt }}" style="max-width: 100%; width: 480px">
{% endif %}
</div>
"""
)


def results_html(results: Results) -> str:
    """What is recorded: the verdicts, the table of relations, the first criterion's scatter."""
    summary = results.summary()
    relations: Sequence[Mapping[str, Any]] = summary["relations"]
    entries = [
        ({"criterion": r["criterion"], "outcome": r["outcome_name"].removeprefix("final ")}, r)
        for r in relations
    ]
    first = relations[0] if relations else None
    return _PAGE.render(
        title=summary["title"],
        badge=summary["badge"],
        state=summary["state"],
        retrained=f"{summary['retrained']:,}",
        to_retrain=f"{summary['to_retrain']:,}",
        sentences=verdicts(summary),
        made=brief_table(entries) if entries else None,
        picture=png_source(results.plot(first["criterion"], first["metric"])) if first else "",
        alt=first["verdict"] if first else "",
    )
