"""The command ``trueoracle``: its commands by name, each imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from trueoracle.cli.console import one_line_errors
from trueoracle.version import __version__

__all__ = ["COMMANDS", "app"]

COMMANDS = {
    "run": "Run a study, or all studies of a grid; run it again to resume.",
    "score": "Score every candidate of a study and rank them, without retraining any.",
    "search": "Choose one pruned network without retraining them all, and write it to a file.",
    "inspect": "Show what of a network can be pruned, and say why the rest cannot be.",
    "studies": "List the shipped studies: what each is for and how many networks it retrains.",
    "criteria": "List the criteria: what each computes, its paper, and whose definition it is.",
    "plan": (
        "Say how long retraining takes on so many workers, how idle they are, and what they cost."
    ),
    "power": "Say which tau a study would tell from chance, before anything is retrained.",
    "bench": "Test a criterion against pruned networks that have been retrained once and for all.",
    "reproduce": "List the paper's 45 published settings with ours beside them, or run one.",
    "status": "Show the recorded studies and how far each has come, the last changed one first.",
    "report": (
        "Write report.html, summary.json and the figures (PNG, SVG, PDF) of a recorded study."
    ),
    "watch": "Serve the report of a study while it runs: the page fills in as outcomes arrive.",
    "figures": (
        "Write the figures of a recorded study as wide as a paper's columns, with their values."
    ),
    "export": "Write all recorded tables: candidates, scores, outcomes and what lies behind them.",
    "analyse": "Apply the statistics of a study to tables of your own.",
    "verify": (
        "Hold everything recorded against its checksums, and say what is damaged and how to mend "
        "it."
    ),
}
"""The first line of each command's help. The list is written out here because importing all
commands takes longer than printing it."""

_SETTINGS: dict[str, Any] = {"rich_markup_mode": "markdown", "pretty_exceptions_enable": False}


class LazyGroup(TyperGroup):
    """Imports only the command that is called: function NAME of cli/NAME.py."""

    def __init__(self, **settings: Any) -> None:
        stubs = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}
        super().__init__(**settings | {"commands": stubs})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the command itself and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            with one_line_errors(debug="--debug" in rest):
                function = getattr(import_module(f"trueoracle.cli.{name}"), name)
            alone = typer.Typer(add_completion=False, **_SETTINGS)
            alone.command(name)(function)
            command = typer.main.get_command(alone)
        return name, command, rest


app = typer.Typer(
    name="trueoracle",
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done · 1 unexpected error · 2 bad input · 3 another process is at the "
        "study · 4 a file cannot be read or written · 5 the dense network, or all of a search, "
        "diverged · 6 some networks failed, and all others are recorded · 130 interrupted · 143 "
        "terminated"
    ),
    **_SETTINGS,
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

    Begin with: **trueoracle run glyphs-fc1-0.2**, then **trueoracle report glyphs-fc1-0.2**
    """
