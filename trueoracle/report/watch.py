"""Serves the page of a study on this machine alone while the study runs, read-only."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from trueoracle.errors import InputError, TrueOracleError
from trueoracle.record.pooled import open_results
from trueoracle.record.runs import find_arms
from trueoracle.record.status import read_status
from trueoracle.report.drawings import Folder
from trueoracle.report.page import study_page

__all__ = ["LOOPBACK", "Watched", "serve"]

LOOPBACK = "127.0.0.1"

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Watched:
    """The page of a study's record, made anew when more is recorded."""

    def __init__(self, folder: Path, rule: str = "last") -> None:
        self.folder, self.rule = folder, rule
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None

    def version(self) -> str:
        """What changes with what is recorded; raises :class:`StoreError` where nothing is."""
        status = json.dumps(read_status(self.folder), sort_keys=True)
        return hashlib.sha256(status.encode()).hexdigest()[:16]

    def page(self) -> str:
        """The page as of now; the last one where the record cannot be read at this moment."""
        with self._lock:  # so that many tabs wait for one page, and do not make it each
            try:
                version = self.version()
                if self._made is None or self._made[0] != version:
                    results = open_results(self.folder)
                    arms = find_arms(results)
                    text, _ = study_page(results, arms, Folder(None), self.rule, version)
                    self._made = version, text
            except TrueOracleError:
                if self._made is None:
                    raise
            return self._made[1]


def serve(watched: Watched, port: int = 0, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve the page on the loopback address until the process is stopped.

    ``ready`` is told the address. The server takes no other method than GET and HEAD, answers only
    where ``Host`` is its own address (so that no other name can be led to it) and ``Origin``, where
    a browser sends one, too. Raises :class:`InputError` where the port cannot be had.
    """

    class Handler(_Handler):
        page = watched

    try:
        server = _Server((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of {LOOPBACK} cannot be used: {error}") from error
    server.daemon_threads = True
    with server:
        ready(f"http://{LOOPBACK}:{server.server_address[1]}/")
        server.serve_forever(poll_interval=0.2)


class _Server(ThreadingHTTPServer):
    """One thread for each connection; a client that goes away is no error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers for one page; everything else is refused."""

    page: Watched
    server_version, sys_version = "trueoracle", ""
    timeout = 30  # seconds until a connection that says nothing is closed

    def do_GET(self) -> None:
        self._answer(*self._content())

    def do_HEAD(self) -> None:
        self._answer(*self._content(), body=False)

    def _content(self) -> tuple[int, str, str]:
        """The status, the kind and the text of the answer."""
        if not self._is_own():
            return 403, "text/plain", "not this server's address\n"
        try:
            if self.path == "/":
                return 200, "text/html", self.page.page()
            if self.path == "/version":
                return 200, "text/plain", self.page.version()
        except TrueOracleError as error:
            return 503, "text/plain", f"{error}\n"
        return 404, "text/plain", "there is / alone\n"

    def _is_own(self) -> bool:
        _, port = cast(tuple[str, int], self.server.server_address)
        names = (LOOPBACK, "localhost")
        hosts = {f"{name}:{port}" for name in names} | ({*names} if port == 80 else set())
        origin = self.headers.get("Origin")
        return self.headers.get_all("Host", []) in [[host] for host in hosts] and (
            origin is None or origin in {f"http://{host}" for host in hosts}
        )

    def _answer(self, status: int, kind: str, text: str, *, body: bool = True) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library has it
        """Nothing: the terminal is the study's."""
