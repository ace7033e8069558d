"""What the commands share: where text goes, how errors end, how progress is shown."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from trueoracle.cli import completion, signals
from trueoracle.cli.fitted import FittedTable
from trueoracle.errors import (
    RETRY,
    FailedError,
    InputError,
    StoreError,
    TrueOracleError,
    first_line,
    is_out_of_memory,
)
from trueoracle.report.table import TextTable
from trueoracle.run.progress import (
    PlainProgress,
    Progress,
    Rate,
    SilentProgress,
    one_line,
    printable,
)

__all__ = [
    "check_failures",
    "err",
    "guarded",
    "one_line_errors",
    "out",
    "print_json",
    "shown_progress",
    "text_table",
]

INTERRUPTED = 130
_LONGEST = 2000
"""Characters of an error's line: the whole of a long name says no more."""


class PlainConsole(Console):
    """Prints text as it is: no markup, no emoji, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # all that is printed, tables too
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """Let the command handle it: rich itself would end the program."""
        raise BrokenPipeError


def out() -> Console:
    """Standard output; where it is not a terminal, lines have any length and are not broken."""
    return PlainConsole(width=None if sys.stdout.isatty() else 100_000)


def err() -> Console:
    """Standard error."""
    return PlainConsole(stderr=True, soft_wrap=True)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it, which ends in one line and an exit code when it fails.

    ``--debug`` lets the exception through. A parameter whose type is a dataclass stands for one
    option per field; a field without a :class:`typer.Option` has its help in its metadata.
    """
    plain: list[inspect.Parameter] = []
    grouped: dict[str, type] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint) and isinstance(hint, type):
            grouped[parameter.name] = hint
            plain += _options(hint)
        else:
            only = inspect.Parameter.KEYWORD_ONLY
            plain.append(parameter.replace(annotation=hint, kind=only))

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        with one_line_errors(debug=given.get("debug", False)):
            _check_texts(given)
            with _stdout_for_json() if given.get("as_json") else nullcontext():
                for name, group in grouped.items():
                    given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
                command(**given)

    wrapper.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {one.name: one.annotation for one in plain}
    return wrapper


def check_failures(failed: int) -> None:
    """Raise :class:`FailedError` where retrainings failed, after all else has been printed."""
    if failed:
        many = "retrainings" if failed > 1 else "retraining"
        raise FailedError(f"{failed:,} {many} failed, all others are recorded; {RETRY}")


def _options(group: type) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters of a command."""
    hints = get_type_hints(group, include_extras=True)
    found = []
    for one in fields(group):
        hint = hints[one.name]
        if get_origin(hint) is not Annotated:
            known = completion.criteria if one.name == "criterion" else None
            hint = Annotated[hint, typer.Option(help=one.metadata["help"], autocompletion=known)]
        found.append(
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hint
            )
        )
    return found


@contextmanager
def one_line_errors(*, debug: bool) -> Iterator[None]:
    """Turn what is raised into one line and an exit code, unless ``debug`` lets it through."""
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted: what was committed is kept; the same command goes on", INTERRUPTED)
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        signals.check()
        if debug:
            raise
        _end(*_ending(error))


def _check_texts(given: Mapping[str, object]) -> None:
    """Refuse a null character in any argument: no file's name can hold one."""
    for value in given.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str | Path) and "\0" in str(one):
                raise InputError(f"a null character is in {str(one)!r}")


def _ending(error: BaseException) -> tuple[str, int]:
    """The line that says what went wrong, and the exit code."""
    reason = first_line(error)
    if isinstance(error, TrueOracleError):
        return f"error: {error}", error.exit_code
    if isinstance(error, BrokenPipeError):
        return "error: the reader of the output went away", StoreError.exit_code
    if isinstance(error, OSError):
        what = f" {error.filename}" if error.filename else ""  # the output has no name
        wrong_name = error.errno == errno.ENAMETOOLONG
        code = InputError.exit_code if wrong_name else StoreError.exit_code
        return f"error: cannot read or write{what}: {error.strerror or error}", code
    if is_out_of_memory(error):
        return f"error: out of memory: {reason}", InputError.exit_code
    if isinstance(error, SystemExit):
        return f"error: code of your own ended the program: {error!r}", InputError.exit_code
    return f"unexpected error: {type(error).__name__}: {reason} (--debug shows where)", 1


def _end(message: str, code: int) -> NoReturn:
    line = one_line(message)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    with suppress(OSError):  # the exit code says it too
        err().print(line)
    raise typer.Exit(code)


_JSON_STREAM: ContextVar[TextIO | None] = ContextVar("json_stream", default=None)


@contextmanager
def _stdout_for_json() -> Iterator[None]:
    """Within the block, everything but :func:`print_json` prints to standard error."""
    token = _JSON_STREAM.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _JSON_STREAM.reset(token)


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    text = json.dumps(value, indent=2, allow_nan=False, default=str)
    typer.echo(text, file=_JSON_STREAM.get())


def text_table(made: TextTable, drops: Sequence[str] = ()) -> FittedTable:
    """A table of text for the terminal, which leaves ``drops`` out first; marked rows are bold."""
    shown = table(*made.headings, right=made.headings[made.texts :], drops=drops)
    for place, row in enumerate(made.rows):
        shown.add_row(*row, bold=place in made.marked)
    return shown


def table(
    *columns: str, right: Sequence[str] = (), prose: Sequence[str] = (), drops: Sequence[str] = ()
) -> FittedTable:
    """A table with the named columns, as :class:`FittedTable` shows them."""
    return FittedTable(columns, frozenset(right), frozenset(prose), tuple(drops))


class BarProgress:
    """A rich progress bar for each stage, with units per hour and the time left."""

    def __init__(self) -> None:
        self._bars = _bars(err())
        self._task: TaskID | None = None
        self._unit = ""
        self._rate = Rate(0, 0)

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        # A bar of its own, so that the bars of a grid's many studies scroll away.
        self._bars.stop()
        self._bars = _bars(self._bars.console)
        self._bars.start()
        self._unit, self._rate = unit, Rate(total, done)
        self._task = self._bars.add_task(one_line(name), total=total, completed=done, rate=unit)

    def advance(self, count: float = 1, note: str = "") -> None:
        self._rate.add(count)
        if self._task is not None:
            parts = [self._rate.text(self._unit) or self._unit, note]
            shown = one_line(", ".join(part for part in parts if part))
            self._bars.update(self._task, advance=count, rate=shown)

    def message(self, text: str) -> None:
        self._bars.console.print(one_line(text))


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", style="dim", markup=False),
        console=console,
    )


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Progress]:
    """Bars on a terminal, plain lines elsewhere, nothing where quiet."""
    if quiet:
        yield SilentProgress()
    elif not sys.stderr.isatty():
        yield PlainProgress()
    else:
        with BarProgress() as bars:
            yield bars
