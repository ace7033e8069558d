"""Commands in processes of their own, forked from one that has imported everything."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "Started", "run", "start"]

LONGEST = 600.0
"""Seconds after which a process counts as hung."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it), and its output."""

    code: int
    output: str


@dataclass(frozen=True)
class Started:
    """A process that runs a command."""

    pid: int
    log: Path

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def is_running(self) -> bool:
        """Whether the process has not ended; it is still to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Ended:
        """Wait for the end; raises :class:`TimeoutError` where it does not come."""
        until = time.monotonic() + LONGEST
        while self.is_running():
            if time.monotonic() > until:
                self.kill(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(self.log.read_text(errors="replace"))
            time.sleep(0.005)
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace"))


def start(words: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> Started:
    """Run ``trueoracle WORDS`` in ``folder``; ``prepare`` is called before, in the new process."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Started(pid, log)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        if prepare is not None:
            prepare()
        sys.argv = ["trueoracle", *words]
        from trueoracle.cli.main import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> Ended:
    """Run a command to its end."""
    return start(words, folder, prepare).wait()
