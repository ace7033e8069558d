from __future__ import annotations

import http.client
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.record.records import stopped_early, synthetic
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.report import watch
from trueoracle.report.watch import LOOPBACK, Watched, serve
from trueoracle.tasks.metric import CLASSIFICATION

Answer = tuple[int, dict[str, str], str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return synthetic(tmp_path / "runs", "classification", CLASSIFICATION)


@pytest.fixture
def port(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server of the run, until the test ends."""
    made: list[object] = []
    plain = watch._Server

    def kept(*args: object) -> object:
        made.append(plain(*args))  # type: ignore[arg-type]
        return made[0]

    monkeypatch.setattr(watch, "_Server", kept)
    told: list[str] = []
    thread = threading.Thread(target=serve, args=(Watched(run), 0, told.append), daemon=True)
    thread.start()
    while not told:
        time.sleep(0.01)
    yield int(told[0].rstrip("/").rpartition(":")[2])
    server = made[0]
    assert isinstance(server, plain)
    server.shutdown()
    thread.join()


def ask(port: int, path: str = "/version", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=300)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read().decode()
    connection.close()
    return found


def test_only_its_own_address_is_answered(port: int) -> None:
    status, headers, version = ask(port)
    assert (status, len(version)) == (200, 16)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(port, Host=f"localhost:{port}")[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        "",
        f"{LOOPBACK}:{port}.evil",
    ):
        assert ask(port, Host=host)[0] == 403
    assert ask(port, Origin=f"http://{LOOPBACK}:{port}")[0] == 200
    for origin in ("http://evil.example", "null", f"https://{LOOPBACK}:{port}"):
        assert ask(port, Origin=origin)[0] == 403
    status, headers, _ = ask(port, Origin="http://evil.example")
    assert "Access-Control-Allow-Origin" not in headers


def test_a_client_that_goes_away_is_no_error(
    port: int, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = threading.Event()

    def page(self: Watched) -> str:
        assert gone.wait(60)
        return "x" * 10**7

    monkeypatch.setattr(Watched, "page", page)
    with socket.create_connection((LOOPBACK, port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(f"GET / HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\n\r\n".encode())
        time.sleep(0.2)
    gone.set()  # after the reset: what is written now finds nobody
    time.sleep(0.3)
    assert ask(port)[0] == 200
    assert capfd.readouterr().err == ""


def test_nothing_is_written_and_nothing_else_is_served(port: int, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.stat().st_size}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert ask(port, "/", method)[0] == 501
    for path in ("/study.sqlite", "/../study.sqlite", "/?x", "/version/", "/%2e%2e/"):
        assert ask(port, path)[0] == 404
    assert ask(port, "/version", "HEAD")[2] == ""
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.stat().st_size}
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_the_page_fills_in_as_more_is_recorded(run: Path, tmp_path: Path) -> None:
    watched = Watched(run)
    full, version = watched.page(), watched.version()
    assert f'data-version="{version}"' in full
    assert watched.page() is full
    assert "connect-src &#39;self&#39;" in full
    stopped_early(run)
    assert watched.version() != version
    assert "1 of 135 networks are retrained" in watched.page()
    last = watched.page()
    (run / "study.sqlite").rename(tmp_path / "away")
    assert watched.page() is last  # while the record cannot be read


def test_a_page_before_anything_is_retrained(run: Path) -> None:
    with Store(run) as store, store._transaction():
        for table in ("retrainings", "outcomes"):
            store._drop(table)
    page = Watched(run).page()
    assert "No network has been retrained yet" in page
    assert '"studies":[]' in page


def test_a_port_that_is_taken_is_said(port: int, run: Path) -> None:
    with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used"):
        serve(Watched(run), port)


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_the_study_is_as_it_was(run: Path) -> None:
    line = [sys.executable, "-m", "trueoracle", "watch", str(run)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("http://127.0.0.1:")
    port = int(said.partition("/  ")[0].rpartition(":")[2])
    assert ask(port)[0] == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("\n") == 1
    assert Results(run).finished
