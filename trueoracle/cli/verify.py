"""``trueoracle verify``: whether what is recorded is what was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trueoracle.cli.completion import recorded
from trueoracle.cli.console import err, guarded, out, print_json
from trueoracle.cli.options import Debug, Json, Runs, Settings
from trueoracle.errors import StoreError, TrueOracleError, first_line
from trueoracle.record.networks import runs_of
from trueoracle.record.paths import DATABASE, NETWORKS
from trueoracle.record.runs import find_run, recorded_runs
from trueoracle.record.verify import FAILURES, Verified, repair
from trueoracle.record.verify import verify as verified
from trueoracle.spec.file import parse_overrides


@guarded
def verify(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY]...",
            help="Recorded studies: names, .toml or folders [default: all].",
            autocompletion=recorded,
        ),
    ] = None,
    mend: Annotated[
        bool,
        typer.Option("--repair", help="Set aside what is damaged, so that running does it again."),
    ] = False,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hold everything recorded against its checksums, and say what is damaged and how to mend it.

    Exit code 4 where something is damaged. With --repair, rows and files that are damaged are kept
    in a folder damaged-… of the run, and the same command as before (run, search) makes them again.

    Examples:

    - trueoracle verify

    - trueoracle verify digits-conv1-0.2 --json

    - trueoracle verify runs/digits-conv1-0.2-0123456789ab --repair
    """
    overrides = parse_overrides(settings or ())
    named = [find_run(study, runs, overrides) for study in studies or ()]
    folders = [part for folder in named for part in _parts_of(folder)]
    if not studies:
        several = sorted(path.parent for path in runs.glob(f"*/{NETWORKS}"))
        folders = [*recorded_runs(runs), *several]
    found = [verified(folder) for folder in folders]
    if not as_json:
        _show(found, runs)
    done: dict[Path, list[str]] = {}
    errors: dict[Path, str] = {}
    for one in found if mend else ():
        if one.damaged:
            try:
                done[one.folder] = repair(one.folder)
            except (TrueOracleError, OSError) as error:  # the others are repaired all the same
                errors[one.folder] = first_line(error)
    found = [verified(one.folder) if one.folder in done else one for one in found]
    if as_json:
        print_json([_as_dict(one, done, errors) for one in found])
    for folder, lines in done.items():
        for line in lines:
            err().print(f"{folder.name}: {line}")
    for folder, line in errors.items():
        err().print(f"{folder.name}: {line}", soft_wrap=True)
    if damaged := [one for one in found if one.damaged]:
        names = ", ".join(str(one.folder) for one in damaged)
        raise StoreError(f"damaged: {names}")


def _as_dict(
    one: Verified, done: Mapping[Path, list[str]], errors: Mapping[Path, str]
) -> dict[str, Any]:
    said = {"repaired": done.get(one.folder, []), "error": errors.get(one.folder)}
    return one.as_dict() | said


def _parts_of(folder: Path) -> list[Path]:
    """A study's folders that hold records; of one over several networks also the study's own."""
    own = [folder] if (folder / NETWORKS).is_file() else []
    each: list[Path] = []
    try:
        each = runs_of(folder)
    except StoreError:  # as the study's own folder is then said to be
        if not own:
            raise
    return [*own, *(run for run in each if (run / DATABASE).is_file())]


def _show(found: list[Verified], runs: Path) -> None:
    console = out()
    if not found:
        console.print(f"no study is recorded in {runs}: 'trueoracle run STUDY' records one")
    for one in found:
        counts = f" ({len(one.parts)} parts)" if one.parts else ""
        console.print(f"{one.folder.name}: {one.state}{counts}", soft_wrap=True)
        for part in one.parts:
            if part.state != "whole" or part.name == FAILURES:
                mend = f"; {part.mend}" if part.mend else ""
                console.print(f"  {part.state}  {part.name}: {part.what}{mend}", soft_wrap=True)
