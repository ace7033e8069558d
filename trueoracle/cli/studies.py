"""``trueoracle studies``: what is shipped."""

from __future__ import annotations

from typing import Any

from trueoracle.analysis.numbers import number
from trueoracle.cli import doors
from trueoracle.cli.console import guarded, out, print_json, table
from trueoracle.cli.options import Debug, Json
from trueoracle.errors import InputError
from trueoracle.spec.file import arms_of, shipped_grids, shipped_studies
from trueoracle.spec.grid import Variant, variants
from trueoracle.spec.spec import STREAMED, StudySpec

Counts = tuple[int | None, int | None]
"""Candidates, and the ways to prune."""


@guarded
def studies(as_json: Json = False, debug: Debug = False) -> None:
    """List the shipped studies: what each is for and how many networks it retrains.

    Arms are variants of a study to compare it with; run one as STUDY@ARM. A grid is several
    studies in one file, whose networks are added up.

    Examples:

    - trueoracle studies

    - trueoracle studies --json | jq '.[].name'
    """
    rows = _rows()
    if as_json:
        print_json(rows)
        return
    made = table(
        "study", "networks", "arms", "what it is for",
        right=["networks"], prose=["arms", "what it is for"], drops=["arms"],
    )  # fmt: skip
    for row in rows:
        networks = number(None) if row["networks"] is None else f"{row['networks']:,}"
        made.add_row(row["name"], networks, ", ".join(row["arms"]), row["purpose"])
    out().print(made)


def _rows() -> list[dict[str, Any]]:
    known: dict[str, Counts] = {}
    return [_row(name, known) for name in (*shipped_studies(), *shipped_grids())]


def _row(name: str, known: dict[str, Counts]) -> dict[str, Any]:
    """One row for a study, or for a grid: the sums over its points, and what its first point is.

    ``known`` are the counts by :func:`_listed`: many studies prune the same network alike.
    """
    found = variants(name)
    specs = [one.spec for one in found]
    spec = specs[0]
    for one in specs:
        if _listed(one) not in known:
            known[_listed(one)] = _counts(one)
    counts, spaces = zip(*(known[_listed(one)] for one in specs), strict=True)
    candidates = [count for count in counts if count is not None]
    networks = [
        count * len(one.retraining.seeds) * len(one.networks)
        for count, one in zip(counts, specs, strict=True)
        if count is not None
    ]
    return {
        "name": name,
        "purpose": spec.purpose,
        "network": spec.network.name,
        "data": spec.data.name,
        "layers": dict(spec.pruning.layers),
        "candidates": sum(candidates) if len(candidates) == len(specs) else None,
        "space": spaces[0] if len(specs) == 1 else None,
        "seeds": list(spec.retraining.seeds),
        "networks": sum(networks) if len(networks) == len(specs) else None,
        "epochs": spec.retraining.epochs,
        "arms": arms_of(name),
        "grid": _axes(found) if found[0].grid else None,
        "points": [spec.name for spec in specs] if found[0].grid else [],
    }


def _axes(points: list[Variant]) -> dict[str, list[Any]]:
    """The values of a grid by axis."""
    return {axis: list(dict.fromkeys(p.values[axis] for p in points)) for axis in points[0].values}


def _listed(spec: StudySpec) -> str:
    """The fields that the number of a study's candidates follows from, as text."""
    pruning = spec.pruning.model_dump_json(exclude={"seed", "surgery"})
    return f"{spec.task} {spec.network.model_dump_json()} {spec.data.model_dump_json()} {pruning}"


def _counts(spec: StudySpec) -> Counts:
    """How many candidates a study has, and out of how many ways to prune.

    The ways are not counted (None) for data that is streamed: a list need not build every network
    for ImageNet.
    """
    count = spec.pruning.candidates
    if isinstance(count, int) and spec.data.name in STREAMED:
        return count, None
    try:
        candidates = doors.list_study(spec)
    except InputError:  # a network or data set that this installation lacks
        return (count if isinstance(count, int) else None), None
    return len(candidates), candidates.space
