"""``trueoracle watch``: the report of a study that runs, served on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueoracle.cli import doors
from trueoracle.cli.completion import recorded
from trueoracle.cli.console import guarded, out
from trueoracle.cli.options import Debug, OutcomeRule, Runs, Settings
from trueoracle.errors import InputError
from trueoracle.spec.file import parse_overrides


@guarded
def watch(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A recorded study: its name, .toml or folder; left out: the last changed one.",
            autocompletion=recorded,
        ),
    ] = None,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    outcome: OutcomeRule = "last",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of this machine; 0 takes a free one.")
    ] = 0,
    debug: Debug = False,
) -> None:
    """Serve the report of a study while it runs: the page fills in as outcomes arrive.

    It is served on this machine's own address (127.0.0.1) alone, and writes nothing. Stopping it
    (Ctrl-C) disturbs nothing. Start the study in another terminal.

    Examples:

    - trueoracle watch

    - trueoracle watch digits-conv1-0.2 --port 8000
    """
    if settings and not study:
        raise InputError("--set says which run of a STUDY is meant: name the study too")
    overrides = parse_overrides(settings or ())
    run = doors.find_run(study, runs, overrides) if study else doors.last_run(runs)
    doors.check_rule(outcome)
    watched = doors.Watched(run, outcome)
    watched.version()  # so that a record that cannot be read is said here
    doors.serve(watched, port, lambda address: out().print(f"{address}  ·  Ctrl-C ends it"))
