"""A Ray cluster on this machine, with ports, a token and a folder of the harness's own.

Where the harness is killed, its clusters end by themselves.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

__all__ = ["CANNOT_IMPORT", "RayCluster"]

ROOT = Path(__file__).parents[2]

SECONDS = 120.0
"""How long a cluster may take to begin, however busy the machine is."""

CANNOT_IMPORT = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "trueoracle":
            raise ImportError("libmissing.so.3: cannot open shared object file")

sys.meta_path.insert(0, Refuses())
"""
"""A ``sitecustomize.py`` for workers that cannot import the package."""

CHUNK = "ray::trueoracle chunk"


class RayCluster:
    """So many nodes of ``ray start``, each of which has ``cpus``; use as a context manager.

    - ``port`` is that of the head, by default a free one;
    - ``customize`` is what Python runs at the start of every process of the cluster.
    """

    def __init__(
        self, nodes: int = 1, cpus: int = 1, port: int | None = None, customize: str = ""
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.port = port or _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        (self.folder / "sitecustomize.py").write_text(customize)
        self._cpus, self._nodes = cpus, nodes
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RayCluster:
        try:
            for place in range(self._nodes):
                self._start(is_head=place == 0)
            return self
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def join(self) -> None:
        """Let this process, and what it starts, know the cluster's token."""
        os.environ.update(self.environment)

    def _start(self, *, is_head: bool) -> None:
        role = ["--address", self.address]
        if is_head:
            role = [
                *("--head", "--port", str(self.port), "--node-ip-address", "127.0.0.1"),
                *("--include-dashboard", "false", "--disable-usage-stats"),
                *("--ray-client-server-port", str(_free_port()), "--temp-dir", str(self.folder)),
            ]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role),
            *("--num-cpus", str(self._cpus), "--object-store-memory", "100000000"),
            *("--dashboard-agent-listen-port", str(_free_port())),
        ]
        paths = os.pathsep.join([str(self.folder), str(ROOT)])
        with (self.folder / f"node-{len(self._started)}.log").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | self.environment | {"PYTHONPATH": paths},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # by which its processes are known
                    preexec_fn=_end_with_parent,
                )
            )
        until = time.monotonic() + SECONDS
        while "raylet" not in " ".join(self._commands(-1)) or not self._answers():
            if time.monotonic() > until or self._started[-1].poll() is not None:
                raise TimeoutError(Path(log.name).read_text(errors="replace"))
            time.sleep(0.1)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def _commands(self, node: int) -> list[str]:
        return [command for _, command in _of_session(self._started[node].pid)]

    def working(self, node: int) -> list[int]:
        """The processes of a node that compute a chunk right now."""
        session = self._started[node].pid
        return [pid for pid, command in _of_session(session) if command.startswith(CHUNK)]

    def kill(self) -> None:
        """Kill all of the cluster's processes at once, as where its machines are lost."""
        for one in self._started:
            for _ in range(20):  # what it started meanwhile, too
                left = [pid for pid, _ in _of_session(one.pid)]
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if not left:
                    break
                one.poll()
                time.sleep(0.05)
            one.wait()


def _end_with_parent() -> None:
    """Let the system send SIGTERM to this process when its parent ends; Linux's prctl."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _of_session(session: int) -> Iterator[tuple[int, str]]:
    """The living processes of a session, with their commands."""
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with suppress(OSError, IndexError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(path.name), command.decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
