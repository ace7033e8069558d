"""The front door of the command line: signals, streams and the exit code.

The commands are in ``app.py``, whose imports take a while: signals are handled before them.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import NoReturn

from trueoracle.cli import signals, streams

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line; ends with the exit code that ``trueoracle --help`` explains."""
    try:
        try:
            signals.listen()
            streams.prepare()
            code = _run()
        finally:
            signals.ignore()
    except BaseException:
        code = 1
        if signals.exit_code() is None:  # --debug shows it
            from trueoracle.run.progress import printable  # not before signals are heard

            streams.say(printable(traceback.format_exc().rstrip()))
    interrupted = signals.exit_code()
    if interrupted is not None:
        _leave(signals.words(), interrupted)
    sys.exit(streams.close(code))


def _run() -> int:
    """The exit code of the command."""
    from trueoracle.cli.app import app
    from trueoracle.cli.completion import in_whole_words
    from trueoracle.run.progress import one_line

    # Pillow's warning of large images: a study reports their size itself.
    warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(str(message))}\n"
    try:
        with in_whole_words():
            app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # while help is printed: commands say it themselves
        streams.say(f"error: cannot write the output: {error.strerror or error}")
        return streams.CANNOT_WRITE
    return 0


def _leave(message: str, code: int) -> NoReturn:
    """End at once: what a signal has left half imported or half made need not be undone."""
    streams.say(message)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
