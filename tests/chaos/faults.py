"""The faults, each injected into a run that is then carried on to its end and compared."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.chaos.cluster import CANNOT_IMPORT, RayCluster
from tests.chaos.points import Point, counting, keeping_often, raised, signalled
from tests.chaos.processes import Ended, run, start
from tests.chaos.rows import Rows, files_of, lost, rows_of
from trueoracle.record import lock
from trueoracle.record.paths import DATABASE
from trueoracle.record.store import Store

__all__ = ["FAULTS", "Bench", "Fault", "Tally", "Unavailable"]

STUDY = """
criteria = ["oracle", "l1"]
[network]
name = "mlp"
arguments = {{ hidden = [12, 10] }}
[data]
name = "mnist-5k"
train_images = 80
test_images = 20
validation_images = 16
[dense]
epochs = 2
batch_size = 32
[pruning]
layers = {{ fc2 = 0.1 }}
candidates = 6
[retraining]
epochs = 2
batch_size = 32
seeds = {seeds}
"""
"""12 networks of two layers, 2 epochs of 2 steps each."""

RUN = ("run", "chaos.toml", "--quiet", "--engine")
SCORE = ("score", "chaos.toml", "--quiet")
EXPORT = ("export", "chaos.toml", "--out", "runs/tables")
REPORT = ("report", "chaos.toml")
SEARCH = (
    *("search", "chaos.toml", "--quiet", "--engine", "loop", "--budget", "50%"),
    *("--export", "chosen.safetensors"),
)
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Unavailable(Exception):  # noqa: N818
    """This machine does not let a fault be injected; the text says why."""


@dataclass
class Tally:
    """How often a fault was injected, how many runs were compared and equal, and what was lost."""

    injected: int = 0
    compared: int = 0
    equal: int = 0
    lost: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def compare(self, what: str, found: Rows, expected: Rows) -> None:
        """Count a run that came to its end."""
        self.compared += 1
        self.equal += found == expected
        if found != expected:
            places = {p for p in {*found, *expected} if found.get(p) != expected.get(p)}
            self.problems.append(
                f"{what}: {len(places)} rows differ, such as {min(map(str, places))}"
            )

    def lose(self, what: str, before: Rows, after: Rows) -> None:
        """Count rows of an earlier look that are gone or changed."""
        if gone := lost(before, after):
            self.lost += len(gone)
            self.problems.append(f"{what}: {len(gone)} rows lost, such as {gone[0]}")


class Bench:
    """A folder to work in, and what undisturbed commands leave in it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.work = folder / "work"
        self._kept: dict[str, Rows] = {}
        self._met: dict[str, tuple[dict[str, int], float]] = {}
        self._counts: dict[tuple[str, ...], dict[str, int]] = {}
        self.seconds: dict[tuple[str, ...], float] = {}
        """How long a command took that nothing disturbed, from where it was begun last."""

    def clean(self, *, seeds: str = "[0, 1]", finished: bool = False) -> None:
        """Begin anew, with a study of these seeds and, where wanted, its finished run."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        (self.work / "chaos.toml").write_text(STUDY.format(seeds=seeds))
        if finished:
            whole = self.folder / "finished"
            if not whole.exists():
                self.finish((*RUN, "loop"))
                shutil.copytree(self.work / "runs", whole)
            shutil.copytree(whole, self.work / "runs", dirs_exist_ok=True)

    def finish(self, words: tuple[str, ...], prepare: Callable[[], None] | None = None) -> Ended:
        """Run a command that must come to its end."""
        ended = run(words, self.work, prepare)
        if ended.code:
            raise AssertionError(f"{' '.join(words)} ended with {ended.code}: {ended.output}")
        return ended

    def rows(self) -> Rows:
        """All that is recorded, written and exported by now."""
        return {
            **rows_of(self.work / "runs", of="chaos-"),
            **files_of(self.work, "runs/*/search/*/search.json"),
            **files_of(self.work, "*.safetensors"),
            **files_of(self.work, "runs/tables/[!.r]*.csv"),
            **files_of(self.work, "runs/*/report/summary.json"),
        }

    def undisturbed(self, words: tuple[str, ...], begin: Callable[[], None]) -> Rows:
        """What a command leaves, and how many events it meets (:meth:`count`)."""
        name = f"{words} {begin.__name__}"
        if name not in self._kept:
            begin()
            counts = self.work / "counts.txt"
            start_time = time.monotonic()
            self.finish(words, counting(counts))
            seconds = time.monotonic() - start_time
            met = (line.split() for line in counts.read_text().splitlines())
            self._met[name] = {event: int(count) for event, count in met}, seconds
            self._kept[name] = self.rows()
        self._counts[words], self.seconds[words] = self._met[name]
        return self._kept[name]

    def count(self, words: tuple[str, ...], event: str) -> int:
        """How many events an undisturbed run of a command meets."""
        return self._counts[words].get(event, 0)


Inject = Callable[[Bench, Tally, int], None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault; ``inject`` injects it so many times, and counts."""

    name: str
    inject: Inject


# Signals


def _stopped(
    name: str,
    words: tuple[str, ...],
    begin: Callable[[Bench], None],
    event: str | None,
    *,
    often: bool = False,
    shared: bool = False,
    attempts: int = 6,
) -> Fault:
    """Stop a command, again and again, at random moments or at the events of one kind.

    ``shared``: its record is kept as on a network file system.
    """

    def inject(bench: Bench, tally: Tally, rounds: int) -> None:
        start_anew = _begins(bench, begin)
        expected = bench.undisturbed(words, start_anew)
        for number in range(rounds):
            start_anew()
            before: Rows = {}
            for attempt in range(attempts):
                if event is None:
                    ended = _stop_at_random(bench, words)
                else:
                    place = number + attempt * rounds
                    ended = _stop_at(bench, words, event, place, often=often, shared=shared)
                tally.injected += ended.code != 0
                _check_code(tally, name, ended)
                now = bench.rows()
                tally.lose(name, before, now)
                before = {k: v for k, v in now.items() if k[0] != "file"}
                if ended.code == 0:
                    if tally.injected:
                        break
                    start_anew()  # it ended before its moment came
                    before = {}
            else:
                bench.finish(words)
            tally.lose(name, before, bench.rows())
            tally.compare(name, bench.rows(), expected)

    return Fault(name, inject)


def _stop_at_random(bench: Bench, words: tuple[str, ...]) -> Ended:
    begun = start(words, bench.work)
    time.sleep(bench.random.uniform(0.05, max(0.1, 0.8 * bench.seconds[words])))
    begun.kill(bench.random.choice(STOPS))
    return begun.wait()


def _stop_at(
    bench: Bench,
    words: tuple[str, ...],
    event: str,
    place: int,
    *,
    often: bool = False,
    shared: bool = False,
) -> Ended:
    """Stop a command before or after one event: with each ``place``, at another one."""
    events = max(1, bench.count(words, event))
    stride = next(one for one in (7, 11, 13, 1) if events % one)  # by which all have their turn
    point = Point(
        event,
        1 + (place // 2 * stride) % events,
        signalled(STOPS[place // 2 % 3] if place % 5 else signal.SIGKILL),
        before=place % 2 == 0,
    )

    def prepare() -> None:
        if often:
            keeping_often()
        if shared:
            lock.mounts = lambda: [("/", "nfs4", "rw")]
        point.install()

    return run(words, bench.work, prepare)


def _check_code(tally: Tally, name: str, ended: Ended) -> None:
    if ended.code not in (0, -signal.SIGKILL, 130, 143):
        tally.problems.append(f"{name}: exit code {ended.code}: {ended.output[-300:]}")


def nothing(bench: Bench) -> None:
    """Nothing is recorded yet."""
    bench.clean()


def half(bench: Bench) -> None:
    """A study of one of the two seeds is finished, whose results are taken over."""
    bench.clean(seeds="[1]")
    bench.finish((*RUN, "loop"))
    source = next((bench.work / "runs").iterdir())
    source.rename(source.with_name(f"other-{source.name.rpartition('-')[2]}"))
    (bench.work / "chaos.toml").write_text(STUDY.format(seeds="[0, 1]"))


def all_done(bench: Bench) -> None:
    """The study is finished."""
    bench.clean(finished=True)


# Failures


def _fails(
    name: str, engine: str, make: Callable[[], Point], codes: tuple[int, ...], *, retry: bool
) -> Fault:
    """Something raises in the process; the study goes on or stops, and is carried to its end."""
    words = (*RUN, engine)

    def inject(bench: Bench, tally: Tally, rounds: int) -> None:
        def anew() -> None:
            bench.clean()

        expected = bench.undisturbed(words, anew)
        for number in range(rounds):
            anew()
            point = make()
            point = Point(point.event, point.number + number, point.act, often=point.often)
            ended = run(words, bench.work, point.install)
            tally.injected += 1
            if ended.code not in codes:
                tally.problems.append(f"{name}: exit code {ended.code}: {ended.output[-300:]}")
            before = {k: v for k, v in bench.rows().items() if k[1] != "failures"}
            bench.finish((*words, "--retry-failed") if retry else words)
            tally.lose(name, before, bench.rows())
            tally.compare(name, bench.rows(), expected)

    return Fault(name, inject)


def _broken_loader() -> BaseException:
    return RuntimeError("the loader is broken")


def _no_memory() -> None:
    torch.empty(2**58)  # raises what PyTorch's allocator raises


def _memory(bench: Bench, tally: Tally, rounds: int) -> None:
    """Populations of several networks find too little memory, and are halved."""
    words = (*RUN, "wide")

    expected = bench.undisturbed(words, bench.clean)
    for number in range(rounds):
        bench.clean()
        limit = 1 + number % 5

        def prepare(limit: int = limit) -> None:
            from trueoracle.engines.wide import WidePopulation

            train = WidePopulation.train_epoch

            def short(self: Any, epoch: int, *args: Any) -> None:
                if len(self._networks) > limit and epoch == 1:
                    _no_memory()
                train(self, epoch, *args)

            setattr(WidePopulation, "train_epoch", short)  # noqa: B010

        bench.finish(words, prepare)
        tally.injected += 1
        with _record(bench) as store:
            if store.noted("most_at_once") is None:
                tally.problems.append("memory: that a population was halved is not recorded")
        # Sums in another order: the same numbers but for rounding.
        tally.compare("memory", _rounded(bench.rows()), _rounded(expected))


def _rounded(rows: Rows) -> Rows:
    def rounded(value: Any) -> Any:
        return round(value, 4) if isinstance(value, float) else value

    return {k: tuple(map(rounded, v)) for k, v in rows.items() if k[1] != "blocks"}


@contextmanager
def _record(bench: Bench) -> Iterator[Store]:
    (path,) = (bench.work / "runs").glob(f"chaos-*/{DATABASE}")
    with Store(path.parent, read_only=True) as store:
        yield store


# Disks


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"mount {' '.join(words)}: {done.stderr.strip()}")


WRITING: dict[str, tuple[tuple[str, ...], Callable[[Bench], None]]] = {
    "scoring": (SCORE, nothing),
    "run": ((*RUN, "loop"), nothing),
    "adoption": ((*RUN, "loop"), half),
    "a search": (SEARCH, nothing),
    "export": (EXPORT, all_done),
    "report": (REPORT, all_done),
}
"""Commands that write, each with what was recorded before."""


@contextmanager
def _disk(bench: Bench) -> Iterator[Path]:
    """The runs' folder, with what is in it, on a disk of its own."""
    runs, aside = bench.work / "runs", bench.work / "aside"
    runs.mkdir(exist_ok=True)
    runs.rename(aside)
    runs.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(runs))
    try:
        shutil.copytree(aside, runs, dirs_exist_ok=True)
        yield runs
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def _used(runs: Path) -> int:
    """Kilobytes in use on a disk."""
    found = os.statvfs(runs)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


Hurt = Callable[[Bench, tuple[str, ...], Path, int], Callable[[], None] | None]
"""Makes a disk bad before the command runs on it; may return what the command's process does."""


def _bad_disk(how: str, what: str, hurt: Hurt, mend: str, codes: tuple[int, ...]) -> Fault:
    """A command runs on a bad disk and ends with one of these codes; later the disk is good."""
    (words, begin), name = WRITING[what], f"{how} during {what}"

    def inject(bench: Bench, tally: Tally, rounds: int) -> None:
        expected = bench.undisturbed(words, _begins(bench, begin))
        for number in range(rounds):
            begin(bench)
            with _disk(bench) as runs:
                prepare = hurt(bench, words, runs, number)
                before = _records(bench)
                ended = run(words, bench.work, prepare)
                tally.injected += ended.code != 0
                if ended.code not in codes:
                    tally.problems.append(f"{name}: exit code {ended.code}: {ended.output[-300:]}")
                _mount("-o", f"remount,{mend}", str(runs))
                tally.lose(name, before, bench.rows())
                before = _records(bench)
                bench.finish(words)
                tally.lose(name, before, bench.rows())
                tally.compare(name, bench.rows(), expected)

    return Fault(name, inject)


def _full(what: str) -> Fault:
    """A disk is full at one write after the other."""

    def hurt(bench: Bench, words: tuple[str, ...], runs: Path, number: int) -> Callable[[], None]:
        free = 4 * (1 + number % 120)
        _mount("-o", f"remount,size={_used(runs) + free}k", str(runs))
        return keeping_often

    return _bad_disk("a disk that is full", what, hurt, "size=64m", (0, 4))


def _read_only(what: str) -> Fault:
    """A folder cannot be written, from the beginning or from the midst of the command on."""

    def hurt(bench: Bench, words: tuple[str, ...], runs: Path, number: int) -> None:
        if number % 2:
            event = "commit" if words[0] == "run" else "file"
            _stop_at(bench, words, event, 3 + number)
        _mount("-o", "remount,ro", str(runs))

    return _bad_disk("a folder that is read-only", what, hurt, "rw", (4,))


def _begins(bench: Bench, begin: Callable[[Bench], None]) -> Callable[[], None]:
    def anew() -> None:
        begin(bench)

    anew.__name__ = begin.__name__
    return anew


def _records(bench: Bench) -> Rows:
    """What is recorded by now, without files that a command may write again."""
    return rows_of_records(bench.rows())


# Files


def _damaged(name: str, words: tuple[str, ...]) -> Fault:
    """A file of a stopped run or search is truncated, emptied, or has a flipped bit.

    Either the commands notice it and make again what is lost, or they refuse the run with advice:
    then the file is put back.
    """

    def inject(bench: Bench, tally: Tally, rounds: int) -> None:
        def anew() -> None:
            bench.clean()

        expected = bench.undisturbed(words, anew)
        for number in range(rounds):
            anew()
            _stop_at(bench, words, "step", 20 + 2 * number, often=True)
            _damage_one(bench, tally, words, number)
            tally.compare(name, bench.rows(), expected)

    return Fault(name, inject)


def _damage_one(bench: Bench, tally: Tally, words: tuple[str, ...], number: int) -> None:
    rng = bench.random
    files = [p for p in (bench.work / "runs").rglob("*") if p.is_file() and p.stat().st_size]
    path = sorted(files)[number % len(files)]
    shutil.copytree(bench.work / "runs", bench.work / "backup")
    content = bytearray(path.read_bytes())
    if (how := number // len(files) % 3) == 0:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del content[rng.randrange(len(content)) :]
    else:
        content.clear()
    path.write_bytes(bytes(content))
    tally.injected += 1
    ended = run(words, bench.work)
    if ended.code == 4 and path.name != "study.lock":
        run(("verify", "--repair"), bench.work)
        ended = run(words, bench.work)
    if ended.code == 4:
        tally.refused += 1
        shutil.rmtree(bench.work / "runs")
        (bench.work / "backup").rename(bench.work / "runs")
        ended = run(words, bench.work)
    if ended.code:
        tally.problems.append(f"damaged {path.name}: {ended.code}: {ended.output[-300:]}")


def _schema(bench: Bench, tally: Tally, rounds: int) -> None:
    """A record says that it has another format, older or newer: it is refused and left as it is."""

    def anew() -> None:
        bench.clean(finished=True)

    anew()
    expected = bench.rows()
    for number in range(rounds):
        anew()
        (path,) = (bench.work / "runs").glob(f"chaos-*/{DATABASE}")
        version = (99, 1, 2, 3, 4, 5)[number % 6]

        def say(version: int, path: Path = path) -> int:
            with sqlite3.connect(path) as db:
                (before,) = db.execute("PRAGMA user_version").fetchone()
                db.execute(f"PRAGMA user_version = {version}")
            db.close()
            return int(before)

        before = say(version)
        tally.injected += 1
        for words in ((*RUN, "loop"), ("report", "chaos.toml"), ("verify", "--repair")):
            ended = run(words, bench.work)
            if ended.code != 4:
                tally.problems.append(f"format {version}: {words[0]} ended with {ended.code}")
        tally.refused += 1
        say(before)
        bench.finish((*RUN, "loop"))
        tally.compare(f"format {version}", bench.rows(), expected)


# Time and place


def _clock(bench: Bench, tally: Tally, rounds: int) -> None:
    """The clock goes back by a day or a year with every sitting, and files come from the future."""
    words = (*RUN, "loop")

    expected = bench.undisturbed(words, bench.clean)
    for number in range(rounds):
        bench.clean()
        for attempt in range(3):
            shift = (attempt + 1) * (86400, 31536000)[number % 2]
            point = Point("commit", 4 + 3 * attempt + number % 5, signalled(signal.SIGKILL))

            def prepare(
                shift: int = shift, point: Point = point, last: bool = attempt == 2
            ) -> None:
                _set_back(shift)
                if not last:
                    point.install()

            ended = run(words, bench.work, prepare)
            tally.injected += 1
            for path in (bench.work / "runs").rglob("*"):
                os.utime(path, (time.time() + 1e7, time.time() + 1e7))
        if ended.code:
            tally.problems.append(f"clock: exit code {ended.code}: {ended.output[-300:]}")
        status = run(("status",), bench.work)
        if status.code:
            tally.problems.append(f"clock: status ended with {status.code}")
        tally.compare("clock", bench.rows(), expected)


def _set_back(seconds: float) -> None:
    from datetime import datetime as plain
    from datetime import timedelta

    from trueoracle.run import sitting

    now = time.time

    class Shifted(plain):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return plain.now(tz) - timedelta(seconds=seconds)

    time.time = lambda: now() - seconds
    setattr(sitting, "datetime", Shifted)  # noqa: B010


def _two(what: str) -> Fault:
    """Two processes are at one run; the one that works may be killed."""
    (words, begin), name = WRITING[what], f"two processes at {what}"

    def inject(bench: Bench, tally: Tally, rounds: int) -> None:
        expected = bench.undisturbed(words, _begins(bench, begin))
        for number in range(rounds):
            begin(bench)
            both = [start(words, bench.work), start(words, bench.work)]
            tally.injected += 1
            if number % 2:
                time.sleep(bench.random.uniform(0.05, 0.8 * bench.seconds[words]))
                both[number // 2 % 2].kill(signal.SIGKILL)
            for one in [one.wait() for one in both]:
                if one.code not in (0, 3, -signal.SIGKILL):
                    tally.problems.append(f"{name}: exit code {one.code}: {one.output[-300:]}")
            before = _records(bench)
            bench.finish(words)
            tally.lose(name, before, bench.rows())
            tally.compare(name, bench.rows(), expected)

    return Fault(name, inject)


def _moved(bench: Bench, tally: Tally, rounds: int) -> None:
    """A stopped run is moved, copied or renamed, and goes on where it is then."""
    words = (*RUN, "loop")

    expected = bench.undisturbed(words, bench.clean)
    for number in range(rounds):
        bench.clean()
        _stop_at(bench, words, "step", 10 + 2 * number, often=True)
        runs, away = bench.work / "runs", bench.work / "away"
        before = bench.rows()
        tally.injected += 1
        if number % 3 == 0:  # moved, and back
            shutil.move(runs, away)
            bench.finish((*words, "--runs", "away"))
            shutil.move(away, runs)
        elif number % 3 == 1:  # copied: each goes on by itself
            shutil.copytree(runs, away)
            bench.finish((*words, "--runs", "away"))
            tally.compare("copied", rows_of(away), rows_of_records(expected))
            bench.finish(words)
        else:  # renamed: it is read under its new name, and goes on under its old one
            (folder,) = runs.glob("chaos-*")
            folder.rename(runs / "renamed")
            bench.finish(("verify", "runs/renamed"))
            (runs / "renamed").rename(folder)
            bench.finish(words)
        tally.lose("moved", before, bench.rows())
        tally.compare("moved", bench.rows(), expected)


def rows_of_records(rows: Rows) -> Rows:
    """Without files."""
    return {place: values for place, values in rows.items() if place[0] != "file"}


def _unlockable(bench: Bench, tally: Tally, rounds: int) -> None:
    """A file system does not lock, or for one machine only: refused before anything begins."""
    for number in range(rounds):
        kind = number % 3

        def prepare(kind: int = kind) -> None:
            import fcntl

            if kind == 0:  # it says that it cannot

                def cannot(*_: Any) -> None:
                    raise OSError(errno.ENOLCK, "No locks available")

                fcntl.flock = cannot
            elif kind == 1:  # it says that it does, and does not
                fcntl.flock = lambda *_: None
            else:
                lock.mounts = lambda: [("/", "nfs", "rw,vers=3,nolock")]

        for words in (SCORE, (*RUN, "loop"), SEARCH):
            bench.clean()
            ended = run(words, bench.work, prepare)
            tally.injected += 1
            tally.refused += ended.code == 4
            if ended.code != 4 or "--runs" not in ended.output:
                tally.problems.append(f"{words[0]}: exit code {ended.code}: {ended.output[-300:]}")
            if bench.rows():
                tally.problems.append(f"{words[0]} without locks: it has written something")


# Clusters

LONGER = ("--set", "retraining.epochs=100")
"""Chunks of some tenths of a second, in which a worker can be hit."""


def _on(cluster: RayCluster) -> tuple[str, ...]:
    return ("--executor", "ray", "--address", cluster.address)


def _joins(cluster: RayCluster) -> Callable[[], None]:
    """Let a process find the cluster, cut work into small chunks, and wait for no dead head."""

    def prepare() -> None:
        from trueoracle.executors.ray import RayExecutor

        cluster.join()
        RayExecutor.seconds = (0.0, 60.0)
        RayExecutor.patience = 3.0

    return prepare


def _worker_killed(bench: Bench, tally: Tally, rounds: int) -> None:
    """A worker of two nodes is killed while it computes a chunk, which another then computes.

    The first run is undisturbed, so that both nodes are known to compute.
    """
    _need_ray()
    words = (*RUN, "loop", *LONGER)
    expected = bench.undisturbed(words, bench.clean)
    with RayCluster(nodes=2) as cluster:
        for number in range(rounds + 1):
            bench.clean()
            begun = start((*words, *_on(cluster)), bench.work, _joins(cluster))
            nodes: set[int] = set()
            hit = 0
            while begun.is_running():
                time.sleep(bench.random.uniform(0, 0.3) if number and not hit else 0.05)
                found = {pid: node for node in (0, 1) for pid in cluster.working(node)}
                nodes.update(found.values())
                if number and found and not hit:
                    with suppress(ProcessLookupError):
                        os.kill(bench.random.choice([*found]), signal.SIGKILL)
                        hit += 1
            tally.injected += hit
            ended = begun.wait()
            if ended.code:
                tally.problems.append(f"worker: exit code {ended.code}: {ended.output[-300:]}")
            if not number and len(nodes) < 2:
                tally.problems.append("worker: one of the two nodes has computed nothing")
            tally.compare("worker", bench.rows(), expected)


def _head_lost(bench: Bench, tally: Tally, rounds: int) -> None:
    """All processes of a Ray cluster are killed; the same command goes on once it is back."""
    _need_ray()
    for number in range(-(-rounds // 4)):  # each starts two clusters
        words = (*((*RUN, "loop"), SEARCH)[number % 2], *LONGER)
        expected = bench.undisturbed(words, bench.clean)
        bench.clean()
        with RayCluster() as cluster:
            begun = start((*words, *_on(cluster)), bench.work, _joins(cluster))
            while begun.is_running() and not cluster.working(0):
                time.sleep(0.01)
            time.sleep(bench.random.uniform(0, 3))
            cluster.kill()
            ended = begun.wait()
        tally.injected += ended.code != 0
        said = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        is_clear = len(said) == 1 and "broke down: the head of Ray at " in said[0]
        if ended.code not in (0, 1) or (ended.code == 1 and not is_clear):
            tally.problems.append(f"head: exit code {ended.code}: {ended.output[-300:]}")
        before = bench.rows()
        with RayCluster(port=cluster.port) as again:
            bench.finish((*words, *_on(again)), _joins(again))
        kept = {k: v for k, v in before.items() if k[0] != "file"}  # a search's record grows
        tally.lose("head", kept, bench.rows())
        tally.compare("head", bench.rows(), expected)


def _cannot_import(bench: Bench, tally: Tally, rounds: int) -> None:
    """No worker of Ray can import the package: no network is at fault, and the run stops."""
    _need_ray()
    words = (*RUN, "loop")
    expected = bench.undisturbed(words, bench.clean)
    with RayCluster(customize=CANNOT_IMPORT) as cluster:
        for _ in range(-(-rounds // 4)):
            bench.clean()
            ended = run((*words, *_on(cluster)), bench.work, _joins(cluster))
            tally.injected += 1
            tally.refused += ended.code == 2
            before = bench.rows()
            if ended.code != 2 or "cannot begin: libmissing" not in ended.output:
                tally.problems.append(f"import: exit code {ended.code}: {ended.output[-300:]}")
            if any(place[1] == "failures" for place in before):
                tally.problems.append("import: networks are recorded as failed")
            bench.finish(words)
            tally.lose("import", before, bench.rows())
            tally.compare("import", bench.rows(), expected)


def _need_ray() -> None:
    if find_spec("ray") is None:
        raise Unavailable("Ray is not installed")


FAULTS = (
    _stopped("a signal at a random moment of run", (*RUN, "loop"), nothing, None),
    _stopped("a signal at a random moment of scoring", SCORE, nothing, None),
    _stopped("a signal at a random moment of adoption", (*RUN, "loop"), half, None),
    _stopped("a signal at a random moment of a search", SEARCH, nothing, None),
    _stopped("a signal at a random moment of export", EXPORT, all_done, None),
    _stopped("a signal at a random moment of report", REPORT, all_done, None, attempts=1),
    _stopped("a signal at each commit of scoring", SCORE, nothing, "commit"),
    _stopped("a signal at each commit of run", (*RUN, "loop"), nothing, "commit"),
    _stopped(
        "a signal at each commit on a network disk", (*RUN, "loop"), nothing, "commit", shared=True
    ),
    _stopped("a signal at each file of run", (*RUN, "loop"), nothing, "file", often=True),
    _stopped("a signal at each training step", (*RUN, "loop"), nothing, "step", often=True),
    _stopped("a signal at each commit of adoption", (*RUN, "loop"), half, "commit"),
    _stopped("a signal at each step of a search", SEARCH, nothing, "step"),
    _stopped("a signal at each file of a search", SEARCH, nothing, "file"),
    _stopped("a signal at each file of export", EXPORT, all_done, "file"),
    _stopped("a signal at each file of report", REPORT, all_done, "file", attempts=1),
    *map(_full, WRITING),
    *map(_read_only, WRITING),
    _damaged("a file of a run that is damaged", (*RUN, "loop")),
    _damaged("a file of a search that is damaged", SEARCH),
    Fault("a record of another format", _schema),
    _fails(
        "a chunk that always fails",
        "loop",
        lambda: Point("batch", 30, raised(_broken_loader), often=True),
        (6,),
        retry=True,
    ),
    _fails(
        "a loader that raises once",
        "loop",
        lambda: Point("batch", 30, raised(_broken_loader)),
        (6,),
        retry=True,
    ),
    Fault("too little memory for a population", _memory),
    _fails(
        "too little memory for one network",
        "loop",
        lambda: Point("batch", 30, _no_memory),
        (2,),
        retry=False,
    ),
    Fault("a clock that goes back", _clock),
    *map(_two, WRITING),
    Fault("a run moved, copied, renamed", _moved),
    Fault("a file system without locks", _unlockable),
    Fault("a worker of Ray that is killed", _worker_killed),
    Fault("a head of Ray that is lost", _head_lost),
    Fault("workers of Ray that cannot import", _cannot_import),
)
