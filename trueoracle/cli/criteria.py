"""``trueoracle criteria``: what can score candidates before retraining."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from trueoracle.cli import completion
from trueoracle.cli.console import guarded, out, print_json, table
from trueoracle.cli.options import Debug, Json
from trueoracle.criteria.base import BASES, CRITERIA, Criterion, find_criterion


@guarded
def criteria(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One criterion, or module:attribute of your own.",
            autocompletion=completion.criteria,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the criteria: what each computes, its paper, and whose definition it is.

    With NAME, everything that is known of that criterion, its parameters among it. A score is low
    where pruning is right.

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
            out().print(_in_full(one))
        return
    rows = [_row(one) for _, one in sorted(CRITERIA.items())]
    if as_json:
        print_json(rows)
        return
    made = table(
        "criterion", "what", "definition", "source",
        prose=["what", "source"], drops=["definition"],
    )  # fmt: skip
    for row in rows:
        basis = next((one for one in BASES if row["basis"].startswith(one)), "")
        made.add_row(row["name"], row["what"], basis, row["source"])
    out().print(made)


def _in_full(criterion: Criterion) -> str:
    """All that is known of one criterion, for reading."""
    facts = [f"source: {criterion.source}"]
    facts += [f"definition: {criterion.basis}"] if criterion.basis else []
    facts += [
        f"parameter: {name} = {_written(value)}, another one by {criterion.name}:{name}=…"
        for name, value in criterion.parameters.items()
    ]
    return "\n\n".join([criterion.name, criterion.documentation, "\n".join(facts)])


def _written(value: Any) -> str:
    """A parameter's value as a study writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(criterion: Criterion) -> dict[str, Any]:
    """One criterion as plain values."""
    first, _, _ = criterion.documentation.partition("\n")
    return {
        "name": criterion.name,
        "what": re.sub(r" (Scores )?``\[P\]``(, nats²)?\.$", "", first),
        "source": criterion.source,
        "basis": criterion.basis,
        "parameters": criterion.parameters,
        "applies_to": list(criterion.applies_to),
        "conditional": criterion.conditional,
        "uses_data": criterion.uses_data,
        "uses_recipe": criterion.uses_recipe,
        "documentation": criterion.documentation,
    }
