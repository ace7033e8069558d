"""Questions and answers as examples: tokens, of which only the answers' count, and images."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trueoracle.data.questions import Question
from trueoracle.data.splits import Split
from trueoracle.data.streaming import in_colour, opened, printable
from trueoracle.data.tokens import IMAGE, Tokenizer
from trueoracle.errors import InputError, first_line
from trueoracle.tasks.base import Batch
from trueoracle.tasks.language import IGNORED

__all__ = ["Conversations", "Encoded", "Encoder", "PlainEncoder", "ProcessorEncoder", "collate"]

_CPU = torch.device("cpu")
_CACHED_BYTES = 2**30
"""The most bytes of small images that are kept in memory after they were read."""
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Encoded:
    """The ``tokens`` ``[T]`` of an example, which of them count, and the network's other inputs.

    ``counts`` is bool ``[T]``; ``beside`` are further numbers for each token ``[T]``; ``images`` is
    what a processor makes of the image, without a leading axis of examples.
    """

    tokens: Tensor
    counts: Tensor
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    images: Mapping[str, Tensor] = field(default_factory=dict)


class Encoder(Protocol):
    """Makes examples from questions."""

    tokenizer: Tokenizer

    def __call__(self, question: Question) -> Encoded:
        """One question as an example."""

    def counts(self, question: Question) -> Tensor:
        """Which tokens of the example count, bool ``[T]``."""

    @property
    def identity(self) -> str:
        """What the encoder's examples depend on besides the questions."""


# Encoders


class PlainEncoder:
    """The image's tokens, the question, a space and the answer: for networks trained here.

    Images are resized to ``image_size`` (height and width; bilinear) and normalised to -1 … 1. Each
    is represented by ``image_tokens`` tokens :data:`trueoracle.data.tokens.IMAGE`, one for each
    place of its features, as transformers' Llava expects.
    """

    def __init__(
        self, tokenizer: Tokenizer, bos: str | None, image_size: int, image_tokens: int
    ) -> None:
        self.tokenizer, self._size, self._places = tokenizer, image_size, image_tokens
        self._beginning = tokenizer.beginning(bos)
        self._said: dict[str, list[int]] = {}
        self._images: dict[Path, Tensor] = {}
        self._kept = 0

    @property
    def identity(self) -> str:
        return f"plain {self.tokenizer.sha256} {self._beginning} {self._size} {self._places}"

    def __call__(self, question: Question) -> Encoded:
        tokens, counts = self._text(question)
        images = {} if question.image is None else {"pixel_values": self._pixels(question.image)}
        return Encoded(torch.tensor(tokens), torch.tensor(counts), images=images)

    def counts(self, question: Question) -> Tensor:
        return torch.tensor(self._text(question)[1])

    def _text(self, question: Question) -> tuple[list[int], list[bool]]:
        tokens, counts = list(self._beginning), [False] * len(self._beginning)
        if question.image is not None:
            tokens += [IMAGE] * self._places
            counts += [False] * self._places
        for place, (asked, answer) in enumerate(question.turns):
            for text, is_answer in ((" " * (place > 0) + asked, False), (f" {answer}", True)):
                ids = self._tokens_of(text)
                tokens += ids
                counts += [is_answer] * len(ids)
        return tokens, counts

    def _tokens_of(self, text: str) -> list[int]:
        if text not in self._said:
            (self._said[text],) = self.tokenizer.encode([text])
        return self._said[text]

    def _pixels(self, path: Path) -> Tensor:
        """The pixels, float32 ``[3, image_size, image_size]``; the first images are cached."""
        pixels = self._images.get(path)
        if pixels is None:
            image = _opened(path).resize((self._size, self._size), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            if self._kept + pixels.nbytes <= _CACHED_BYTES:
                self._images[path] = pixels
                self._kept += pixels.nbytes
        return pixels.float().div_(127.5).sub_(1)


class ProcessorEncoder:
    """Examples by a model's own tokenizer or processor, and its chat template if it has one.

    Without a template, the question stands on a line of its own, with the image before it, and the
    answer on the next line. The answer's tokens are those that the model itself would put after the
    prompt, and the token that ends the answer. ``image_size`` resizes images before the processor
    gets them. Raises :class:`InputError` for a template whose prompt does not begin the whole text.
    """

    def __init__(self, tokenizer: Tokenizer, bos: str | None, image_size: int | None) -> None:
        self.tokenizer, self._size = tokenizer, image_size
        self._processor = tokenizer.processor
        self._own = getattr(self._processor, "tokenizer", self._processor)
        self._beginning = None if bos is None else tokenizer.beginning(bos)
        self._lock = Lock()

    @property
    def identity(self) -> str:
        kind = type(self._processor).__name__
        template = getattr(self._processor, "chat_template", None)
        said = f"{kind} {self.tokenizer.sha256} {self._beginning} {self._size} {template}"
        return said + str(getattr(self._processor, "image_processor", ""))

    def __call__(self, question: Question) -> Encoded:
        image = None if question.image is None else _opened(question.image)
        if image is not None and self._size is not None:
            image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        with self._lock:  # a tokenizer may be used by one thread at a time only
            return self._encoded(question, image)

    def counts(self, question: Question) -> Tensor:
        return self(question).counts

    def _encoded(self, question: Question, image: Image.Image | None) -> Encoded:
        parts = self._parts(question)
        fields = self._processed(parts[0][0], image)
        first = fields.pop("input_ids")
        beside = {n: fields.pop(n) for n in list(fields) if fields[n].shape == first.shape}
        beside.pop("attention_mask", None)
        start = self._begun(first.tolist())
        tokens, counts = list(start), [False] * len(start)
        for text, is_answer in parts[1:]:
            ids = self._own(text, add_special_tokens=False, verbose=False)["input_ids"]
            tokens += ids
            counts += [is_answer] * len(ids)
        moved = len(start) - len(first)  # by tokens at the beginning
        return Encoded(
            torch.tensor(tokens),
            torch.tensor(counts),
            {
                name: functional.pad(value, (moved, len(tokens) - len(start)))
                for name, value in beside.items()
            },
            fields,
        )

    def _processed(self, text: str, image: Image.Image | None) -> dict[str, Tensor]:
        """What the processor makes of the prompt and the image; ``input_ids`` is ``[T]``."""
        if image is None:
            made = self._own(text, return_tensors="pt", verbose=False)
        else:
            try:
                made = self._processor(text=[text], images=[image], return_tensors="pt")
            except Exception as error:  # processors differ in what they take
                raise InputError(
                    f"{type(self._processor).__name__} does not take an image and a question: "
                    f"{first_line(error)}"
                ) from error
        return {n: _one(v) if n == "pixel_values" else v[0] for n, v in made.items()}

    def _begun(self, tokens: list[int]) -> list[int]:
        """The tokens with exactly one beginning token, or with none, as the study asks."""
        rest = tokens
        while rest and self.tokenizer.bos is not None and rest[0] == self.tokenizer.bos:
            rest = rest[1:]
        own = tokens[:1] if len(rest) < len(tokens) else []
        return [*(own if self._beginning is None else self._beginning), *rest]

    def _parts(self, question: Question) -> list[tuple[str, bool]]:
        """The whole conversation in pieces of text, each with a flag: whether it is an answer."""
        with_image = question.image is not None
        chat = getattr(self._processor, "chat_template", None)
        if chat is None:
            place = f"{getattr(self._processor, 'image_token', '<image>')}\n" if with_image else ""
            end = self._own.eos_token or ""
            pieces: list[tuple[str, bool]] = []
            for turn, (asked, answer) in enumerate(question.turns):
                pieces += [(f"{place if turn == 0 else ''}{asked}\n", False), (answer + end, True)]
            return pieces
        talk: list[dict[str, Any]] = []
        parts, before = [], ""
        for turn, (asked, answer) in enumerate(question.turns):
            content: Any = asked
            if self._processor is not self._own:
                content = [{"type": "image"}] * (with_image and turn == 0)
                content = [*content, {"type": "text", "text": asked}]
            talk.append({"role": "user", "content": content})
            prompt = self._said(talk, prompting=True)
            said: Any = answer
            if self._processor is not self._own:
                said = [{"type": "text", "text": answer}]
            talk.append({"role": "assistant", "content": said})
            whole = self._said(talk, prompting=False)
            if not (prompt.startswith(before) and whole.startswith(prompt)):
                raise InputError(
                    f"the chat template of {self.tokenizer.name!r} changes what was said before: "
                    "where an answer begins cannot be told"
                )
            parts += [(prompt[len(before) :], False), (whole[len(prompt) :], True)]
            before = whole
        return parts

    def _said(self, talk: list[dict[str, Any]], *, prompting: bool) -> str:
        try:
            return str(
                self._processor.apply_chat_template(
                    talk, tokenize=False, add_generation_prompt=prompting
                )
            )
        except Exception as error:  # a template is code
            raise InputError(
                f"the chat template of {self.tokenizer.name!r}: {first_line(error)}"
            ) from error


def _one(pixels: Tensor) -> Tensor:
    """An image's pixels without the axis of examples, which some models' patches do not have."""
    return pixels[0] if len(pixels) == 1 else pixels


def _opened(path: Path) -> Image.Image:
    try:
        with opened(path) as file:
            file.load()
            return in_colour(file)
    except Exception as error:  # a damaged file brings Pillow to many kinds of error
        raise InputError(
            f"{printable(path)} cannot be read as an image ({first_line(error)}): replace it"
        ) from error


# Examples


def collate(
    encoded: Sequence[Encoded],
    pad: int,
    length: int | None = None,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """Examples as a batch: ``input_ids``, ``attention_mask`` and ``labels`` ``[N, T]``, and images.

    ``labels`` are -100 where a token does not count. Shorter examples are padded with ``pad`` on
    one ``side`` to ``length``, or to the longest; longer ones lose their end. Raises
    :class:`InputError` for images that are not alike.
    """
    longest = length or max(len(one.tokens) for one in encoded)

    def padded(value: Tensor, filler: int) -> Tensor:
        room = longest - len(value)
        sides = (0, room) if side == "right" or room < 0 else (room, 0)
        return functional.pad(value, sides, value=filler)

    batch = {
        "input_ids": torch.stack([padded(one.tokens, pad) for one in encoded]),
        "attention_mask": torch.stack([padded(torch.ones_like(e.tokens), 0) for e in encoded]),
        "labels": torch.stack(
            [padded(one.tokens.where(one.counts, IGNORED), IGNORED) for one in encoded]
        ),
    }
    for name in encoded[0].beside:
        batch[name] = torch.stack([padded(one.beside[name], 0) for one in encoded])
    for name in encoded[0].images:
        values = [one.images[name] for one in encoded]
        if len(shapes := {tuple(value.shape) for value in values}) > 1:
            raise InputError(
                f"the processor makes {name} of different shapes, "
                f"{' and '.join(str(list(s)) for s in sorted(shapes)[:2])}: data.image_size makes "
                "images alike"
            )
        batch[name] = torch.stack(values)
    return batch


@dataclass(frozen=True, eq=False)
class Conversations:
    """A split of questions, encoded when they are needed; the interface is :class:`AnySplit`.

    Batches are padded to their longest example, examples taken into memory to ``length``; no
    example is longer. ``vocabulary`` is the tokenizer's; ``shapes`` are those of one example.
    """

    questions: tuple[Question, ...]
    encoder: Encoder
    length: int
    shapes: dict[str, tuple[int, ...]]
    device: torch.device = _CPU

    @classmethod
    def of(cls, questions: Sequence[Question], encoder: Encoder, length: int) -> Conversations:
        """A split of these questions."""
        first = collate([encoder(questions[0])], encoder.tokenizer.pad, length)
        shapes = {name: tuple(value.shape[1:]) for name, value in first.items()}
        return cls(tuple(questions), encoder, length, shapes)

    @property
    def vocabulary(self) -> int:
        return self.encoder.tokenizer.vocabulary

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def inputs(self) -> NoReturn:
        raise InputError("questions have no field 'input': their examples are input_ids and labels")

    @property
    def targets(self) -> Tensor:
        return self.take(torch.arange(len(self))).targets

    @property
    def is_streamed(self) -> bool:
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def to(self, device: torch.device) -> Conversations:
        return replace(self, device=device)

    def select(self, index: Tensor) -> Conversations:
        return replace(self, questions=tuple(self.questions[i] for i in index.tolist()))

    def take(self, index: Tensor) -> Split:
        return Split(self._batch(index, self.length))

    def batches(self, size: int) -> Iterator[Batch]:
        return self._ahead(torch.arange(len(self)).split(size))

    def training_batches(
        self, indices: Sequence[Tensor], resized_crop: float | None, seed: int
    ) -> Iterator[Batch]:
        return self._ahead(indices)

    def add_to(self, digest: hashlib._Hash) -> None:
        digest.update(f"{self.encoder.identity} {self.length}\n".encode())
        for one in self.questions:
            digest.update(repr(one.turns).encode())
            if one.image is not None:
                size = one.image.stat().st_size
                digest.update(os.fsencode(one.image.name) + f" {size}\n".encode())

    def _batch(self, index: Tensor, length: int | None = None) -> dict[str, Tensor]:
        encoded = [self.encoder(self.questions[i]) for i in index.tolist()]
        longest = max(len(one.tokens) for one in encoded)
        batch = collate(encoded, self.encoder.tokenizer.pad, length or min(longest, self.length))
        return {name: value.to(self.device) for name, value in batch.items()}

    def _ahead(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """The batches in order; threads make the next ones meanwhile."""
        waiting, made = iter(indices), deque[Future[dict[str, Tensor]]]()
        pool = ThreadPoolExecutor(_BATCHES_AHEAD, thread_name_prefix="encode")
        try:
            for index in waiting:
                made.append(pool.submit(self._batch, index))
                if len(made) > _BATCHES_AHEAD:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
