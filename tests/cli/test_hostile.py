"""Hostile text in every argument and option: one line and an exit code of its own, nothing raw."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.cli.test_cli import TINY, call
from tests.conftest import Writer
from trueoracle.cli.app import app
from trueoracle.errors import InputError
from trueoracle.files import write_text

LONG = "x" * 5000
HOSTILE = (
    "", " ", "\0", "\x1b[31m", "a\nb", "\udcff", LONG, "²x3x3", "9" * 5000, "9" * 30, "1e400", "-1",
    "nan", "..", "[" * 5000, "a." * 5000 + "a", "@", "+", ":", "a:b", "folder", "folder.svg",
    f"{LONG}.toml", "\udcff.toml", "folder.toml",
)  # fmt: skip
SETTINGS = (
    "a." * 5000 + "a=1", "dense=" + "[" * 5000, "dense.epochs=" + "9" * 5000,
    "dense.epochs=" + "9" * 30, "dense.epochs=0x" + "f" * 5000, "name='\0'", "name='\udcff'",
    f"name='{LONG}'", "data.path='\\u0000'", "network.weights='\\u0000'",
    "dense.epochs=1\nname='b'", f"network.weights='{LONG}'",
    f"pruning.candidates='{LONG}.json'", f"criteria=['{LONG}.py:a']",
    "pruning.candidates='\\u0000.json'", "pruning.layers={conv1=nan}", "criteria=['a\\u001b:b']",
    "dense.epochs=1979-05-27",
)  # fmt: skip

BASE = {
    "run": ["mine.toml"],
    "score": ["mine.toml"],
    "search": ["mine.toml"],
    "inspect": ["lenet5-mini"],
    "studies": [],
    "criteria": ["l1"],
    "bench": ["l1"],
    "reproduce": ["mine.toml"],
    "status": [],
    "report": ["mine"],
    "export": ["mine", "--out", "tables"],
    "analyse": ["points.csv", "--x", "x", "--y", "y"],
    "verify": ["mine"],
    "watch": ["mine"],
}
"""What works, before one word of it is replaced."""

GROUP: Any = typer.main.get_command(app)


def texts(command: str) -> list[Any]:
    """The arguments and options of a command that take a text."""
    return [
        one
        for one in GROUP.commands[command].params
        if not getattr(one, "is_flag", False) and one.name != "help"
    ]


def words(command: str, parameter: Any, text: str) -> list[str]:
    """The command line with one argument or option replaced."""
    base = BASE[command]
    if parameter.param_type_name == "argument":
        return [command, *base[1:], "--", text]
    option = parameter.opts[0]
    if option in base:
        place = base.index(option)
        base = [*base[:place], *base[place + 2 :]]
    return [command, *base, f"{option}={text}"]


def check(line: list[str]) -> None:
    result = CliRunner().invoke(app, line)
    said = f"{[word[:80] for word in line]}: {result.exit_code} {result.stderr[:500]}"
    assert result.exit_code in (0, 2, 3, 4, 5), said
    assert result.exception is None or isinstance(result.exception, SystemExit), said
    assert not {"\x1b", "\udcff", "\0"} & set(result.output), said
    if result.exit_code and "Usage:" not in result.stderr:
        assert result.stderr.startswith("error: "), said
        assert result.stderr.count("\n") == 1, said
        assert len(result.stderr) < 3000, said


@pytest.fixture
def folder(tmp_path: Path, write_study: Writer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a study and a table in it."""
    write_study(TINY)
    rows = "".join(f"{i},{i * i % 7}\n" for i in range(20))
    (tmp_path / "points.csv").write_text(f"x,y\n{rows}")
    for name in ("folder", "folder.svg", "folder.toml"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stop(*_: object, **__: object) -> None:
    raise InputError("far enough")


def write_and_stop(*given: Any) -> None:
    write_text(given[-1].folder / "first.txt", "a figure takes a second")
    stop()


@pytest.mark.parametrize("command", sorted(BASE))
def test_every_text_of_every_command(
    command: str, folder: Path, tiny_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command in ("report", "export", "watch"):
        call("run", "mine.toml", "-q")
    # What comes behind the reading of a study is tried below, with fewer texts.
    monkeypatch.setattr("trueoracle.study.prepare", stop)
    monkeypatch.setattr("trueoracle.bench.scoring.score_bench", stop)
    monkeypatch.setattr("trueoracle.report.page.section_of", write_and_stop)
    monkeypatch.setattr("trueoracle.report.watch.serve", stop)
    for place, parameter in enumerate(texts(command), start=sorted(BASE).index(command)):
        # Commands share most options: each tries a third of the texts, another one than the next.
        for text in HOSTILE[place % 3 :: 3]:
            check(words(command, parameter, text))
        for text in SETTINGS if parameter.name == "settings" and command == "run" else ():
            check(words(command, parameter, text))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--device", "--engine", "--memory", "--set", "--runs"])
def test_texts_that_are_read_late(
    option: str, folder: Path, tiny_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trueoracle.run.sitting._begin", stop)
    late = tuple(one for one in SETTINGS if "'" in one)
    given = late if option == "--set" else ("", "\udcff", LONG, "9" * 400 + "TB", "cpu:99", "²")
    for text in given:
        check(["run", "mine.toml", f"{option}={text}"])
        check(["search", "mine.toml", f"{option}={text}"])


STUDIES = {
    "nested": "a = " + "[" * 5000 + "]" * 5000,
    "dotted": ".".join("a" * 5000) + " = 1",
    "digits": "dense.epochs = " + "9" * 10_000,
    "hexadecimal": "dense.epochs = 0x" + "f" * 10_000,
    "wide": "dense.epochs = 99999999999999999999",
    "null": TINY.replace('"lenet5-mini"', '"lenet5-mini\\u0000"'),
    "raw null": TINY.replace('"lenet5-mini"', '"lenet5-mini\0"'),
    "null in extends": 'extends = "\\u0000.toml"',
    "long extends": f'extends = "{LONG}.toml"',
    "arm with a number for arms": f"{TINY}\n[arms.as-released]\narms = 3\n",
    "arm with a number for grid": f"{TINY}\n[arms.as-released]\ngrid = 3\n",
    "arm with a number for published": f"{TINY}\n[arms.as-released]\npublished = 3\n",
    "long name": f'name = "{LONG}"\n{TINY}',
    "long criterion": f'criteria = ["{LONG}"]\n{TINY}',
}


@pytest.mark.parametrize("text", STUDIES.values(), ids=STUDIES.keys())
def test_study_files(text: str, folder: Path, tiny_dataset: str) -> None:
    text = text.replace("\n[arms.as-released.pruning]", "\n[arms.other.pruning]")
    (folder / "odd.toml").write_text(text, encoding="utf-8")
    study = "odd.toml@as-released" if "[arms.as-released]" in text else "odd.toml"
    assert CliRunner().invoke(app, ["run", study]).exit_code == 2
    check(["run", study])
    check(["inspect", study])


def looped(folder: Path) -> None:
    (folder / "odd.toml").symlink_to(folder / "odd.toml")


def latin(folder: Path) -> None:
    (folder / "odd.toml").write_bytes("# naïve".encode("latin-1"))


def a_folder(folder: Path) -> None:
    (folder / "odd.toml").mkdir()


@pytest.mark.parametrize("make", [looped, latin, a_folder])
def test_study_files_that_are_none(make: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    called = call("run", "odd.toml")
    assert called.code == 2
    assert called.err.startswith("error: cannot read the study file odd.toml: ")
    assert called.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1, "candidates": [' + "9" * 10_000 + "]}", "is damaged"),
        ('{"format": ' + "[" * 900 + "]" * 900 + ', "candidates": []}', "has format"),
    ],
)
def test_listings(text: str, message: str, folder: Path, tiny_dataset: str) -> None:
    (folder / "list.json").write_text(text)
    called = call("run", "mine.toml", "--set", "pruning.candidates=list.json")
    assert called.code == 2
    assert message in called.err
    assert called.err.count("\n") == 1
    assert len(called.err) < 3000


@pytest.mark.parametrize(
    "way", ["[" * 5000, "{" + '"a":{' * 5000, "9" * 5000, "1e400", "nan", "²", "-1"]
)
def test_pruned_filters_in_a_table(way: str, folder: Path) -> None:
    rows = "".join(f'{i},{i},"{way.replace(chr(34), chr(34) * 2)}"\n' for i in range(5))
    (folder / "points.csv").write_text(f"x,y,p\n{rows}")
    line = ["analyse", "points.csv", "--x", "x", "--y", "y", "--exhaustive", "--pruned", "p"]
    assert CliRunner().invoke(app, line).exit_code == 2
    check(line)


@pytest.mark.parametrize("body", ["raise SystemExit(7)", "import sys; sys.exit()", "raise 3"])
def test_modules_that_end_the_program(
    body: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "ends_later", raising=False)
    (folder / "ends_at_once.py").write_text(body)
    (folder / "ends_later.py").write_text(f"def made(**_):\n    {body}\n")
    for line in (
        ["inspect", "ends_at_once:x"],
        ["criteria", "ends_at_once:x"],
        ["bench", "ends_at_once.py"],
        ["inspect", "ends_later:made"],
    ):
        assert CliRunner().invoke(app, line).exit_code == 2
        check(line)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(36, "File name too long", "xx"), 2, "cannot read or write xx: File name too long"),
        (PermissionError(13, "Permission denied", "a"), 4, "read or write a: Permission denied"),
        (FileNotFoundError(2, "No such file or directory"), 4, "cannot read or write: No such"),
        (BrokenPipeError(32, "Broken pipe"), 4, "the reader of the output went away"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "out of memory: Unable to allocate 9 TiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), 2, "out of memory: "),
        (SystemExit(3), 2, "code of your own ended the program: SystemExit(3)"),
        (InputError("two\nlines\x1b[0m"), 2, r"two\nlines\x1b[0m"),
    ],
)
def test_what_a_command_may_raise(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("trueoracle.spec.file.shipped_studies", broken)
    called = call("run", "digits-conv1-0.2")
    assert called.code == code
    assert called.err.startswith("error: ")
    assert message in called.err
    assert called.err.count("\n") == 1
