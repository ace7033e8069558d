"""``trueoracle power``: what a study can find, before anything is retrained."""

from __future__ import annotations

from typing import Annotated

import typer

from trueoracle.analysis.numbers import number
from trueoracle.analysis.power import Assumptions
from trueoracle.analysis.power import power as plan
from trueoracle.cli.console import guarded, out, print_json
from trueoracle.cli.options import Debug, Json

_GIVEN = Assumptions()


@guarded
def power(
    filters: Annotated[int, typer.Argument(help="Filters of the pruned layers, in all.")],
    layers: Annotated[int, typer.Option(help="Layers (groups) that they are of.")] = 1,
    candidates: Annotated[
        int | None, typer.Option(help="Sampled candidates [default: all ways to prune].")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Retraining seeds.")] = 1,
    examples: Annotated[
        int | None, typer.Option(help="Test examples, to allow for others [default: given].")
    ] = None,
    networks: Annotated[int, typer.Option(help="Dense networks; one is given.")] = 1,
    criteria: Annotated[int, typer.Option(help="Criteria that are shown together.")] = 1,
    chance: Annotated[float, typer.Option(help="With which the tau is to be found.")] = 0.8,
    repeats: Annotated[
        float, typer.Option(help="Correlation of two retrainings of the same candidates.")
    ] = _GIVEN.repeats,
    between: Annotated[
        float, typer.Option(help="Standard deviation of tau between dense networks.")
    ] = _GIVEN.between,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which tau a study would tell from chance, before anything is retrained.

    A criterion orders candidates as a column of as many numbers as there are filters does: with
    ten filters of one dense network chance alone spreads tau by about 0.14, however many candidates
    are retrained. More filters and more dense networks help; more candidates do not.

    Examples:

    - trueoracle power 10 --seeds 3

    - trueoracle power 64 --candidates 1000 --seeds 2 --criteria 20

    - trueoracle power 20 --networks 6 --examples 8000
    """
    given = Assumptions(repeats=repeats, between=between)
    found = plan(
        filters, candidates=candidates, seeds=seeds, examples=examples, networks=networks,
        criteria=criteria, layers=layers, chance=chance, assumptions=given,
    )  # fmt: skip
    if as_json:
        print_json(found.as_dict())
        return
    out().print(f"{found.sentence()}.", soft_wrap=True)
    more = plan(
        2 * filters, candidates=candidates, seeds=seeds, examples=examples, networks=networks,
        criteria=criteria, layers=layers, chance=chance, assumptions=given,
    )  # fmt: skip
    several = plan(
        filters, candidates=candidates, seeds=seeds, examples=examples,
        networks=max(6, 2 * networks), criteria=criteria, layers=layers, chance=chance,
        assumptions=given,
    )  # fmt: skip
    out().print(
        f"With twice the filters {number(more.detectable, 2)}; with {several.networks} dense "
        f"networks {number(several.detectable, 2)}. What is assumed: docs/statistics.md."
    )
