"""Real files, changed at random, at every door through which files of others come in.

``python -m tests.fuzz --cases 10000`` changes study files, listings, tables, checkpoints, exports,
data files and records, byte by byte and value by value, and reads each with the program's own
readers. A reader either gives a result or raises one of the program's errors, in one line with an
exit code from 2 to 5; everything else is a finding: another error, a crash, more than ``--seconds``
of the processor's time, more than ``--memory`` bytes. Case N of a seed is always the same:
``--seed S --only N`` shows it again.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sqlite3
import struct
import sys
import tempfile
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.record.records import older_record
from trueoracle.analysis.own import read_tables
from trueoracle.cli.console import _ending
from trueoracle.data import datasets
from trueoracle.data.questions import find_questions
from trueoracle.data.streaming import look, open_folder
from trueoracle.data.text import find_texts
from trueoracle.networks.registry import build
from trueoracle.networks.weights import load_weights, read_weights
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.groups import Group, GroupMap, Place
from trueoracle.pruning.listing import write_listing
from trueoracle.record.networks import read_networks, write_networks
from trueoracle.record.paths import DATABASE, UNDER_WAY
from trueoracle.record.results import Results
from trueoracle.record.status import read_status
from trueoracle.record.store import Store
from trueoracle.record.verify import verify
from trueoracle.search.export import Origin, export, load
from trueoracle.spec.file import SHIPPED
from trueoracle.spec.grid import variants
from trueoracle.training.checkpoint import Checkpoint

GROUPS = GroupMap(
    {name: Group(name, n, (Place(f"{name}.weight"),)) for name, n in (("a", 4), ("b", 6))}, {}
)
RATIOS = {"a": 0.5, "b": 0.5}
IMAGES = ("jpeg", "png", "bmp", "tiff", "webp", "ppm")

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Door:
    """Where files come in: ``make`` writes real ones into a folder.

    ``reads`` are the readers of the files that are changed, one at a time, by the files' names.
    """

    make: Callable[[Path], None]
    reads: Mapping[str, Sequence[Read]]


# Real files


def _studies(folder: Path) -> None:
    for path in (*SHIPPED.glob("*.toml"), *(SHIPPED / "grids").glob("*.toml")):
        if not path.name.startswith("_"):
            shutil.copy(path, folder / path.name)


def _listing(folder: Path) -> None:
    listed = list_candidates(GROUPS, RATIOS, count=20, seed=3)
    write_listing(listed.listing(), folder / "list.json")
    ways = [tuple(tuple(part) for part in way) for way in listed.ways]
    (folder / "list.pkl").write_bytes(pickle.dumps(ways))


def _tables(folder: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"id": f"c{i}", "seed": s, "score": i / 7, "y": draw.random(), "kind": "ab"[i % 2],
         "pruned": f"{i % 5} {5 + i % 3}"}
        for i in range(20) for s in (0, 1)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet", index=False)
    (folder / "t.csv.gz").write_bytes(gzip.compress((folder / "t.csv").read_bytes()))


def _lenet() -> nn.Module:
    torch.manual_seed(0)
    return build("lenet5-mini", {"width": 3}, input_shape=(1, 32, 32), classes=10)


def _checkpoints(folder: Path) -> None:
    state = _lenet().state_dict()
    save_file(state, folder / "w.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, folder / "w.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"net": _lenet(), "args": argparse.Namespace(lr=0.1)}, folder / "object.pt")


def _exports(folder: Path) -> None:
    whole = _lenet()
    inputs = {"input": ((1, 32, 32), "float32")}
    origin = Origin("lenet5-mini", {"width": 3}, inputs, 10, {})
    export(whole, folder / "e.safetensors", origin)


def _training(folder: Path) -> None:
    network = nn.Linear(2, 3)
    checkpoint = Checkpoint(folder / UNDER_WAY, "it")
    checkpoint.save([(network.state_dict(), {"momentum": torch.zeros(2)})], [[{"epoch": 0}]])


def _images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for number, form in enumerate(IMAGES):
            path = folder / part / f"class {number % 2}" / f"{number}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(path)


def _texts(folder: Path) -> None:
    told = [{"text": f"line {i}\nand more"} for i in range(5)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, told)))
    (folder / "t.txt").write_text("one\ntwo\nthree\n")


def _questions(folder: Path) -> None:
    def write(name: str, value: Any, *, lines: bool = False) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value))

    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    write(
        "llava/c.json", [{"id": f"{i}", "image": "a.png", "conversations": turns} for i in (1, 2)]
    )
    write("rows/c.jsonl", [{"prompt": "What?", "answer": "Yes."} for _ in range(3)], lines=True)
    asked = {"question": "Who?", "image_id": "a", "answers": ["me", "me", "you"]}
    write("text/TextVQA_0.5.1_train.json", {"data": [asked, asked]})
    write(
        "gqa/train_balanced_questions.json",
        {"1": {"question": "Is it?", "imageId": "a", "answer": "no"}},
    )
    write(
        "pope/coco_pope_random.json",
        [{"text": "A cat?", "image": "a.jpg", "label": "yes"}],
        lines=True,
    )
    problem = {
        "hint": "",
        "question": "Q",
        "choices": ["a", "b"],
        "answer": 1,
        "image": None,
        "split": "train",
    }
    write("science/problems.json", {"1": problem, "2": problem, "3": problem})
    write("science/pid_splits.json", {"train": ["1"], "val": ["2"], "test": ["3"]})


def _digits(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, shape in (("images-idx3", (4, 28, 28)), ("labels-idx1", (4,))):
            head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + b"\3" * int(np.prod(shape)))


def _record(folder: Path) -> None:
    for version in (2, 4):
        older_record(folder / f"v{version}", version).rename(folder / f"v{version}" / "run-1")
    shutil.copytree(folder / "v4" / "run-1", folder / "new" / "run-1")
    with Store(folder / "new" / "run-1"):  # which brings it to this format
        pass
    spec = Results(folder / "v2" / "run-1").spec
    dense = spec.dense.model_copy(update={"seeds": (0, 1)})
    write_networks(folder / "v2" / "several-1", spec.model_copy(update={"dense": dense}))


# Readers


def _study(path: Path) -> None:
    for one in variants(str(next(path.glob("*.toml")))):
        assert one.spec.digest


def _of_listing(name: str) -> Read:
    return lambda folder: list_candidates(GROUPS, RATIOS, count=folder / name)


def _of_table(name: str) -> Read:
    def read(folder: Path) -> None:
        for more in ({}, {"kind": "kind", "pruned": "pruned"}):
            read_tables(folder / name, ["score"], ["y"], higher_is_better=True, **more)  # type: ignore[arg-type]

    return read


def _of_weights(name: str) -> Read:
    def read(folder: Path) -> None:
        read_weights(folder / name)
        load_weights(_lenet(), folder / name)

    return read


def _of_questions(kind: str, where: str) -> Read:
    return lambda folder: find_questions(kind, str(folder / where), None, {})


def _text(folder: Path) -> None:
    for text in find_texts("text", str(folder), {}).values():
        text.measure()


def _pictures(folder: Path) -> None:
    train, _ = open_folder(folder, 16, (0.5,) * 3, (0.5,) * 3)
    look(train)
    for _ in train.batches(4):
        pass


def _idx(folder: Path) -> None:
    if importlib.util.find_spec("torchvision") is not None:
        datasets.load("mnist", folder=folder, validation_images=0, split_seed=0)
    for path in (folder / "MNIST" / "raw").iterdir():
        datasets._idx_damage(path)


def _of_record(where: str) -> Iterator[Read]:
    yield lambda folder: read_status(folder / where)
    yield lambda folder: Results(folder / where).tables()
    yield lambda folder: verify(folder / where)

    def written(folder: Path) -> None:
        with Store(folder / where) as store:
            store.check()

    yield written


EXPORT = "e.safetensors"
RECORDS = ("v2/run-1", "v4/run-1", "new/run-1")
SEARCHED = "v2/run-1/search/guided-586827ad/search.json"

DOORS: dict[str, Door] = {
    "study": Door(_studies, {"*.toml": (_study,)}),
    "listing": Door(_listing, {name: (_of_listing(name),) for name in ("list.json", "list.pkl")}),
    "table": Door(
        _tables, {name: (_of_table(name),) for name in ("t.csv", "t.parquet", "t.csv.gz")}
    ),
    "checkpoint": Door(
        _checkpoints,
        {name: (_of_weights(name),) for name in ("w.safetensors", "w.pt", "old.pt", "object.pt")},
    ),
    "export": Door(_exports, {EXPORT: (lambda folder: load(folder / EXPORT),)}),
    "training": Door(
        _training,
        {UNDER_WAY: (lambda folder: Checkpoint(folder / UNDER_WAY, "it").load([nn.Linear(2, 3)]),)},
    ),
    "images": Door(_images, {"*/*/*": (_pictures,)}),
    "text": Door(_texts, {"t.*": (_text,)}),
    "questions": Door(
        _questions,
        {
            "llava/*": (_of_questions("instructions", "llava"),),
            "rows/*": (_of_questions("instructions", "rows"),),
            "text/*": (_of_questions("textvqa", "text"),),
            "gqa/*": (_of_questions("gqa", "gqa"),),
            "pope/*": (_of_questions("pope", "pope"),),
            "science/*": (_of_questions("scienceqa", "science"),),
        },
    ),
    "idx": Door(_digits, {"MNIST/raw/*": (_idx,)}),
    "record": Door(_record, {f"{where}/{DATABASE}": tuple(_of_record(where)) for where in RECORDS}),
    "record's other files": Door(
        _record,
        {
            SEARCHED: (
                lambda folder: read_status(folder / "v2/run-1"),
                lambda folder: verify(folder / "v2/run-1"),
            ),
            "v2/run-1/*.safetensors": (lambda folder: verify(folder / "v2/run-1"),),
            "v2/several-1/*": (lambda folder: read_networks(folder / "v2/several-1"),),
        },
    ),
}


# Changes

NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, "", "x" * 5000, "\x1b[31m", "=1+1", "../../etc/passwd", "\0", "\u202e",
    "é", "os:system", "around:", "@", "[", [], {}, [[]], {"a": {}}, ["a"] * 1000,
)  # fmt: skip
BYTES = (b"\0", b"\xff" * 4, b"\0" * 8, b"\x7f\xff\xff\xff", b"[" * 3000, b"\n", b'"', b"9" * 400)


def _flipped(draw: random.Random, data: bytes) -> bytes:
    """Bytes with a few of them changed, cut out, doubled or put in."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(made) + 1)
        # Headers decide more than what follows them.
        place = place if draw.random() < 0.5 else min(place, draw.randrange(200))
        span = draw.choice((1, 2, 4, 8, 64))
        kind = draw.randrange(6)
        if kind == 0 and made:
            made[min(place, len(made) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            made[place : place + span] = draw.randbytes(span)
        elif kind == 2:
            del made[place : place + span]
        elif kind == 3:
            made[place:place] = made[place : place + span]
        elif kind == 4:
            made[place:place] = draw.choice(BYTES)
        elif draw.random() < 0.3:
            del made[place:]
    return bytes(made)


def _with_value(draw: random.Random, value: Any) -> Any:
    """A value with something in it replaced, taken away or put in."""
    made = copy.deepcopy(value)
    at = made
    while isinstance(at, dict | list) and at:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw.choice(keys)
        deeper = at[key]
        if not isinstance(deeper, dict | list) or not deeper or draw.random() < 0.25:
            kind = draw.randrange(4)
            if kind == 0:
                del at[key]
            elif kind == 1 and isinstance(at, dict):
                at[draw.choice([one for one in VALUES if isinstance(one, str)])] = at.pop(key)
            else:
                at[key] = draw.choice(VALUES)
            return made
        at = deeper
    return draw.choice(VALUES)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        fields = ", ".join(f"{json.dumps(str(k))} = {_toml(one)}" for k, one in value.items())
        return f"{{ {fields} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(str(value), repr(value))
    return json.dumps("none" if value is None else value)


def _changed(draw: random.Random, path: Path) -> None:
    """Change a file by its bytes or, where it has values, by these."""
    data = path.read_bytes()
    by_value = draw.random() < 0.6
    if path.name == DATABASE and by_value:
        _change_row(draw, path)
    elif path.suffix == ".toml" and by_value:
        fields = _with_value(draw, tomllib.loads(data.decode()))
        fields = fields if isinstance(fields, dict) else {"a": fields}
        text = "\n".join(f"{json.dumps(str(k))} = {_toml(one)}" for k, one in fields.items())
        path.write_bytes(text.encode("utf-8", "replace"))
    elif path.suffix == ".json" and by_value and data[:1] in b"{[":
        with suppress(ValueError):  # it may be JSON line by line
            made = _with_value(draw, json.loads(data))
            if isinstance(made, dict) and draw.random() < 0.8:
                made.pop("sha256", None)
            path.write_text(json.dumps(made))
    elif path.suffix == ".jsonl" and by_value:
        lines = data.decode().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(_with_value(draw, json.loads(lines[place])))
        path.write_text("\n".join(lines))
    elif path.suffix == ".safetensors" and by_value:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        about = header.get("__metadata__", {})
        if "origin" in about and draw.random() < 0.7:
            about["origin"] = json.dumps(_with_value(draw, json.loads(about["origin"])))
        else:
            header = _with_value(draw, header)
        packed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + size :])
    elif path.suffix == ".csv" and by_value:
        frame = pd.read_csv(path).astype(object)
        for _ in range(draw.choice((1, 3, 20))):
            cell = draw.randrange(len(frame)), draw.randrange(len(frame.columns))
            frame.iloc[cell] = str(draw.choice(VALUES))
        frame.to_csv(path, index=False)
    elif path.suffix == ".gz" and by_value:
        path.write_bytes(gzip.compress(_flipped(draw, gzip.decompress(data))))
    else:
        path.write_bytes(_flipped(draw, data))


def _change_row(draw: random.Random, path: Path) -> None:
    """Change a value, a row or the making of a record's tables."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        names = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = draw.choice([name for name in names if not name.startswith("sqlite_")])
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        value = draw.choice((*VALUES, b"\0\xff", "{}", '{"conv1": [3]}', "[" * 2000))
        value = json.dumps(value) if isinstance(value, dict | list) else value
        column = draw.choice(columns)
        statement = draw.choice((
            f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT min(rowid) FROM {table})",
            f"UPDATE {table} SET {column} = ?",
            f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})",
            f"DELETE FROM {table}",
            f"DROP TABLE {table}",
            f"ALTER TABLE {table} RENAME COLUMN {column} TO other",
            f"PRAGMA user_version = {draw.randint(-1, 7)}",
        ))  # fmt: skip
        with suppress(sqlite3.Error, OverflowError, UnicodeError):
            db.execute(statement, (value,) if "?" in statement else ())


# Cases


def one_case(seed: int, number: int, real: Path, place: Path) -> str:
    """Carry out a case; the finding, or empty where files were read or refused as they should.

    ``real`` has a folder of real files for each door; ``place`` is an empty folder.
    """
    draw = random.Random(f"{seed}-{number}")
    name = list(DOORS)[number % len(DOORS)]
    door = DOORS[name]
    below = real / name
    files = [(path, reads) for one, reads in door.reads.items() for path in below.glob(one)]
    chosen, reads = draw.choice(sorted(files, key=lambda file: file[0]))
    folder = place / "files"
    if name == "study":  # each is a case of its own
        folder.mkdir()
        shutil.copy(chosen, folder / chosen.name)
    else:
        top = chosen.relative_to(real / name).parts[0] if name.startswith("record") else "."
        shutil.copytree(real / name / top, folder / top)
    _changed(draw, folder / chosen.relative_to(real / name))
    for read in reads:
        if finding := _finding(read, folder):
            return f"case {number} ({name}, {chosen.relative_to(real / name)}): {finding}"
    return ""


def _finding(read: Read, folder: Path) -> str:
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nothing:
            warnings.simplefilter("ignore")
            with redirect_stdout(nothing), redirect_stderr(nothing):
                read(folder)
    except BaseException as error:
        line, code = _ending(error)
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        if code not in (2, 3, 4, 5):
            return f"{line} (at {at})"
        if isinstance(error, OSError | MemoryError) or "out of memory" in line:
            return f"{type(error).__name__}: {line} (at {at})"
        if "\n" in line or len(line) > 3000:
            return f"no single short line: {line[:300]!r}"
    return ""


def make_real(real: Path) -> None:
    """Write the real files of every door below ``real``."""
    for name, door in DOORS.items():
        (real / name).mkdir(parents=True)
        door.make(real / name)


def _worker(
    link: Any, seed: int, real: Path, numbers: Sequence[int], memory: int, seconds: float
) -> None:
    """Carry out cases in a process with limits; says which one it begins, and what it found."""
    torch.set_num_threads(1)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        link.send((number, None))
        spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (spent + int(seconds) + 1, resource.RLIM_INFINITY))
        with tempfile.TemporaryDirectory() as place:
            found = one_case(seed, number, real, Path(place))
        link.send((number, found))
    link.send((None, None))


def run(
    numbers: Sequence[int], *, seed: int, real: Path, memory: int, seconds: float
) -> Iterator[tuple[int, str]]:
    """Each case with what was found; a process that a case ends is started again after it."""
    left = list(numbers)
    context = multiprocessing.get_context("fork")
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(theirs, seed, real, left, memory, seconds))
        process.start()
        theirs.close()
        begun = None
        try:
            while True:
                if not ours.poll(60 * seconds):  # it waits for something that never comes
                    process.kill()
                number, found = ours.recv()
                if number is None:
                    return
                begun = number
                if found is not None:
                    left.remove(number)
                    yield number, found
        except EOFError:
            process.join()
            if begun is None:
                raise RuntimeError(f"the process ended at once: {process.exitcode}") from None
            if begun in left:
                left.remove(begun)
                yield begun, f"case {begun}: the process ended with {process.exitcode}"
        finally:
            ours.close()
            process.join(1)


def main() -> None:
    """Carry cases out, print what was found, and fail where there is anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--begin", type=int, default=0, help="the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, shown in full")
    parser.add_argument("--memory", type=int, default=2**30, help="bytes beyond the first")
    parser.add_argument("--seconds", type=float, default=20, help="of the processor, per case")
    given = parser.parse_args()
    findings, doors = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder)
        make_real(real)
        numbers = (
            range(given.begin, given.begin + given.cases) if given.only is None else given.only
        )
        limits = {"memory": given.memory, "seconds": given.seconds}
        for number, found in run(numbers, seed=given.seed, real=real, **limits):
            doors[list(DOORS)[number % len(DOORS)]] += 1
            findings += bool(found)
            if found:
                print(found, flush=True)
    told = ", ".join(f"{name} {count:,}" for name, count in doors.items())
    print(f"{sum(doors.values()):,} cases, {findings} findings ({told}), seed {given.seed}")
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
