"""Files that are written whole or not at all, and that nothing of the user's is lost by."""

from __future__ import annotations

import ast
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trueoracle import files
from trueoracle.errors import StoreError
from trueoracle.figures.scatter import save_figure
from trueoracle.files import (
    check_writable,
    checked_json,
    read_checked,
    read_checked_json,
    remove_drafts,
    replacing,
    write_bytes,
    write_checked,
)
from trueoracle.networks.weights import write_tensors
from trueoracle.pruning.listing import Listing, write_listing

ROOT = Path(files.__file__).parent


def drafts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".trueoracle-")]


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with replacing(path) as draft:
        assert draft.parent == tmp_path
        assert draft.suffix == ".pt"
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert drafts(tmp_path) == []


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_rights_that_they_have_here(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "one", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o640


def test_a_draft_is_no_file_or_link_of_somebodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Even a name that was guessed is opened exclusively.
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".trueoracle-{'0' * 32}").symlink_to(theirs)
    with pytest.raises(StoreError, match=r"cannot write .*mine: File exists"):
        write_bytes(tmp_path / "mine", b"mine")
    assert theirs.read_bytes() == b"theirs"
    assert not (tmp_path / "mine").exists()


WRITERS: dict[str, Callable[[Path], object]] = {
    "m.safetensors": lambda path: write_tensors({"a": torch.zeros(2)}, path),
    "m.json": lambda path: write_listing(Listing({"layers": {}}, [[0]]), path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_of_the_users_beside_it_stay(tmp_path: Path, name: str, kind: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    beside = [f"m{ending}" for ending in (".partial", ".writing", ".tmp")]
    beside += [f"{name}.partial", f".m.partial{Path(name).suffix}", f"{name}.{os.getpid()}.tmp"]
    for other in beside:
        if kind == "link":
            (tmp_path / other).symlink_to(theirs)
        else:
            (tmp_path / other).write_bytes(b"mine")
    WRITERS[name](tmp_path / name)
    check_writable(tmp_path / name)
    assert theirs.read_bytes() == b"theirs"
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*beside, name, "theirs"}
    if kind == "file":
        assert all((tmp_path / other).read_bytes() == b"mine" for other in beside)


def test_figures_are_written_whole(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    written = save_figure(Figure(), tmp_path / "figures" / "one")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        path.name for path in written
    )


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*folder: it is no file"):
        write_bytes(tmp_path / "folder", b"")
    with pytest.raises(StoreError, match=r"cannot write .*one: No such file or directory"):
        write_bytes(tmp_path / "none" / "one", b"")
    assert drafts(tmp_path) == []


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    write_bytes(path, b"{}")
    assert path.read_bytes() == b"{}"


def test_only_what_the_product_left_half_written_is_removed(tmp_path: Path) -> None:
    own = [f".trueoracle-{'ab' * 16}", f".trueoracle-{'0' * 32}.safetensors"]
    other = [".trueoracle-notes", f".trueoracle-{'x' * 32}", "dense.partial", "a.tmp"]
    for name in own + other:
        (tmp_path / name).touch()
    (tmp_path / f".trueoracle-{'1' * 32}").symlink_to(tmp_path / "a.tmp")
    (tmp_path / f".trueoracle-{'2' * 32}").mkdir()
    remove_drafts(tmp_path)
    kept = {*other, f".trueoracle-{'1' * 32}", f".trueoracle-{'2' * 32}"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_drafts(tmp_path / "none")


def test_content_is_held_against_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert read_checked(path) is None
    write_checked(path, b"content")
    assert read_checked(path) == b"content"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert read_checked(path) is None


def test_fields_are_held_against_their_checksum() -> None:
    fields = {"a": [1, 2.5, None], "b": {"c": "d"}}
    text = checked_json(fields)
    assert read_checked_json(text) == fields
    assert read_checked_json('{"a": 1}') == {"a": 1}  # of an older version
    with pytest.raises(ValueError, match="checksum"):
        read_checked_json(text.replace("2.5", "2.6"))
    for other in ("[1]", "{", "[" * 100_000):
        with pytest.raises(ValueError, match=r"."):
            read_checked_json(other)


def test_nothing_is_written_in_another_way() -> None:
    # One function writes all files, so that none of them is ever half there: its drafts are
    # written by others, into memory goes what PyTorch writes.
    writers = {"write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "copyfile", "save"}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in writers and path != ROOT / "files.py":
                said = ast.unparse(node)
                is_own = re.search(
                    r"\b(draft|target|content|held)\b|record\.save|checkpoint\.save", said
                )
                assert is_own, f"{path.name}:{node.lineno}: {said}"
