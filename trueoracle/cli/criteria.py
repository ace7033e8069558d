"""``trueoracle criteria``: what can score candidates before retraining."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from trueoracle.cli.console import guarded, out, print_json, table
from trueoracle.cli.options import Debug, Json
from trueoracle.criteria.base import CRITERIA, Criterion, find_criterion


@guarded
def criteria(
    name: Annotated[
        str | None, typer.Argument(help="One criterion, or module:attribute of your own.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the criteria: what each computes, and the paper it comes from.

    With NAME, everything that is known of that criterion. A score is low where pruning is right.

    Examples:

    - trueoracle criteria

    - trueoracle criteria taylor

    - trueoracle criteria --json | jq '.[].name'
    """
    if name is not None:
        one = find_criterion(name)
        if as_json:
            print_json(_row(one))
        else:
            out().print(f"{one.name}\n\n{one.documentation}\n\nsource: {one.source}")
        return
    rows = [_row(one) for _, one in sorted(CRITERIA.items())]
    if as_json:
        print_json(rows)
        return
    made = table("criterion", "what", "source")
    for row in rows:
        made.add_row(row["name"], row["what"], row["source"])
    out().print(made)


def _row(criterion: Criterion) -> dict[str, Any]:
    """One criterion as plain values."""
    first, _, _ = criterion.documentation.partition("\n")
    return {
        "name": criterion.name,
        "what": re.sub(r" (Scores )?``\[P\]``(, nats²)?\.$", "", first),
        "source": criterion.source,
        "applies_to": list(criterion.applies_to),
        "conditional": criterion.conditional,
        "uses_data": criterion.uses_data,
        "uses_recipe": criterion.uses_recipe,
        "documentation": criterion.documentation,
    }
