"""Work as files in a folder that machines share, and the job that does it.

``NAME.todo`` waits; a job takes it by renaming it to ``NAME.JOB``, which no two jobs can do, and
leaves what came of it as ``NAME.done``. No file is locked, as not every network file system can.
"""

from __future__ import annotations

import pickle
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from trueoracle.errors import WorkerError, first_line
from trueoracle.executors.base import Raised, attempted
from trueoracle.files import write_bytes

__all__ = ["DONE", "DRIVER", "TODO", "serve", "takers"]

IDLE_SECONDS = 60.0
"""How long a job waits for more work before it ends."""

SILENT_SECONDS = 300.0
"""How long the driver may be silent before jobs take no more of its work."""

LOOK_SECONDS = 0.5
"""How often a job, and the driver, looks into the folder."""

TODO, DONE, DRIVER = ".todo", ".done", "driver"
_WORK = "[0-9]*"  # no draft of a file


def takers(folder: Path) -> dict[str, str]:
    """By the names of what was taken, the jobs that took it."""
    names = (path.name.partition(".") for path in folder.glob(_WORK))
    return {name: job for name, _, job in names if f".{job}" not in (TODO, DONE)}


def serve(folder: str) -> None:
    """Do the work in a folder, one after the other, until the driver is gone or nothing comes.

    At its time limit, of which Slurm says by a signal, a job ends at once, as where it is killed:
    another one takes up what it was at, from the file that keeps it while it is trained.
    """
    import submitit

    work, own = Path(folder), f".{submitit.JobEnvironment().job_id}"
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _leave)
    beat, heard, worked = 0, time.monotonic(), time.monotonic()
    while time.monotonic() - worked < IDLE_SECONDS:
        try:
            now = (work / DRIVER).stat().st_mtime_ns
        except FileNotFoundError:
            return
        if now != beat:
            beat, heard = now, time.monotonic()
        elif time.monotonic() - heard > SILENT_SECONDS:
            return
        if (taken := _take(work, own)) is None:
            time.sleep(LOOK_SECONDS)
            continue
        write_bytes(taken.with_suffix(DONE), pickle.dumps(_computed(taken)))
        taken.unlink(missing_ok=True)
        worked = time.monotonic()


def _take(work: Path, own: str) -> Path | None:
    """The oldest work that waits, or that this job has begun; None where there is none."""
    for path in sorted(work.glob(_WORK)):
        if path.suffix == own:  # Slurm has begun this job anew
            return path
        if path.suffix == TODO:
            taken = path.with_suffix(own)
            with suppress(OSError):  # another job was faster, or the server has answered twice
                path.rename(taken)
            if taken.exists():
                return taken
    return None


def _computed(path: Path) -> bytes | Raised:
    """What the work in a file returns, pickled, or what it raises."""
    try:
        fn, args, kwargs = pickle.loads(path.read_bytes())  # noqa: S301 - of this package's driver
    except Exception as error:  # code that it needs is another one here, or lacks
        return Raised(WorkerError(f"a job of Slurm cannot begin: {first_line(error)}"))
    return attempted(lambda: pickle.dumps(fn(*args, **kwargs)))


def _leave(number: int, frame: object) -> None:
    sys.exit(f"ended by {signal.Signals(number).name}")
