"""Records are read where nothing can be written beside them, and on network file systems."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.record.test_store import fill, folder, retrained
from trueoracle.errors import StoreError
from trueoracle.record import lock
from trueoracle.record.lock import is_locked, is_shared, locked
from trueoracle.record.paths import DATABASE, LOCK
from trueoracle.record.store import Store
from trueoracle.record.verify import verify

__all__ = ["folder"]

READ = """
import sys
from pathlib import Path
from trueoracle.record.lock import is_locked
from trueoracle.record.store import Store
from trueoracle.record.verify import verify
folder = Path(sys.argv[1])
try:
    (folder / "written").touch()
except OSError:
    with Store(folder, read_only=True) as store:
        store.check()
        print(len(store.retrained()), verify(folder).state, is_locked(folder))
"""

DIES = """
import os, sys
from pathlib import Path
from trueoracle.record import connection
from trueoracle.record.store import Store
connection.is_shared = lambda _: sys.argv[2] == "shared"
with Store(Path(sys.argv[1])) as store:
    store._db.execute("PRAGMA cache_size = 1")  # pages are written before the commit
    store._db.execute("BEGIN IMMEDIATE")
    store._db.execute("UPDATE outcomes SET learning_rate = 9")
    store._db.execute("CREATE TABLE more AS SELECT randomblob(100000)")
    os._exit(9)
"""


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / DATABASE).read_bytes()).hexdigest()


def dies(folder: Path, how: str) -> None:
    """A process is killed before it commits."""
    words = [sys.executable, "-c", DIES, str(folder), how]
    assert subprocess.run(words, check=False).returncode == 9


def read_in_a_read_only_folder(folder: Path) -> str:
    """What a process reads to which the folder is read-only, whoever it is."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$1" -c "$2" "$0"'
    words = ["unshare", "-rm", "sh", "-c", mount, str(folder), sys.executable, READ]
    try:
        probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs Linux's unshare")
    if probe.returncode:
        pytest.skip("this machine lets no process have mounts of its own")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("left", ["closed", "without its index", "shared", "killed"])
def test_records_are_read_where_nothing_can_be_written(folder: Path, left: str) -> None:
    fill(folder)
    if left in ("shared", "killed"):
        dies(folder, left)
    for ending in ("-shm", "-wal")[: 1 if left == "without its index" else 2]:
        if left in ("closed", "without its index"):
            folder.joinpath(f"{DATABASE}{ending}").unlink(missing_ok=True)
    if left == "shared":
        assert folder.joinpath(f"{DATABASE}-journal").stat().st_size > 0
    before = digest(folder)
    assert read_in_a_read_only_folder(folder) == "2 whole False"
    assert digest(folder) == before


def test_a_study_of_somebody_else_is_read_while_it_runs(folder: Path) -> None:
    fill(folder)
    with locked(folder), Store(folder) as store:
        store.record_retrained([retrained("aa", seed=1)])
        assert read_in_a_read_only_folder(folder).split()[::2] == ["3", "True"]


def test_what_another_machine_left_is_read_without_being_changed(folder: Path) -> None:
    fill(folder)
    dies(folder, "shared")
    before = digest(folder)
    with Store(folder, read_only=True) as store:
        store.check()
        assert len(store.retrained()) == 2
    assert verify(folder).state == "whole"
    assert digest(folder) == before
    assert folder.joinpath(f"{DATABASE}-journal").exists()
    with Store(folder) as store:  # who writes takes it back
        store.record_retrained([retrained("aa", seed=1)])
        assert len(store.retrained()) == 3


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.glusterfs", "lustre"])
def test_on_a_network_file_system_no_memory_is_shared(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder)  # on a local disk
    monkeypatch.setattr(lock, "mounts", lambda: [("/", kind, "rw")])
    assert is_shared(folder)
    with Store(folder) as store, Store(folder, read_only=True) as reader:
        assert not folder.joinpath(f"{DATABASE}-shm").exists()
        assert len(reader.retrained()) == 2
    with Store(folder) as store:
        store.record_retrained([retrained("aa", seed=1)])
        with Store(folder, read_only=True) as reader:
            assert len(reader.retrained()) == 3
        store.record_retrained([retrained("bb", seed=1)])
    monkeypatch.undo()
    assert not is_shared(folder)
    with Store(folder) as store, Store(folder, read_only=True) as reader:
        store.record_retrained([retrained("aa", seed=2)])  # while it is read
        assert len(reader.retrained()) == 4


def test_a_database_that_is_none_is_no_matter_of_copies(folder: Path) -> None:
    fill(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    folder.joinpath(DATABASE).write_bytes(os.urandom(8192))
    with pytest.raises(StoreError, match="is damaged"):
        Store(folder, read_only=True)


def test_what_cannot_be_copied_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder)
    dies(folder, "shared")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreError, match=r"cannot read .*, nor copy it to .*: .*No space left"):
        Store(folder, read_only=True)


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder.parent / "pipe")
    folder.joinpath(LOCK).symlink_to(folder.parent / "pipe")
    assert not is_locked(folder)
