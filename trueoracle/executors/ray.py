"""Chunks on a Ray cluster, or on a Ray of this machine alone. Needs the extra ``ray``."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from trueoracle.analysis.numbers import many
from trueoracle.errors import InputError, WorkerError, first_line
from trueoracle.executors.base import AT_ONCE, ChunkExecutor

__all__ = ["RayExecutor"]

_SECONDS = 5.0
"""How long a cluster may take to answer: Ray itself goes on trying for minutes."""

RETRIES = 3
"""How often a chunk is tried again whose worker died."""

_LOOK_SECONDS = 1.0

P = ParamSpec("P")
R = TypeVar("R")


class RayExecutor(ChunkExecutor):
    """Runs every chunk as a task of Ray; use as a context manager.

    - ``address``: of the cluster (``"auto"``, ``"HOST:6379"``, ``"ray://HOST:10001"``); None for
      the one in ``RAY_ADDRESS``, or else for a Ray that is started here and stopped at the end;
    - ``cpus``, ``gpus``: what a chunk needs; fractions of a GPU let chunks share it;
    - ``retries``: how often a chunk is tried again whose worker died;
    - ``at_once``: the most chunks that wait for Ray, run or are to be recorded.

    Where this process is connected to Ray already, that connection is used and stays. Data and the
    dense network are put into Ray's object store once. Where the cluster's head is lost, all that
    was submitted ends with :class:`BrokenExecutor`. Raises :class:`InputError` where Ray is not
    installed, or does not answer, and where a Ray that is started here has less than a chunk
    needs.
    """

    patience = 20.0
    """Seconds for which a head may be silent; after a minute, Ray itself would end this process."""

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int = 1,
        gpus: float = 0.0,
        retries: int = RETRIES,
        at_once: int = AT_ONCE,
    ) -> None:
        try:
            import ray
            import ray.util.client
        except ImportError as error:
            raise InputError("executor 'ray' needs Ray: pip install '.[ray]'") from error
        self.threads, self.gpus, self.at_once = max(1, cpus), gpus, at_once
        self._ray: Any = ray
        self._is_own = not ray.is_initialized()
        if self._is_own:
            address = address or os.environ.get("RAY_ADDRESS")
        if why := _silence(address or ""):
            raise InputError(f"no Ray answers at {address!r}: {why}")
        if self._is_own:
            _connect(ray, address)
        if beyond := _beyond(ray.nodes(), cpus, gpus):
            if self._is_own and not address:
                ray.shutdown()
                raise InputError(f"a chunk needs {beyond}")
            warnings.warn(
                f"a chunk needs {beyond}: chunks wait until a node of Ray with so many is there",
                stacklevel=2,
            )
        found = ray.cluster_resources()
        per_cpu = int(found.get("CPU", 0) / cpus) if cpus else AT_ONCE
        self.workers = min(per_cpu, int(found.get("GPU", 0) / gpus)) if gpus else per_cpu
        task = ray.remote(_call)
        self._task: Any = task.options(
            num_cpus=cpus, num_gpus=gpus, max_retries=retries, name="trueoracle chunk"
        )
        self._open: set[Future[Any]] = set()
        self._shared: tuple[object, Any] | None = None
        self._ended, self._lost = threading.Event(), ""
        if ray.util.client.ray.is_connected():  # as ray://, which reaches the head by another way
            self._head = address or ""
        else:
            self._head = ray.get_runtime_context().gcs_address
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit a task; arguments that :meth:`carried` put into the object store are found there.

        The future has the exception that the function raised, or Ray's where the worker died more
        often than ``retries``.
        """
        if self._lost:
            raise BrokenExecutor(self._lost)
        reference = self._task.remote(fn, *args, **kwargs)
        future: Future[R] = Future()
        self._open.add(future)

        def settle(inner: Future[R]) -> None:
            error = inner.exception()
            with suppress(InvalidStateError):  # it was cancelled, or the head was lost meanwhile
                if error is None:
                    future.set_result(inner.result())
                else:
                    future.set_exception(self._whose(error))

        def close(done: Future[R]) -> None:
            self._open.discard(done)
            if done.cancelled() and not self._lost:
                with suppress(Exception):  # of a cluster that is gone
                    self._ray.cancel(reference, force=True)

        future.add_done_callback(close)
        reference.future().add_done_callback(settle)
        return future

    def carried(
        self, shared: object, on_epoch: Callable[[int], None], *, is_plain: bool
    ) -> tuple[Any, ...]:
        if self._shared is None or self._shared[0] is not shared:
            self._shared = shared, self._ray.put(shared)
        return (self._shared[1],)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the chunks that run or wait, and what was started or connected for this executor."""
        self._ended.set()
        self._shared = None
        for future in list(self._open) if cancel_futures else ():
            future.cancel()
        if self._is_own:
            self._ray.shutdown()

    def _whose(self, error: BaseException) -> BaseException:
        """The error of the function, or one that says what Ray could not do for it."""
        cause: BaseException = getattr(error, "cause", None) or error
        if isinstance(cause, self._ray.exceptions.RaySystemError):  # what was sent cannot be read
            why = first_line(cause).removeprefix("System error: ")
            return WorkerError(f"a worker of Ray cannot begin: {why}")
        return cause

    def _watch(self) -> None:
        """Notice that the cluster's head is lost; runs in a thread."""
        heard = time.monotonic()
        while not self._ended.wait(_LOOK_SECONDS):
            if not (why := _silence(self._head)):
                heard = time.monotonic()
            elif time.monotonic() - heard > self.patience:
                self._lost = f"the head of Ray at {self._head} is lost: {why}"
                for future in list(self._open):
                    with suppress(InvalidStateError):
                        future.set_exception(BrokenExecutor(self._lost))
                return

    def __str__(self) -> str:
        found = self._ray.cluster_resources()
        nodes = many(sum(node["Alive"] for node in self._ray.nodes()), "node")
        gpus = f", {found['GPU']:g} GPUs" if "GPU" in found else ""
        return f"Ray ({nodes}, {found.get('CPU', 0):g} CPUs{gpus})"


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine; this process's signals stay its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", **own)
    except Exception as error:  # Ray raises many kinds
        where = "can be started here"
        if address:
            where = f"answers at {address!r} (RAY_AUTH_MODE=token where the cluster has a token)"
        raise InputError(f"no Ray {where}: {first_line(error)}") from error
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError, TypeError):  # in another thread than the main one
                signal.signal(number, handler)


def _beyond(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> str:
    """What a chunk needs and no node has, in words; empty where some node has it all."""
    own = [node["Resources"] for node in nodes if node["Alive"]]
    if any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in own):
        return ""
    most = {name: max((one.get(name, 0) for one in own), default=0) for name in ("CPU", "GPU")}
    wanted = [
        f"{need:g} {name}s, and the largest node of Ray has {most[name]:g}"
        for name, need in (("CPU", cpus), ("GPU", gpus))
        if need > most[name]
    ]
    return " and ".join(wanted) or f"{cpus} CPUs and {gpus:g} GPUs, and no node of Ray has both"


def _silence(address: str) -> str:
    """Why nothing answers at ``HOST:PORT``; empty where something does, or for another address."""
    if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):
        try:
            socket.create_connection((found[1], int(found[2])), _SECONDS).close()
        except (OSError, OverflowError) as error:
            return first_line(error)
    return ""


def _call(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    return fn(*args, **kwargs)
