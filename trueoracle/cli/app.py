"""The command ``trueoracle``: its commands by name."""

from __future__ import annotations

from typing import Annotated

import typer

from trueoracle.cli import (
    analyse,
    bench,
    criteria,
    export,
    inspect,
    report,
    reproduce,
    run,
    score,
    search,
    status,
    studies,
    verify,
)
from trueoracle.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="trueoracle",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done · 1 unexpected error · 2 bad input · 3 another process is at the "
        "study · 4 a file cannot be read or written · 5 the dense network diverged · "
        "130 interrupted · 143 terminated"
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trueoracle {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Does what a pruning criterion optimises before retraining predict the network after it?

    A study takes a trained network, lists the ways to prune it, scores each before retraining,
    retrains each, and relates the two.

    Begin with: **trueoracle run digits-conv1-0.2**, then **trueoracle report digits-conv1-0.2**
    """


app.command("run")(run.run)
app.command("score")(score.score)
app.command("search")(search.search)
app.command("inspect")(inspect.inspect)
app.command("studies")(studies.studies)
app.command("criteria")(criteria.criteria)
app.command("bench")(bench.bench)
app.command("reproduce")(reproduce.reproduce)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("analyse")(analyse.analyse)
app.command("verify")(verify.verify)
