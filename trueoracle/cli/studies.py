"""``trueoracle studies``: what is shipped."""

from __future__ import annotations

from typing import Any

from trueoracle.cli.console import Debug, Json, guarded, out, print_json, table


@guarded
def studies(as_json: Json = False, debug: Debug = False) -> None:
    """List the shipped studies: what each is for and how many networks it retrains.

    Arms are variants of a study to compare it with; run one as STUDY@ARM.

    Examples:

    - trueoracle studies

    - trueoracle studies --json | jq '.[].name'
    """
    rows = _rows()
    if as_json:
        print_json(rows)
        return
    made = table("study", "networks", "arms", "what it is for", right=("networks",))
    for row in rows:
        made.add_row(row["name"], f"{row['networks']:,}", ", ".join(row["arms"]), row["purpose"])
    out().print(made)


def _rows() -> list[dict[str, Any]]:
    from trueoracle.study.prepare import list_study
    from trueoracle.study.spec import arms_of, load_spec, shipped_studies

    rows = []
    for name in shipped_studies():
        spec = load_spec(name)
        candidates = list_study(spec)
        rows.append(
            {
                "name": name,
                "purpose": spec.purpose,
                "network": spec.network.name,
                "data": spec.data.name,
                "layers": dict(spec.pruning.layers),
                "candidates": len(candidates),
                "space": candidates.space,
                "seeds": list(spec.retraining.seeds),
                "networks": len(candidates) * len(spec.retraining.seeds),
                "epochs": spec.retraining.epochs,
                "arms": arms_of(name),
            }
        )
    return rows
