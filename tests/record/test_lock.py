from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from trueoracle.errors import StoreError
from trueoracle.record import lock
from trueoracle.record.lock import check_locks, locked, mounts


def test_a_local_disk_locks_and_nothing_is_left(tmp_path: Path) -> None:
    check_locks(tmp_path / "runs" / "study-0123")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        check_locks(tmp_path)


def test_a_file_system_that_refuses_to_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(StoreError, match=r"without locks \(No locks available\).*by --runs"):
        check_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_grants_every_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(StoreError, match="it grants one lock twice"):
        check_locks(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nfs", "rw,vers=3,nolock,proto=tcp", "nfs, mounted with nolock"),
        ("nfs4", "rw,local_lock=none", ""),
        ("nfs", "rw,local_lock=flock", "nfs, mounted with local_lock=flock"),
        ("lustre", "rw,flock", ""),
        ("lustre", "rw,localflock", "lustre, mounted with localflock"),
        ("cifs", "rw,nobrl", "cifs, mounted with nobrl"),
        ("fuse.sshfs", "rw", "fuse.sshfs"),
        ("ext4", "rw,nolock", ""),
    ],
)
def test_locks_that_other_machines_do_not_see_are_known_by_the_mount(
    kind: str, options: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("/", "ext4", "rw"), (str(tmp_path), "tmpfs", "rw"), (str(tmp_path), kind, options)
    monkeypatch.setattr(lock, "mounts", lambda: list(here))
    if not said:
        check_locks(tmp_path / "runs")
        return
    with pytest.raises(StoreError) as caught:
        check_locks(tmp_path / "runs")
    assert f"({said})" in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="no /proc")
def test_mounts_are_read() -> None:
    assert "/proc" in [place for place, kind, _ in mounts() if kind == "proc"]
