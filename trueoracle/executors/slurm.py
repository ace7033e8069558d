"""Chunks in jobs of a Slurm queue, by submitit. Needs the extra ``slurm``.

A job takes seconds to begin and minutes to wait in the queue, so that it computes one chunk after
the other, from a folder that the nodes share (:mod:`trueoracle.executors.work`). What a job that
died had taken is put back.
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from trueoracle.errors import InputError, WorkerError, first_line
from trueoracle.executors.base import ChunkExecutor, PickledFile, Raised, pickled
from trueoracle.executors.work import DONE, DRIVER, LOOK_SECONDS, TODO, serve, takers
from trueoracle.files import make_folder, write_bytes

__all__ = ["SlurmExecutor"]

RETRIES = 2
"""How often a chunk is tried again whose job ended before it had a result."""

MINUTES = 240
"""How long Slurm lets a job run, unless ``time`` says otherwise."""

_ASK_SECONDS = 10.0
_LEAVE_SECONDS = 5.0

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Task:
    """A chunk's file, how often it may be tried again, and when it was found left by a job."""

    path: Path
    retries: int
    left: float = 0.0


class SlurmExecutor(ChunkExecutor):
    """Runs chunks in jobs, each of which computes one after the other; use as a context manager.

    - ``folder``: where chunks, their results and the jobs' logs are kept while they run. Like the
      folder of runs, it has to be on a file system that the nodes share;
    - ``cpus``, ``gpus``: what a job asks for;
    - ``options``: more of ``sbatch``'s, such as ``{"partition": "gpu", "time": "2:00:00"}``;
      ``{"cluster": "local"}`` runs the jobs on this machine instead, to try it;
    - ``retries``: how often a chunk is tried again whose job died or came to its time limit;
    - ``at_once``: the most jobs in the queue.

    Raises :class:`InputError` where submitit is not installed, or there is no Slurm.
    """

    seconds = (30.0, 600.0)
    grace = 15.0
    """Seconds that a result may take to appear on a network file system after its job has ended."""

    pause = 30.0
    """Seconds without new jobs after one that could not begin."""

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
        self.threads, self.gpus = max(1, cpus), gpus
        self.workers, self.at_once = at_once, 2 * at_once
        self._retries, self._folder = retries, folder.absolute()
        self._work = self._folder / f"work-{secrets.token_hex(8)}"
        make_folder(self._work)
        self._work.chmod(0o700)  # what lies there is unpickled
        self._driver = self._work / DRIVER
        self._driver.touch()
        self._queue: Any = submitit.AutoExecutor(folder=self._folder / "%j", cluster=cluster)
        self._queue.update_parameters(
            name="trueoracle",
            timeout_min=MINUTES,
            cpus_per_task=cpus,
            gpus_per_node=int(gpus),
            **({"slurm_additional_parameters": more} if more else {}),
        )
        self._numbers = itertools.count()
        self._tasks: dict[Future[Any], _Task] = {}
        self._jobs: dict[str, Any] = {}
        self._leaving: list[Any] = []
        self._errors: dict[str, Exception] = {}
        self._is_local, self._asked = cluster == "local", -_ASK_SECONDS
        self._fruitless, self._has_served, self._resume = 0, False, 0.0
        self._shared: tuple[object, PickledFile] | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit work; the future has the exception of the function, or of a job that died."""
        future: Future[R] = Future()
        path = self._work / f"{next(self._numbers):08}{TODO}"
        write_bytes(path, pickled((fn, args, kwargs)))
        self._tasks[future] = _Task(path, self._retries)
        future.add_done_callback(self._close)
        return future

    def carried(
        self, shared: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[Any, ...]:
        if self._shared is None or self._shared[0] is not shared:
            path = self._work / f"shared-{secrets.token_hex(8)}.pickle"
            write_bytes(path, pickled(shared))
            if self._shared is not None:
                self._shared[1].path.unlink(missing_ok=True)
            self._shared = shared, PickledFile(path)
        return (self._shared[1],)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the jobs, and remove the files that were kept for them; logs of failed ones stay."""
        if wait and not cancel_futures:
            wait_for(list(self._tasks))
        self._ended.set()
        self._driver.unlink(missing_ok=True)  # by which jobs know, whatever comes next
        is_cut = bool(self._tasks or self._leaving)
        for future in list(self._tasks):
            future.cancel()
        if wait:
            self._watcher.join()
        jobs = [*self._jobs.values(), *self._leaving]
        if not (is_cut or self._is_local):
            self._staying(jobs)
        for job in jobs:
            self._end(job)
        self._remove(jobs)  # soon, as who interrupts a command does not wait
        if self._is_local:
            for job in self._staying(jobs):
                with suppress(Exception):
                    job.cancel(check=False)
            self._staying(jobs)
            self._remove(jobs)
        self._jobs, self._leaving = {}, []

    def _remove(self, jobs: list[Any]) -> None:
        """Remove all files but the logs of jobs that failed."""
        for folder in (self._work, *(job.paths.folder for job in jobs)):
            shutil.rmtree(folder, ignore_errors=True)
        for link in self._folder.glob(".submission_file_*"):  # submitit's, to the jobs' scripts
            if not link.exists():
                link.unlink(missing_ok=True)
        for folder in (self._folder / "%j", self._folder):
            with suppress(OSError):
                folder.rmdir()

    def _close(self, future: Future[Any]) -> None:
        """Forget a chunk that has come; end the job that computes one that was cancelled."""
        task = self._tasks.pop(future)
        task.path.unlink(missing_ok=True)
        if not future.cancelled():
            return
        taker = takers(self._work).get(task.path.stem, "")
        if (job := self._jobs.pop(taker, None)) is not None:
            self._leaving.append(job)
            self._end(job)

    def _end(self, job: Any) -> None:
        """End a job; by SIGTERM on this machine, as submitit's own signal prints a traceback."""
        if not self._has_left(job):
            with suppress(Exception):  # of Slurm's command, as where the job has just ended
                if self._is_local:
                    os.kill(int(job.job_id), signal.SIGTERM)
                else:
                    job.cancel(check=False)

    def _has_left(self, job: Any) -> bool:
        """Whether a job has come to its end, as its files or its process show."""
        return bool(job.done() if self._is_local else job.paths.result_pickle.exists())

    def _staying(self, jobs: list[Any]) -> list[Any]:
        """The jobs that do not end within some seconds."""
        for _ in range(int(_LEAVE_SECONDS / LOOK_SECONDS)):
            jobs = [job for job in jobs if not self._has_left(job)]
            if jobs and (queued := self._queued(seconds=1.0)) is not None:
                jobs = [job for job in jobs if job.job_id in queued]
            if not jobs:
                break
            time.sleep(LOOK_SECONDS)
        return jobs

    def _queued(self, seconds: float = _ASK_SECONDS) -> set[str] | None:
        """The jobs that wait or run, by Slurm's word; None where it is not asked, or is silent."""
        if self._is_local or time.monotonic() - self._asked < seconds:
            return None
        self._asked = time.monotonic()
        command = ["squeue", "--me", "--noheader", "--format=%A"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            return set(done.stdout.split())
        return None

    def _watch(self) -> None:
        """Look after jobs and results; runs in a thread."""
        failures = 0
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._look()
                failures = 0
            except Exception as error:  # a network file system may be away for some seconds
                failures += 1
                if failures * LOOK_SECONDS > self.grace:
                    self._fail(BrokenExecutor(_reason(error)))

    def _look(self) -> None:
        """Settle what has come, put back what died with its job, and submit jobs."""
        os.utime(self._driver)
        taken, queued = takers(self._work), self._queued()
        for number, job in list(self._jobs.items()):
            if self._has_left(job) or (queued is not None and number not in queued):
                del self._jobs[number]
                self._job_ended(number, job, has_taken=number in taken.values())
        for future, task in list(self._tasks.items()):
            if task.path.with_suffix(DONE).exists():
                self._settle(future, task)
            elif (taker := taken.get(task.path.stem, "")) and taker not in self._jobs:
                self._try_again(future, task, taker)
        while len(self._jobs) < min(self.workers or 1, len(self._tasks)):
            if time.monotonic() < self._resume or not self._submit_job():
                break

    def _settle(self, future: Future[Any], task: _Task) -> None:
        """Give a future what the work returned or raised."""
        path = task.path.with_suffix(DONE)
        outcome = pickle.loads(path.read_bytes())  # noqa: S301 - of this package's own job
        path.unlink()
        self._fruitless, self._has_served = 0, True
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Raised):
            future.set_exception(outcome.error)
        else:
            future.set_result(pickle.loads(outcome))  # noqa: S301

    def _try_again(self, future: Future[Any], task: _Task, taker: str) -> None:
        """Put work back that a job had taken which has ended, or say that it died too often."""
        task.left = task.left or time.monotonic()
        if time.monotonic() - task.left < self.grace:
            return
        claim = task.path.with_suffix(f".{taker}")
        if task.retries:
            task.retries, task.left = task.retries - 1, 0.0
            claim.rename(task.path)
        elif future.set_running_or_notify_cancel():
            claim.unlink()
            gone = RuntimeError("the job was cancelled")  # for another chunk, at the last moment
            future.set_exception(self._errors.get(taker, gone))

    def _job_ended(self, number: str, job: Any, *, has_taken: bool) -> None:
        """Say why a job ended without need; where none can begin, no work is waited for."""
        try:
            if job.paths.result_pickle.exists():
                job.result()
                shutil.rmtree(job.paths.folder, ignore_errors=True)
                return
            lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
            said = [line for line in lines if not line.startswith("srun: ")] or lines
            why = f": {said[-1]}" if said else f", as {job.paths.folder} shows"
            error: Exception = RuntimeError(f"the job ended without a result{why}")
        except Exception as failure:  # of the queue's commands, or in what the job reads
            what = "go on" if has_taken else "begin"
            error = WorkerError(f"a job of Slurm cannot {what}: {_reason(failure)}")
        self._errors[number] = error
        if not has_taken:
            self._fruitless += 1
            self._resume = time.monotonic() + self.pause
            is_sure = isinstance(error, WorkerError) and not self._has_served
            if not self._jobs and (is_sure or self._fruitless > self._retries):
                self._fail(error)

    def _submit_job(self) -> bool:
        """Submit one more job; a queue that takes no more is asked again later."""
        try:
            job = self._queue.submit(serve, str(self._work))
        except Exception as error:  # submitit raises many kinds
            self._resume = time.monotonic() + self.pause
            if not self._jobs:
                self._fail(BrokenExecutor(_reason(error)))
            return False
        self._jobs[job.job_id] = job
        return True

    def _fail(self, error: Exception) -> None:
        """Let all that was submitted end with an error."""
        self._resume = 0.0
        for future in list(self._tasks):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def __str__(self) -> str:
        return f"Slurm (at most {self.workers} jobs)"


def _reason(error: Exception) -> str:
    """What an error says; of the traceback that submitit tells, the error at its end."""
    found: list[str] = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", str(error), re.MULTILINE)
    return found[-1] if found else first_line(error)
