"""Files whose few bytes say that they are more than there is memory for: refused in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from tests.data.formats import colours, write_folder
from trueoracle.analysis import own
from trueoracle.analysis.own import read_tables
from trueoracle.data import streaming
from trueoracle.data.streaming import open_folder
from trueoracle.errors import InputError
from trueoracle.files import write_checked
from trueoracle.networks.examples import read_inputs
from trueoracle.networks.weights import read_weights
from trueoracle.search.export import load
from trueoracle.training.checkpoint import Checkpoint


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# Tables

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "two gzips": lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
}


@pytest.mark.parametrize("name", PACKERS)
def test_a_packed_table_that_is_too_large_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = b"x,y\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(3000))
    path = tmp_path / "table.csv"
    path.write_bytes(PACKERS[name](table))
    assert len(read_tables(path, ["x"], ["y"], higher_is_better=True)[""].outcomes) == 3000
    monkeypatch.setattr(own, "MOST_BYTES", len(table) - 1)
    path.write_bytes(PACKERS[name](table + b"\n" * 2**25))
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read_tables(path, ["x"], ["y"], higher_is_better=True)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "unpack" in one_line(error) or "Memory usage limit" in one_line(error)


def test_a_table_that_says_it_has_billions_of_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    zeros = pa.chunked_array([pa.nulls(1000, pa.int8())] * 1000)
    table = pa.table({"x": zeros, "y": zeros})
    with parquet.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(own.MOST_CELLS // 2_000_000 + 1):
            writer.write_table(table)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=r"it says that it has 6\d,\d{3},\d{3} cells, more than"):
        read_tables(path, ["x"], ["y"], higher_is_better=True)


def test_a_text_that_many_cells_share(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["9" * 1_000_000])
    parquet.write_table(pa.table({"x": texts, "y": pa.array(range(5000))}), path)
    with pytest.raises(InputError, match="its cells come to more than 268,435,456 characters"):
        read_tables(path, ["x"], ["y"], higher_is_better=True)


# Checkpoints


def repacked(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {one.filename: archive.read(one) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_packed_checkpoint_is_refused(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    torch.save({"weight": torch.zeros(10_000_000)}, path)
    assert read_weights(path)["weight"].numel() == 10_000_000
    repacked(path, compression)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="it is packed") as error:
        read_weights(path)
    one_line(error)


def test_a_packed_checkpoint_of_a_training_counts_as_damaged(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    path = tmp_path / "dense.partial.pt"
    checkpoint = Checkpoint(path, "this training")
    checkpoint.save([(network.state_dict(), {})], [[]])
    assert checkpoint.load([network]) is not None
    content = tmp_path / "content"
    content.write_bytes(path.read_bytes()[32:])
    repacked(content, zipfile.ZIP_DEFLATED)
    write_checked(path, content.read_bytes())  # anybody can write the checksum
    assert checkpoint.load([network]) is None


def test_a_number_that_is_repeated_without_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    endless = {name: {"weight": torch.zeros(1).expand(10**13)} for name in ("one", "other")}
    torch.save(endless, path)
    with pytest.raises(InputError, match="holds 2 different mappings") as error:
        read_weights(path)
    one_line(error)


HEADERS: dict[str, dict[str, Any]] = {
    "more numbers than the file": {
        "w": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4]}
    },
    "offsets far out": {"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}},
    "a size beyond 64 bits": {"w": {"dtype": "F32", "shape": [2**40] * 3, "data_offsets": [0, 4]}},
}


@pytest.mark.parametrize("name", [*HEADERS, "a long header"])
def test_a_header_of_safetensors_that_promises_too_much(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    header = json.dumps(HEADERS.get(name, {})).encode()
    size = 2**60 if name == "a long header" else len(header)
    path.write_bytes(struct.pack("<Q", size) + header + b"\0" * 4)
    for read in (read_weights, load, lambda path: read_inputs([str(path)])):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(path) in one_line(error)


# Images


def png(width: int, height: int) -> bytes:
    """A grey image of zeros, which takes a thousandth of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000, 9)
    end = chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (14_000, 14_000, "pixels"),
        (100_000, 100_000, "pixels"),
        (1, 100_000, "too narrow to be resized to 64"),
    ],
)
def test_an_image_of_too_many_pixels(width: int, height: int, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {"train": colours(6), "val": colours(6)})
    named = sorted((folder / "train").rglob("*.*"))[0]
    named.write_bytes(png(width, height))
    train, _ = open_folder(folder, 64, (0.5,) * 3, (0.5,) * 3)
    for read in (lambda: streaming.look(train), lambda: list(train.batches(2))):
        with pytest.raises(InputError, match=message) as error:
            read()
        assert str(named) in one_line(error)


def test_a_program_by_the_name_of_an_image_is_not_run(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {"train": colours(6), "val": colours(6)})
    named = sorted((folder / "train").rglob("*.*"))[0]
    held = io.BytesIO()
    Image.new("L", (8, 8)).save(held, "eps")  # which Ghostscript runs
    named.write_bytes(held.getvalue())
    train, _ = open_folder(folder, 64, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputError, match="cannot identify image file"):
        streaming.look(train)


def test_no_archive_is_unpacked_beside_its_folder(tmp_path: Path) -> None:
    """A tar in the place of a checkpoint, as PyTorch wrote them before 2017."""
    path = tmp_path / "network.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "../outside", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(InputError) as error:
        read_weights(path)
    one_line(error)
    assert not (tmp_path.parent / "outside").exists()
