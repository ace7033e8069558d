"""``trueoracle analyse``: the same statistics for anybody's own table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

from trueoracle.cli.console import Debug, Json, guarded, out, print_json, table


@guarded
def analyse(
    points: Annotated[Path, typer.Argument(help="A CSV file with a header, one row a candidate.")],
    x: Annotated[str, typer.Option("--x", help="Column of scores before retraining; low = prune.")],
    y: Annotated[str, typer.Option("--y", help="Column of outcomes after retraining.")],
    higher_is_better: Annotated[
        bool,
        typer.Option(
            "--higher-is-better/--lower-is-better",
            help="Whether a higher outcome is better (an accuracy) or a lower one (a loss).",
        ),
    ] = True,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the scatter, to a .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply the statistics of a study to a table of your own.

    Rows whose x or y is missing are left out and counted.

    Examples:

    - trueoracle analyse points.csv --x pruned_loss --y accuracy

    - trueoracle analyse points.csv --x l1 --y test_loss --lower-is-better --json
    """
    from trueoracle.analysis.relation import relate
    from trueoracle.cli.tables import NUMBERS, relation_cells
    from trueoracle.errors import InputError
    from trueoracle.figures.scatter import FORMATS, draw_scatter, save_figure, scatter_data

    if figure is not None and figure.suffix[1:] not in FORMATS:
        raise InputError(f"--figure takes a .png, .svg or .pdf, got {figure}")
    scores, outcomes = _columns(points, x, y)
    relation = relate(scores, outcomes, higher_is_better=higher_is_better)
    if figure is not None:
        data = scatter_data(
            scores, outcomes, higher_is_better=higher_is_better, x_label=x, y_label=y
        )
        save_figure(draw_scatter(data), figure.with_suffix(""), [figure.suffix[1:]])
    fields = relation.as_dict()
    verdict = relation.sentence(f"the score {x}", f"the outcome {y}")
    if as_json:
        print_json({"x": x, "y": y, **fields, "verdict": verdict})
        return
    made = table(*NUMBERS, right=NUMBERS)
    better = "higher" if higher_is_better else "lower"
    out().print(f"{better} {y} is better; a perfect {x} has tau {-1 if higher_is_better else 1}\n")
    made.add_row(*relation_cells(fields))
    out().print(made)
    if relation.dropped:
        out().print(f"{relation.dropped} rows without a finite {x} and {y} are left out")
    out().print(verdict)


def _columns(points: Path, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Two numeric columns of a CSV file; raises :class:`InputError` in one line."""
    import pandas as pd

    from trueoracle.errors import InputError, first_line, unknown

    try:
        frame = pd.read_csv(points)
    except FileNotFoundError as error:
        raise InputError(f"no file {points}") from error
    except Exception as error:  # of the file system, a compression, an encoding, the parser
        raise InputError(f"{points} is not a CSV table: {first_line(error)}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{points} is not a CSV table: its rows have more fields than its header")
    columns = []
    for name in (x, y):
        if name not in frame.columns:
            raise unknown(f"column of {points}", name, map(str, frame.columns))
        try:
            columns.append(pd.to_numeric(frame[name]).to_numpy(dtype="float64"))
        except (ValueError, TypeError) as error:
            raise InputError(f"column {name!r} of {points} is not numeric: {error}") from error
    return columns[0], columns[1]
