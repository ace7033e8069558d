"""What the shell completes: studies, arms, criteria and fields. Nothing here imports torch."""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import typer

from trueoracle.cli import doors
from trueoracle.errors import TrueOracleError
from trueoracle.record.paths import DATABASE, NETWORKS

__all__ = ["criteria", "fields", "in_whole_words", "recorded", "studies"]

VARIABLE = "_TRUEORACLE_COMPLETE"
"""The variable in which the shell asks for completions."""


@contextmanager
def in_whole_words() -> Iterator[None]:
    """Within the block, complete ``study@arm`` as one word, which bash takes for three.

    Bash replaces only what follows the last ``@``, and gets no more than that.
    """
    if os.environ.get(VARIABLE) != "complete_bash" or "@" not in os.environ.get("COMP_WORDS", ""):
        yield
        return
    current, joined, place = int(os.environ["COMP_CWORD"]), list[str](), 0
    for number, word in enumerate(os.environ["COMP_WORDS"].split("\n")):
        if joined and (word == "@" or joined[-1].endswith("@")):
            joined[-1] += word
        else:
            joined.append(word)
        if number <= current:
            place = len(joined) - 1
    os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(place))
    before, at, _ = joined[place].rpartition("@")
    try:
        with redirect_stdout(io.StringIO()) as held:
            yield
    finally:
        for line in held.getvalue().splitlines():
            typer.echo(line.removeprefix(before + at))


Completer = Callable[[typer.Context, str], list[str]]


def _completer(known: Callable[[typer.Context, str], Iterable[str]]) -> Completer:
    """What typer calls: the names that are known and begin with the word; none on an error."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return sorted({one for one in known(ctx, incomplete) if one.startswith(incomplete)})
        except (TrueOracleError, OSError):
            return []

    return complete


@_completer
def studies(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Shipped studies and grids; after a ``+`` a grid's points, after an ``@`` arms."""
    if "@" in incomplete:
        before = incomplete.rpartition("@")[0]
        laid = doors.parse_reference(before).arms
        return [f"{before}@{arm}" for arm in doors.arms_of(before) if arm not in laid]
    base = incomplete.partition("+")[0]
    if "+" in incomplete and base in doors.shipped_grids():
        return [f"{base}+{point.label}" for point in doors.variants(base)]
    return [*doors.shipped_studies(), *doors.shipped_grids()]


@_completer
def recorded(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The folders below ``--runs``, by their names and the names of their studies."""
    for path in Path(ctx.params.get("runs") or "runs").iterdir():
        if any((path / name).is_file() for name in (DATABASE, NETWORKS)):
            yield from (path.name, path.name.rpartition("-")[0])


@_completer
def criteria(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The criteria of the study that the line names, or else all that are shipped."""
    # An option without its value keeps click from reading the line's arguments.
    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    for word in words[2:]:
        if doors.is_reference(word):
            return doors.variants(word)[0].spec.criteria
    return shipped_criteria()


@_completer
def fields(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The fields of a study, each with the ``=`` that its value follows."""
    return (f"{path}=" for path in doors.field_paths())


def shipped_criteria() -> list[str]:
    """The names of the shipped criteria, read from their code: running it would import torch."""
    folder = Path(__file__).parent.parent / "criteria"
    found = []
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Name("criterion"), [ast.Constant(str(name)), *_]):
                    found.append(name)
    return found
