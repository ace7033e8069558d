"""Chunks as jobs of a Slurm queue, by submitit. Needs the extra ``slurm``."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from trueoracle.errors import InputError, WorkerError, first_line
from trueoracle.executors.base import ChunkExecutor, PickledFile, pickled
from trueoracle.files import make_folder, write_bytes

__all__ = ["SlurmExecutor"]

RETRIES = 2
"""How often a chunk is submitted again whose job ended without a result."""

MINUTES = 240
"""How long Slurm lets a job run, unless ``time`` says otherwise."""

_LOOK_SECONDS = 0.5

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Job:
    """One chunk in the queue.

    ``submit`` submits it, ``now`` is submitit's job; ``retries`` is how often it may be submitted
    again, ``ended`` when the job was first seen without a result.
    """

    submit: Callable[[], Any]
    now: Any
    retries: int
    ended: float = 0.0


class SlurmExecutor(ChunkExecutor):
    """Runs every chunk as a job of its own; use as a context manager.

    - ``folder``: where the jobs, their results and logs are kept while they run. Like the folder of
      runs, it has to be on a file system that the nodes share;
    - ``cpus``, ``gpus``: what a job asks for;
    - ``options``: more of ``sbatch``'s, such as ``{"partition": "gpu", "time": "2:00:00"}``;
      ``{"cluster": "local"}`` runs the jobs on this machine instead, to try it;
    - ``at_once``: the most jobs in the queue.

    A job takes some seconds to begin, so that chunks are longer than elsewhere. Raises
    :class:`InputError` where submitit is not installed, or there is no Slurm.
    """

    seconds = (300.0, 1800.0)
    grace = 15.0
    """Seconds that a result may take to appear on a network file system after its job has ended."""

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 1,
        gpus: float = 0,
        options: Mapping[str, str] | None = None,
        retries: int = RETRIES,
        at_once: int = 64,
    ) -> None:
        more = dict(options or {})
        cluster = more.pop("cluster", "slurm")
        if gpus != int(gpus):
            raise InputError(f"a job of Slurm has whole GPUs, got {gpus:g}")
        try:
            import submitit
        except ImportError as error:
            raise InputError("executor 'slurm' needs submitit: pip install '.[slurm]'") from error
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise InputError("executor 'slurm' needs Slurm, and there is no command 'sbatch' here")
        self.threads, self.gpus, self.at_once = max(1, cpus), gpus, at_once
        self.workers = at_once
        self._retries, self._folder = retries, folder.absolute()
        make_folder(self._folder)
        self._queue: Any = submitit.AutoExecutor(folder=self._folder / "%j", cluster=cluster)
        self._queue.update_parameters(
            name="trueoracle",
            timeout_min=MINUTES,
            cpus_per_task=cpus,
            gpus_per_node=int(gpus),
            **({"slurm_additional_parameters": more} if more else {}),
        )
        self._jobs: dict[Future[Any], _Job] = {}
        self._shared: tuple[object, PickledFile] | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit a job; the future has the exception of the function, or of a job that died."""

        def submit() -> Any:
            return self._queue.submit(_tried, fn, *args, **kwargs)

        future: Future[R] = Future()
        job = _Job(submit, submit(), self._retries)

        def close(done: Future[R]) -> None:
            self._jobs.pop(done, None)
            if done.cancelled():
                with suppress(Exception):  # Slurm may have ended it
                    job.now.cancel(check=False)

        self._jobs[future] = job
        future.add_done_callback(close)
        return future

    def carried(
        self, shared: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[Any, ...]:
        if self._shared is None or self._shared[0] is not shared:
            self._forget()
            path = self._folder / f"shared-{secrets.token_hex(8)}.pickle"
            write_bytes(path, pickled(shared))
            self._shared = shared, PickledFile(path)
        return (self._shared[1],)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel the jobs that run or wait, and remove the files that were kept for them."""
        self._ended.set()
        if wait:
            self._watcher.join()
        for future in list(self._jobs) if cancel_futures else ():
            future.cancel()
        self._forget()
        with suppress(OSError):  # logs of jobs that failed stay
            for folder in (self._folder / "%j", self._folder):
                folder.rmdir()

    def _forget(self) -> None:
        if self._shared is not None:
            self._shared[1].path.unlink(missing_ok=True)
            self._shared = None

    def _watch(self) -> None:
        """Settle the futures of jobs as they end; runs in a thread."""
        while not self._ended.wait(_LOOK_SECONDS):
            for future, job in list(self._jobs.items()):
                try:
                    outcome = self._outcome(job) if job.now.done() else None
                except Exception as failure:  # of the queue's commands, or in reading the work
                    outcome = None, WorkerError(f"a job of Slurm cannot begin: {_reason(failure)}")
                if outcome is None or not future.set_running_or_notify_cancel():
                    continue
                value, error = outcome
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

    def _outcome(self, job: _Job) -> tuple[Any, Exception | None] | None:
        """What the function returned or raised; None where that is not known yet."""
        if job.now.paths.result_pickle.exists():
            outcome: tuple[Any, Exception | None] = job.now.result()
            shutil.rmtree(job.now.paths.folder, ignore_errors=True)
            return outcome
        job.ended = job.ended or time.monotonic()
        if time.monotonic() - job.ended < self.grace:
            return None
        if job.retries:
            job.now, job.retries, job.ended = job.submit(), job.retries - 1, 0.0
            return None
        said = [line for line in (job.now.stderr() or "").splitlines() if line.strip()]
        why = f": {said[-1]}" if said else f", as {job.now.paths.folder} shows"
        return None, RuntimeError(f"the job ended without a result{why}")

    def __str__(self) -> str:
        return f"Slurm (at most {self.at_once} jobs)"


def _reason(error: Exception) -> str:
    """What an error says; of the traceback that submitit tells, the error at its end."""
    found: list[str] = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", str(error), re.MULTILINE)
    return found[-1] if found else first_line(error)


def _tried(
    fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> tuple[R | None, Exception | None]:
    """What a function returns or raises, of which submitit would keep a text only."""
    try:
        return fn(*args, **kwargs), None
    except Exception as error:
        return None, error
