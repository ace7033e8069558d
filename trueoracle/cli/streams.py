"""Standard output and error that are closed, full, without a reader, or know few characters."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

__all__ = ["CANNOT_WRITE", "close", "prepare", "say"]

CANNOT_WRITE = 4
"""The exit code where the output cannot be written."""

_PLAIN = {"−": "-", "–": "-", "—": "-", "×": "x", "·": ".", "•": "*", "‖": "||", "∂": "d"}


def prepare() -> None:
    """Replace closed streams by ones that discard, and let no stream fail on a character."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of the descriptors that they take
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    codecs.register_error("trueoracle.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="trueoracle.plain")


def say(line: str) -> None:
    """Write one line to standard error, if that is possible."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def close(code: int) -> int:
    """Flush the output; returns the exit code, which says whether that worked."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            _discard(stream.fileno())
            if code == 0:
                say(f"error: cannot write the output: {getattr(error, 'strerror', error)}")
            code = code or CANNOT_WRITE
    return code


def _discard(descriptor: int) -> None:
    """Let Python's own last flush of a stream succeed."""
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), descriptor)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Characters that the stream does not know in plainer ones: a minus as ``-``, τ as ``tau``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_plainer, text)), error.end


def _plainer(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith("GREEK"):
        return name.split()[-1].lower()
    alike = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _PLAIN.get(character) or alike or ascii(character)[1:-1]
