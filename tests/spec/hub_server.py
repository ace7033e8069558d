"""As much of the hub's API as a download needs, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@dataclass
class Hub:
    """Repositories by name: revision (a commit) → folder of files; and what was asked for."""

    repositories: dict[str, dict[str, Path]]
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> set[str]:
        """The files whose content was handed out."""
        return {one.rpartition("/")[2] for one in self.asked if one.startswith("GET /resolved")}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Tests are silent."""

        def _answer(self, body: bool) -> None:
            parts = urlsplit(self.path).path.strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            name = "/".join(parts[2:4] if api else parts[:2])
            what, revision = (parts[4], parts[5]) if api else (parts[2], parts[3])
            found = hub.repositories.get(name)
            if found is None:
                return self._refuse(401, "RepoNotFound")
            if not api and name in hub.gated:
                return self._refuse(403, "GatedRepo")
            commit = COMMITS.get(revision, revision)
            if (folder := found.get(commit)) is None:
                return self._refuse(404, "RevisionNotFound")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if api and what == "tree":
                return self._send(
                    json.dumps(
                        [
                            {
                                "type": "file",
                                "path": str(path.relative_to(folder)),
                                "size": path.stat().st_size,
                                "oid": _hash(path),
                            }
                            for path in files
                        ]
                    ).encode()
                )
            if api:
                listed = [{"rfilename": str(path.relative_to(folder))} for path in files]
                said = {"id": name, "sha": commit, "siblings": listed, "private": False}
                return self._send(json.dumps(said).encode())
            path = folder / "/".join(parts[4:])
            hub.asked.append(f"{self.command} /resolved/{path.relative_to(folder)}")
            self._send(path.read_bytes(), {"ETag": f'"{_hash(path)}"', "X-Repo-Commit": commit})

        def _refuse(self, status: int, code: str) -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": code}
            self._send(b"{}", headers, status)

        def _send(
            self, content: bytes, headers: dict[str, str] | None = None, status: int = 200
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    return Handler


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """A hub that answers within the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
